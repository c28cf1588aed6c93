"""Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.dtypes import dtype_of
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.compiler.torch_ops.windows import pad


@operator("ai.onnx.DFT", since=17, host=(1,))
def dft_axis_attribute(call: Call, x: Tensor, length: Tensor | None = None) -> Tensor:
    return _dft(call, x, length, call.get("axis", 1))


@operator("ai.onnx.DFT", since=20, host=(1, 2))
def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    return _dft(call, x, length, -2 if axis is None else int(axis))


def _dft(call: Call, x: Tensor, length: Tensor | None, axis: int) -> Tensor:
    """The last dimension of x is 1 (real) or 2 (complex)."""
    axis %= x.dim()
    size = None if length is None else int(length)
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    signal = _signal(x)
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal, size, axis)
        return real.unsqueeze(-1).to(x.dtype)
    if inverse:
        return _parts(torch.fft.ifft(signal, size, axis), x.dtype)
    return _parts(_forward(signal, size, axis, onesided), x.dtype)


def _signal(x: Tensor) -> Tensor:
    """(..., 1) as real, (..., 2) as complex numbers."""
    y = wide(x)
    return y.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(y.contiguous())


def _parts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Complex numbers as (..., 2); of a real signal torch may give them conjugated by a flag."""
    return torch.view_as_real(x.resolve_conj()).to(dtype)


def _forward(signal: Tensor, size: int | None, axis: int, onesided: bool) -> Tensor:
    """The first half of the bins and one more where `onesided`."""
    if onesided and not signal.is_complex():
        half: Tensor = torch.fft.rfft(signal, size, axis)
        return half
    bins: Tensor = torch.fft.fft(signal, size, axis)
    return bins.narrow(axis, 0, bins.shape[axis] // 2 + 1) if onesided else bins


@operator("ai.onnx.STFT", since=17, host=(1, 3))
def stft(
    call: Call,
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
) -> Tensor:
    """signal (N, L, 1 or 2) -> (N, frames, bins, 2)."""
    if frame_length is not None:
        length = int(frame_length)
    else:
        length = signal.shape[1] if window is None else window.shape[0]
    frames = _signal(signal).unfold(1, length, int(frame_step))
    if window is not None:
        frames = frames * wide(pad(window, [0], [length - window.shape[0]]))
    bins = _forward(frames, length, 2, bool(call.get("onesided", 1)))
    return _parts(bins, signal.dtype)


def _cosine_window(call: Call, size: Tensor, terms: Sequence[float]) -> Tensor:
    """Sum of terms[k] * cos(2 pi k n / N), of a period of N, or of N + 1 points."""
    points = int(size)
    period = points if call.get("periodic", 1) else points - 1
    at = torch.arange(points, dtype=torch.float64) * (2 * math.pi / max(period, 1))
    window = torch.zeros(points, dtype=torch.float64)
    for order, term in enumerate(terms):
        window += term * torch.cos(order * at)
    return window.to(call.device, dtype_of(call.get("output_datatype", 1)))


@operator("ai.onnx.HannWindow", since=17, host=(0,))
def hann_window(call: Call, size: Tensor) -> Tensor:
    return _cosine_window(call, size, (0.5, -0.5))


@operator("ai.onnx.HammingWindow", since=17, host=(0,))
def hamming_window(call: Call, size: Tensor) -> Tensor:
    return _cosine_window(call, size, (25 / 46, -21 / 46))


@operator("ai.onnx.BlackmanWindow", since=17, host=(0,))
def blackman_window(call: Call, size: Tensor) -> Tensor:
    return _cosine_window(call, size, (0.42, -0.5, 0.08))


@operator("ai.onnx.MelWeightMatrix", since=17, host=(0, 1, 2, 3, 4))
def mel_weight_matrix(
    call: Call, mel_bins: Tensor, length: Tensor, rate: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Triangles evenly spaced in mel (2595 log10(1 + f / 700)), each from the centre of the one
    before to the centre of the one after: (length // 2 + 1, mel bins)."""
    count, size = int(mel_bins), int(length)
    lowest, highest = (2595 * math.log10(1 + float(edge) / 700) for edge in (low, high))
    mels = lowest + np.arange(count + 2) * (highest - lowest) / (count + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = ((size + 1) * hertz // int(rate)).astype(np.int64)
    bins = np.arange(size // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = np.where(left == centre, bins == centre, (bins - left) / np.maximum(centre - left, 1))
    falling = (right - bins) / np.maximum(right - centre, 1)
    matrix = np.where((bins >= left) & (bins <= centre), rising, np.where(bins < right, falling, 0))
    matrix = np.where((bins >= left) & ((bins < right) | (bins == centre)), matrix, 0)
    dtype = dtype_of(call.get("output_datatype", 1))
    return torch.from_numpy(matrix).to(call.device, dtype)
