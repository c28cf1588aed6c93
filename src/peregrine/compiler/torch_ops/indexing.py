"""Elements by their indices: gathered and scattered. Negative indices count from the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import bits, moves, ordered, summable, unordered
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def positive(indices: Tensor, size: int) -> Tensor:
    """int64, from 0."""
    index = indices.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("ai.onnx.Gather")
@moves
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x along an axis, whose place the dimensions of the indices take."""
    axis = call.get("axis", 0) % x.dim()
    index = positive(indices, x.shape[axis])
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@operator("ai.onnx.GatherElements", since=11)
@moves
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return x.gather(axis, positive(indices, x.shape[axis]))


def _linear(shape: tuple[int, ...], indices: Tensor) -> Tensor:
    """Tuples of indices into the first dimensions of a shape as indices into these flattened."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i in range(indices.shape[-1]):
        place = place * shape[i] + positive(indices[..., i], shape[i])
    return place


@operator("ai.onnx.GatherND", since=11)
@moves
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x at tuples of indices; the first `batch_dims` dimensions are gone through."""
    batch, depth = call.get("batch_dims", 0), indices.shape[-1]
    rows = math.prod(x.shape[:batch])
    inner = x.shape[batch + depth :]
    each = x.shape[batch : batch + depth]
    place = _linear(tuple(each), indices).reshape(rows, -1)
    start = torch.arange(rows, device=x.device).unsqueeze(1) * math.prod(each)
    flat = x.reshape([rows * math.prod(each), *inner])
    taken = flat.index_select(0, (place + start).reshape(-1))
    return taken.reshape([*indices.shape[:-1], *inner])


def _scattered(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """x with updates written or reduced into it; index and updates have one shape."""
    if reduction == "none":
        return bits(x).scatter(axis, index, bits(updates)).view(x.dtype)
    if reduction not in _REDUCTIONS:
        raise Unsupported(f"The reduction {reduction!r} of a scatter is not known.")
    if reduction in ("add", "mul"):
        y = summable(x).scatter_reduce(axis, index, summable(updates), _REDUCTIONS[reduction])
        return y.to(x.dtype)
    y = ordered(x).scatter_reduce(axis, index, ordered(updates), _REDUCTIONS[reduction])
    return unordered(y, x.dtype)


@operator("ai.onnx.Scatter", since=9)
@operator("ai.onnx.ScatterElements", since=11)
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    index = positive(indices, x.shape[axis])
    return _scattered(x, axis, index, updates, call.get("reduction", "none"))


@operator("ai.onnx.ScatterND", since=11)
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with slices at tuples of indices replaced by, or reduced with, the updates."""
    depth = indices.shape[-1]
    width = math.prod(x.shape[depth:])
    rows = math.prod(x.shape[:depth])
    place = _linear(tuple(x.shape), indices).reshape(-1, 1)
    index = place.expand(place.shape[0], width)
    flat = x.reshape(rows, width)
    y = _scattered(flat, 0, index, updates.reshape(index.shape), call.get("reduction", "none"))
    return y.reshape(x.shape)


@operator("ai.onnx.TensorScatter", since=24)
def tensor_scatter(
    call: Call, cache: Tensor, update: Tensor, write_indices: Tensor | None = None
) -> Tensor:
    """A cache of keys or values with new ones written from each sample's index on."""
    axis = call.get("axis", -2) % cache.dim()
    place = torch.arange(update.shape[axis], device=cache.device)
    place = place.reshape([-1 if i == axis else 1 for i in range(cache.dim())])
    if write_indices is not None:
        place = place + write_indices.reshape(-1, *[1] * (cache.dim() - 1))
    if call.get("mode", "linear") == "circular":
        place = place % cache.shape[axis]
    return _scattered(cache, axis, place.expand(update.shape), update, "none")
