"""Convolutions of one to three dimensions, transposed, quantised and deformable ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products, wide
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.compiler.torch_ops.windows import Ints, Sliding, extents, pad
from peregrine.errors import Unsupported


def _products(x: Tensor) -> torch.dtype:
    """What is multiplied: a CPU has no fast half kernels."""
    return torch.float32 if x.dtype in HALVES and not x.is_cuda else x.dtype


def _convolve(call: Call, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """In the dtype of its inputs, all alike."""
    if not 3 <= x.dim() <= 5:
        raise Unsupported(f"Conv of {x.dim() - 2} spatial dimensions")
    window = Sliding.read(call, x.shape[2:], w.shape[2:])
    padding = window.begins
    if not window.is_symmetric:
        x = pad(x, window.begins, window.ends)
        padding = (0,) * len(padding)
    group = call.get("group", 1)
    none = (0,) * len(padding)
    strides, dilations = window.strides, window.dilations
    return torch.convolution(x, w, b, strides, padding, dilations, False, none, group)


@operator("ai.onnx.Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    dtype = _products(x)
    with float32_products(x.device, tf32=call.tf32):
        y = _convolve(call, x.to(dtype), w.to(dtype), b.to(dtype) if b is not None else None)
    return y.to(x.dtype)


@operator("ai.onnx.ConvInteger")
def conv_integer(
    call: Call,
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
) -> Tensor:
    y = _convolve(call, _centred(x, x_zero_point, 1), _centred(w, w_zero_point, w.dim()), None)
    return y.round().to(torch.int32)


def _centred(x: Tensor, zero_point: Tensor | None, rank: int) -> Tensor:
    """x - zero point in float64, which holds sums of 8-bit products exactly."""
    if zero_point is None:
        return x.double()
    return x.double() - _leading(zero_point, rank).double()


def _leading(scales: Tensor, rank: int) -> Tensor:
    """A scalar as it is; a vector along the first of `rank` dimensions."""
    return scales if scales.numel() == 1 else scales.reshape(-1, *[1] * (rank - 1))


@operator("ai.onnx.QLinearConv")
def qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    bias = b.double() if b is not None else None
    y = _convolve(call, _centred(x, x_zero_point, 1), _centred(w, w_zero_point, w.dim()), bias)
    channels = _leading(w_scale, w.dim() - 1).double()
    y = torch.round(y * (x_scale.double() * channels / y_scale)) + y_zero_point
    limits = torch.iinfo(y_zero_point.dtype)
    return y.clamp(limits.min, limits.max).to(y_zero_point.dtype)


@operator("ai.onnx.ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """The whole of what the kernel reaches, cropped by the pads, then the bias."""
    rank = x.dim() - 2
    if not 1 <= rank <= 3:
        raise Unsupported(f"ConvTranspose of {rank} spatial dimensions")
    dtype = _products(x)
    strides = tuple(call.get("strides") or (1,) * rank)
    dilations = tuple(call.get("dilations") or (1,) * rank)
    extra = tuple(call.get("output_padding") or (0,) * rank)
    reach = extents(w.shape[2:], dilations)
    begins, ends = _transposed_pads(call, x.shape[2:], strides, extra, reach)
    none, group = (0,) * rank, call.get("group", 1)
    with float32_products(x.device, tf32=call.tf32):
        y = torch.convolution(
            x.to(dtype), w.to(dtype), None, strides, none, dilations, True, none, group
        )
    crops = [more - end for more, end in zip(extra, ends, strict=True)]
    y = pad(y, [-begin for begin in begins], crops)
    if b is not None:
        y = y + b.to(dtype).reshape(-1, *[1] * rank)
    return y.to(x.dtype)


def _transposed_pads(
    call: Call, sizes: torch.Size, strides: Ints, extra: Ints, reach: Ints
) -> tuple[Ints, Ints]:
    """Explicit, or what makes the output the size that is asked for."""
    rank = len(sizes)
    mode = call.get("auto_pad") or "NOTSET"
    wanted = call.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = tuple(call.get("pads") or (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * 2 * rank
        return pads[:rank], pads[rank:]
    if wanted is None:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    begins, ends = [], []
    for size, stride, more, extent, want in zip(
        sizes, strides, extra, reach, wanted[-rank:], strict=True
    ):
        total = stride * (size - 1) + more + extent - want
        half = total // 2
        begins.append(half if mode == "SAME_UPPER" else total - half)
        ends.append(total - begins[-1])
    return tuple(begins), tuple(ends)


@operator("ai.onnx.DeformConv")
def deform_conv(
    call: Call,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Dai et al., Deformable Convolutional Networks (2017): every tap of the kernel reads x at an
    offset of its own, between pixels, zero outside; `mask` weighs it (version 2)."""
    if x.dim() != 4:
        raise Unsupported(f"DeformConv of {x.dim() - 2} spatial dimensions")
    n, c, height, width = x.shape
    window = Sliding.read(call, (height, width), w.shape[2:])
    out_h, out_w = window.outputs((height, width))
    taps, parts, group = math.prod(window.kernel), call.get("offset_group", 1), call.get("group", 1)
    moved = wide(offset).reshape(n, parts, taps, 2, out_h, out_w)
    rows, columns = _tap_positions(window, out_h, out_w, moved)
    grid = torch.stack((_unit(columns, width), _unit(rows, height)), dim=-1)
    sampled = F.grid_sample(
        wide(x).reshape(n * parts, c // parts, height, width),
        grid.reshape(n * parts, taps * out_h, out_w, 2),
        padding_mode="zeros",
        align_corners=True,
    ).reshape(n, parts, c // parts, taps, out_h * out_w)
    if mask is not None:
        sampled = sampled * wide(mask).reshape(n, parts, 1, taps, out_h * out_w)
    kernel = wide(w).reshape(group, w.shape[0] // group, -1)
    with float32_products(x.device, tf32=call.tf32):
        y = torch.matmul(kernel, sampled.reshape(n, group, c // group * taps, -1))
    y = y.reshape(n, w.shape[0], out_h, out_w)
    if b is not None:
        y = y + wide(b).reshape(-1, 1, 1)
    return y.to(x.dtype)


def _tap_positions(window: Sliding, out_h: int, out_w: int, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column in pixels that every tap reads at every position: (N, parts, taps, H, W)."""

    def axis(index: int, positions: int) -> tuple[Tensor, Tensor]:
        steps = torch.arange(positions, device=moved.device) * window.strides[index]
        taps = torch.arange(window.kernel[index], device=moved.device) * window.dilations[index]
        return steps - window.begins[index], taps

    (rows, row_taps), (columns, column_taps) = axis(0, out_h), axis(1, out_w)
    row_taps = row_taps.repeat_interleave(window.kernel[1])
    column_taps = column_taps.repeat(window.kernel[0])
    return (
        moved[:, :, :, 0] + (row_taps[:, None] + rows)[:, :, None],
        moved[:, :, :, 1] + (column_taps[:, None] + columns)[:, None, :],
    )


def _unit(pixels: Tensor, size: int) -> Tensor:
    """Pixels as grid_sample counts them with aligned corners: -1 at the first, 1 at the last."""
    return pixels * (2 / max(size - 1, 1)) - 1


@operator("ai.onnx.Col2Im", host=(1, 2))
def col2im(call: Call, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Sum blocks (N, C * taps, positions) where they lie in the image, tap by tap."""
    sizes, kernel = tuple(image_shape.tolist()), tuple(block_shape.tolist())
    window = Sliding.read(call, sizes, kernel)
    positions = window.outputs(sizes)
    blocks = wide(x).reshape(x.shape[0], -1, *kernel, *positions)
    padded = [
        size + begin + end
        for size, begin, end in zip(sizes, window.begins, window.ends, strict=True)
    ]
    image = blocks.new_zeros(x.shape[0], blocks.shape[1], *padded)
    for tap in torch.cartesian_prod(*map(torch.arange, kernel)).reshape(-1, len(kernel)).tolist():
        lands: list[Any] = [
            slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
            for at, dilation, count, stride in zip(
                tap, window.dilations, positions, window.strides, strict=True
            )
        ]
        image[(..., *lands)] += blocks[(slice(None), slice(None), *tap)]
    crops = [-begin for begin in window.begins], [-end for end in window.ends]
    return pad(image, *crops).to(x.dtype)
