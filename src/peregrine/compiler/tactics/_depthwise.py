"""What the tactics of depthwise convolutions share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _nhwc

if TYPE_CHECKING:
    import torch

_TAPS = 49
"""Windows are unrolled: more would not fit into the instruction cache."""
L2 = 4.0e12
"""Bytes a second that all multiprocessors of an H200 load from their L2 cache."""


def problem(operation: Operation, z: TensorType | None) -> str:
    """Why the depthwise convolution of X and the input behind it, or what is added to it, can't be
    taken; empty where it can."""
    x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
    found = _nhwc.first(
        _nhwc.size_problem(x, "X"),
        _nhwc.size_problem(y, "Y"),
        _nhwc.size_problem(z, "Z"),
        _nhwc.dtype_problem(y, _nhwc.FLOATS, "Y"),
        _nhwc.dtype_problem(z, _nhwc.FLOATS, "Z"),
    )
    if found:
        return found
    channels = _nhwc.shape(x)[1]
    if _nhwc.shape(w)[:2] != (channels, 1):
        return "it takes one filter a channel"
    window = Window.read(operation.attributes)
    if math.prod(window.kernel) > _TAPS:
        return f"its window has more than {_TAPS} elements"
    return ""


def pack_taps(weights: torch.Tensor) -> torch.Tensor:
    """(C, 1, KH, KW) as (KH * KW, C)."""
    return weights.reshape(weights.shape[0], -1).t().contiguous()


def pack(inputs: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The inputs of a depthwise convolution alone, its taps packed, its bias in float32."""
    packed = list(inputs)
    assert packed[1] is not None
    packed[1] = pack_taps(packed[1])
    if len(packed) > 2 and packed[2] is not None:
        packed[2] = packed[2].float().contiguous()
    return packed


def window_arguments(operation: Operation) -> dict[str, int]:
    """Constants of the kernels that take any window."""
    window = Window.read(operation.attributes)
    return {
        "STRIDE_H": window.strides[0],
        "STRIDE_W": window.strides[1],
        "TOP": window.pads[0],
        "LEFT": window.pads[1],
        "KH": window.kernel[0],
        "KW": window.kernel[1],
        "DILATION_H": window.dilations[0],
        "DILATION_W": window.dilations[1],
    }


def sizes(operation: Operation) -> dict[str, int]:
    """Arguments N, C, H, W, OH, OW."""
    n, c, h, w = _nhwc.shape(operation.inputs[0])
    _, _, oh, ow = _nhwc.shape(operation.outputs[0])
    return {"N": n, "C": c, "H": h, "W": w, "OH": oh, "OW": ow}


def programs(operation: Operation, block_m: int, tile_w: int) -> int:
    """As `kernels.pixels.pixel_programs`, which needs Triton to be imported."""
    n, _, oh, ow = _nhwc.shape(operation.outputs[0])
    if tile_w == 0:
        return math.ceil(n * oh * ow / block_m)
    return n * math.ceil(oh / (block_m // tile_w)) * math.ceil(ow / tile_w)


def vertical_reads(operation: Operation, block_m: int, tile_w: int) -> float:
    """How often an input element is asked from the L2 cache by different programs."""
    window = Window.read(operation.attributes)
    _, _, _, ow = _nhwc.shape(operation.outputs[0])
    rows = block_m // tile_w if tile_w else max(1, block_m / ow)
    columns = tile_w or min(block_m, ow)
    down = (rows - 1) * window.strides[0] + window.kernel[0]
    across = (columns - 1) * window.strides[1] + window.kernel[1]
    return max(1.0, down * across / (rows * columns * math.prod(window.strides)))
