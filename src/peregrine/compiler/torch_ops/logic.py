"""Comparisons, Boolean algebra, and choices by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.binary import binary
from peregrine.compiler.torch_ops.dtypes import bits, ordered
from peregrine.compiler.torch_ops.registry import Call, operator

_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
_BOOLEAN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}


def _register_comparison(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @binary(name)
    def run(call: Call, a: Tensor, b: Tensor) -> Tensor:
        return function(ordered(a), ordered(b))


def _register_boolean(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @binary(name)
    def run(call: Call, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)


for _name, _function in _COMPARISONS.items():
    _register_comparison(_name, _function)
for _name, _function in _BOOLEAN.items():
    _register_boolean(_name, _function)


@operator("ai.onnx.Not")
def logical_not(call: Call, x: Tensor) -> Tensor:
    return torch.logical_not(x)


@operator("ai.onnx.Where", since=9)
def where(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, bits(x), bits(y)).view(x.dtype)
