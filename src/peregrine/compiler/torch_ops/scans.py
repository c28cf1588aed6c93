"""Along an axis: running sums and products, the largest k, reversed sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import (
    bits,
    integer,
    ordered,
    summable,
    unordered,
)
from peregrine.compiler.torch_ops.registry import Call, operator


def _running(
    call: Call, x: Tensor, axis: int, accumulate: Callable[[Tensor, int], Tensor], start: int
) -> Tensor:
    """`exclusive` leaves out the element itself, `reverse` goes from the end."""
    y = summable(x)
    if call.get("reverse", 0):
        y = y.flip(axis)
    if call.get("exclusive", 0) and y.shape[axis]:
        first = torch.full_like(y.narrow(axis, 0, 1), start)
        y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    y = accumulate(y, axis)
    return (y.flip(axis) if call.get("reverse", 0) else y).to(x.dtype)


@operator("ai.onnx.CumSum", since=11, host=(1,))
def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    return _running(call, x, integer(axis), torch.cumsum, 0)


@operator("ai.onnx.CumProd", since=26, host=(1,))
def cumulative_product(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    return _running(call, x, integer(axis), torch.cumprod, 1)


def _top(x: Tensor, k: int, axis: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The k best values in order, and their indices; of equal ones the first come first."""
    y = ordered(x)
    values, indices = torch.sort(y, dim=axis, descending=largest, stable=True)
    best = values.narrow(axis, 0, k).contiguous()
    return unordered(best, x.dtype), indices.narrow(axis, 0, k)


@operator("ai.onnx.TopK")
def top_k_attribute(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    return _top(x, call.attributes["k"], call.get("axis", -1), largest=True)


@operator("ai.onnx.TopK", since=10, host=(1,))
def top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted also where `sorted` lets the order open."""
    return _top(x, integer(k), call.get("axis", -1), largest=bool(call.get("largest", 1)))


@operator("ai.onnx.ReverseSequence", since=10)
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first `lengths[b]` elements of each sequence b in reverse, the others as they are."""
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    size = x.shape[time]
    step = torch.arange(size, device=x.device)
    length = lengths.reshape(-1, 1)
    index = torch.where(step < length, length - 1 - step, step)  # (batch, time)
    index = index if batch < time else index.T
    shape = [x.shape[i] if i in (time, batch) else 1 for i in range(x.dim())]
    plain = bits(x)
    return plain.gather(time, index.reshape(shape).expand(x.shape)).view(x.dtype)
