"""Fourier transforms, windows and mel filters against numpy and ONNX's reference."""

from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnx, engine, generator


def signal(*shape: int) -> np.ndarray:
    return generator().normal(size=shape).astype(np.float32)


def complex_of(x: np.ndarray) -> np.ndarray:
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


def parts(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], -1).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("length", [None, 6, 16])
@pytest.mark.parametrize("opset", [17, 20])
def test_dft(width: int, axis: int, length: int | None, opset: int) -> None:
    x = signal(2, 9, 10, width)
    inputs: list[np.ndarray | None] = [x, None if length is None else np.array(length)]
    attributes: dict[str, Any] = {}
    if opset < 20:
        attributes["axis"] = axis
    else:
        inputs.append(np.array(axis))
    full = np.fft.fft(complex_of(x), length, axis)
    assert_same(engine("DFT", inputs, opset=opset, **attributes), [parts(full)])
    half = full.take(range(full.shape[axis] // 2 + 1), axis)
    assert_same(engine("DFT", inputs, opset=opset, onesided=1, **attributes), [parts(half)])
    back = np.fft.ifft(complex_of(x), length, axis)
    assert_same(engine("DFT", inputs, opset=opset, inverse=1, **attributes), [parts(back)])


@pytest.mark.parametrize("length", [8, 9])
def test_the_inverse_of_a_onesided_dft(length: int) -> None:
    x = signal(3, length, 1)
    sizes = np.array(length)
    (bins,) = engine("DFT", [x, sizes], opset=20, onesided=1)
    assert_same(engine("DFT", [bins, sizes], opset=20, onesided=1, inverse=1), [x])


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("width", [1, 2])
def test_stft(onesided: int, windowed: bool, width: int) -> None:
    x = signal(2, 50, width)
    window = np.hanning(11).astype(np.float32) if windowed else None
    inputs = [x, np.array(7), window, None if windowed else np.array(11)]
    starts = range(0, 50 - 11 + 1, 7)
    frames = np.stack([complex_of(x)[:, start : start + 11] for start in starts], 1)
    bins = np.fft.fft(frames if window is None else frames * window)
    wanted = parts(bins[..., :6] if onesided else bins)
    assert_same(engine("STFT", inputs, onesided=onesided), [wanted])


@pytest.mark.parametrize("op_type", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("size", [2, 9, 16])
@pytest.mark.parametrize("dtype", [1, 10, 11])
def test_windows(op_type: str, periodic: int, size: int, dtype: int) -> None:
    (expected,) = by_onnx(op_type, [np.array(size)], periodic=periodic, output_datatype=11)
    (result,) = engine(op_type, [np.array(size)], periodic=periodic, output_datatype=dtype)
    assert result.dtype == {1: np.float32, 10: np.float16, 11: np.float64}[dtype]
    # The reference rounds the constants of a Hamming window to seven digits.
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-4 if dtype == 10 else 1e-6)


def test_a_window_of_one_point() -> None:
    assert engine("HannWindow", [np.array(1)], periodic=0)[0].shape == (1,)


@pytest.mark.parametrize(
    ("bins", "length", "rate"), [(8, 16, 8192), (20, 512, 16000), (40, 64, 8000)]
)
def test_mel_weight_matrix(bins: int, length: int, rate: int) -> None:
    edges = np.array(20.0, np.float32), np.array(rate / 2, np.float32)
    inputs = [np.array(bins), np.array(length), np.array(rate), *edges]
    expected = by_onnx("MelWeightMatrix", inputs)
    assert_same(engine("MelWeightMatrix", inputs), expected)
