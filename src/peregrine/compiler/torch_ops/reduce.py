"""Reductions over axes: sums, products, means, norms, extremes, and where these lie.

The axes are an attribute at first and an input since opset 18 (ReduceSum since 13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import (
    integers,
    is_integer,
    ordered,
    real,
    summable,
    unordered,
)
from peregrine.compiler.torch_ops.registry import Call, operator

Axes: TypeAlias = tuple[int, ...]
Reduction: TypeAlias = Callable[[Tensor, Axes], Tensor]
"""Reduces the given axes, at least one, and keeps them with size 1. In x's dtype."""


def _product(x: Tensor, axes: Axes) -> Tensor:
    y = summable(x)
    for axis in axes:
        y = y.prod(axis, keepdim=True)
    return y.to(x.dtype)


def _sum(x: Tensor, axes: Axes) -> Tensor:
    return summable(x).sum(axes, keepdim=True).to(x.dtype)


def _mean(x: Tensor, axes: Axes) -> Tensor:
    """Of integers, rounded towards zero."""
    if not is_integer(x.dtype):
        return summable(x).mean(axes, keepdim=True).to(x.dtype)
    y = summable(x).sum(axes, keepdim=True)
    count = max(1, x.numel() // max(1, y.numel()))
    return torch.div(y, count, rounding_mode="trunc").to(x.dtype)


def _sum_of_magnitudes(x: Tensor, axes: Axes) -> Tensor:
    return summable(x).abs().sum(axes, keepdim=True).to(x.dtype)


def _sum_of_squares(x: Tensor, axes: Axes) -> Tensor:
    return summable(x).square().sum(axes, keepdim=True).to(x.dtype)


def _euclidean(x: Tensor, axes: Axes) -> Tensor:
    return real(x).square().sum(axes, keepdim=True).sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: Axes) -> Tensor:
    return real(x).sum(axes, keepdim=True).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: Axes) -> Tensor:
    return torch.logsumexp(real(x), axes, keepdim=True).to(x.dtype)


def _largest(x: Tensor, axes: Axes) -> Tensor:
    return _extreme(x, axes, largest=True)


def _smallest(x: Tensor, axes: Axes) -> Tensor:
    return _extreme(x, axes, largest=False)


def _extreme(x: Tensor, axes: Axes, *, largest: bool) -> Tensor:
    """Of nothing it is the worst value that the dtype has."""
    if any(x.shape[axis] == 0 for axis in axes):
        shape = [1 if i in axes else size for i, size in enumerate(x.shape)]
        return torch.full(shape, _worst(x.dtype, largest=largest), dtype=x.dtype, device=x.device)
    y = ordered(x)
    return unordered(y.amax(axes, keepdim=True) if largest else y.amin(axes, keepdim=True), x.dtype)


def _worst(dtype: torch.dtype, *, largest: bool) -> float | int | bool:
    if dtype is torch.bool:
        return not largest
    if is_integer(dtype):
        info = torch.iinfo(dtype)
        return info.min if largest else info.max
    return -torch.inf if largest else torch.inf


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": _sum_of_magnitudes,
    "ReduceL2": _euclidean,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _largest,
    "ReduceMean": _mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of_squares,
}


def _reduce(call: Call, reduction: Reduction, x: Tensor, axes: Axes) -> Tensor:
    """No axes mean all; with `noop_with_empty_axes` each element is reduced on its own."""
    if x.dim() == 0 or (not axes and call.get("noop_with_empty_axes", 0)):
        return reduction(x.unsqueeze(-1), (x.dim(),)).squeeze(-1)
    over = tuple(sorted({axis % x.dim() for axis in axes})) or tuple(range(x.dim()))
    y = reduction(x, over)
    return y if call.get("keepdims", 1) else y.squeeze(over)


def _register(name: str, reduction: Reduction, axes_are_input_since: int) -> None:
    @operator(f"ai.onnx.{name}")
    def with_attribute(call: Call, x: Tensor) -> Tensor:
        return _reduce(call, reduction, x, tuple(call.get("axes", ())))

    @operator(f"ai.onnx.{name}", since=axes_are_input_since, host=(1,))
    def with_input(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        return _reduce(call, reduction, x, () if axes is None else integers(axes))


for _name, _reduction in _REDUCTIONS.items():
    _register(_name, _reduction, 13 if _name == "ReduceSum" else 18)


def _position(call: Call, x: Tensor, *, largest: bool) -> Tensor:
    """Where the extreme lies, or the first NaN: the first such index, or the last with
    `select_last_index`. torch's own functions leave open which of equals they tell."""
    y = ordered(x).unsqueeze(-1) if x.dim() == 0 else ordered(x)
    axis = call.get("axis", 0) % y.dim()
    extreme = y.amax(axis, keepdim=True) if largest else y.amin(axis, keepdim=True)
    found = (y == extreme) | torch.isnan(y)
    size = y.shape[axis]
    shape = [size if i == axis else 1 for i in range(y.dim())]
    index = torch.arange(size, device=y.device).reshape(shape)
    if call.get("select_last_index", 0):
        index = torch.where(found, index, -1).amax(axis, keepdim=True)
    else:
        index = torch.where(found, index, size).amin(axis, keepdim=True)
    if x.dim() == 0:
        return index.squeeze(-1)
    return index if call.get("keepdims", 1) else index.squeeze(axis)


@operator("ai.onnx.ArgMax")
def arg_max(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, largest=True)


@operator("ai.onnx.ArgMin")
def arg_min(call: Call, x: Tensor) -> Tensor:
    return _position(call, x, largest=False)
