"""What is there: indices of what is not zero, selected slices, distinct values. The sizes of the
outputs depend on values, so that on a GPU each of them waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import bits, ordered
from peregrine.compiler.torch_ops.registry import Call, operator


@operator("ai.onnx.NonZero", since=9)
def non_zero(call: Call, x: Tensor) -> Tensor:
    """(rank, count), int64; a scalar counts as one dimension."""
    values = x if x.is_floating_point() or x.dtype is torch.bool else bits(x)
    return torch.nonzero(values.reshape(1) if x.dim() == 0 else values).T


@operator("ai.onnx.Compress", since=9)
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """The condition may be shorter than the axis. Without an axis x is flattened."""
    axis = call.get("axis")
    y = bits(x).reshape(-1) if axis is None else bits(x)
    index = torch.nonzero(condition).reshape(-1)
    return y.index_select(axis or 0, index).view(x.dtype)


@operator("ai.onnx.Unique", since=11)
def unique(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct values (or slices along an axis), where each is first, which one each element is,
    and how often each comes; sorted, or in the order in which they first come."""
    axis = call.get("axis")
    flat = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    _, inverse, counts = torch.unique(
        ordered(flat), return_inverse=True, return_counts=True, dim=along
    )
    place = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, place, "amin")
    if not call.get("sorted", 1):
        order = torch.argsort(first)
        first, counts = first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    values = bits(flat).index_select(along, first).view(x.dtype)
    return values, first, inverse, counts
