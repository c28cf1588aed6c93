"""Shapes: views of the same elements, repetitions, and blocks of space as channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import integers, moves
from peregrine.compiler.torch_ops.registry import Call, operator


def _reshaped(x: Tensor, shape: Sequence[int], *, allow_zero: bool) -> Tensor:
    """0 keeps the size of its place unless `allow_zero`; torch infers -1, but not beside zeros."""
    sizes = [x.shape[i] if size == 0 and not allow_zero else size for i, size in enumerate(shape)]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = x.numel() // known if known else 0
    return x.reshape(sizes)


@operator("ai.onnx.Reshape")
def reshape_attribute(call: Call, x: Tensor) -> Tensor:
    return _reshaped(x, call.get("shape", ()), allow_zero=False)


@operator("ai.onnx.Reshape", since=5, host=(1,))
def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return _reshaped(x, integers(shape), allow_zero=bool(call.get("allowzero", 0)))


@operator("ai.onnx.Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeezed(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """Without axes, all of size 1."""
    if axes is None:
        return x.squeeze()
    wrong = [axis for axis in axes if x.shape[axis] != 1]
    if wrong:
        raise ValueError(f"cannot squeeze axes {wrong} of shape {tuple(x.shape)}")
    return x.squeeze(tuple(axes)) if axes else x


@operator("ai.onnx.Squeeze")
def squeeze_attribute(call: Call, x: Tensor) -> Tensor:
    return _squeezed(x, call.get("axes"))


@operator("ai.onnx.Squeeze", since=13, host=(1,))
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _squeezed(x, None if axes is None else integers(axes))


def _unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Axes count in the output."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("ai.onnx.Unsqueeze")
def unsqueeze_attribute(call: Call, x: Tensor) -> Tensor:
    return _unsqueezed(x, call.attributes["axes"])


@operator("ai.onnx.Unsqueeze", since=13, host=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Tensor) -> Tensor:
    return _unsqueezed(x, integers(axes))


@operator("ai.onnx.Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(*(call.get("perm") or reversed(range(x.dim()))))


@operator("ai.onnx.Identity")
def identity(call: Call, x: Tensor) -> Tensor:
    return x


@operator("ai.onnx.Expand", since=8, host=(1,))
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcasting goes both ways: where the shape has 1, x keeps its size."""
    sizes: torch.Size = torch.broadcast_shapes(x.shape, integers(shape))  # type: ignore[no-untyped-call]
    return x.expand(sizes)


@operator("ai.onnx.Tile", host=(1, 2))
@moves
def tile_axis(call: Call, x: Tensor, tiles: Tensor, axis: Tensor) -> Tensor:
    repeats = [1] * x.dim()
    repeats[integers(axis)[0]] = integers(tiles)[0]
    return x.repeat(repeats)


@operator("ai.onnx.Tile", since=6, host=(1,))
@moves
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


@operator("ai.onnx.Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """From `start` up to `end`, both counted as a slice of Python's counts. Each size is filled
    in where it is needed: a copy from the CPU would keep a CUDA graph from being captured."""
    sizes = tuple(x.shape)[slice(call.get("start"), call.get("end"))]
    made = torch.empty(len(sizes), dtype=torch.int64, device=call.device)
    for place, size in enumerate(sizes):
        made[place : place + 1].fill_(size)
    return made


@operator("ai.onnx.Size")
def size(call: Call, x: Tensor) -> Tensor:
    return torch.full((), x.numel(), dtype=torch.int64, device=call.device)


@operator("ai.onnx.DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels are block rows, block columns, depth (DCR), or depth first (CRD)."""
    n, c, h, w = x.shape
    block = call.attributes["blocksize"]
    depth = c // block**2
    if call.get("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, h * block, w * block)


@operator("ai.onnx.SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    block = call.attributes["blocksize"]
    y = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return y.permute(*order).reshape(n, c * block**2, h // block, w // block)
