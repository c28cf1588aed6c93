"""Functions of one element: mathematics, rounding, clipping, signs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.dtypes import bits, ordered, real, unordered
from peregrine.compiler.torch_ops.registry import Call, operator

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)

_MATHEMATICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # Halves to the even neighbour, as ONNX has it.
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _register(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(f"ai.onnx.{name}")
    def run(call: Call, x: Tensor) -> Tensor:
        return function(x)


for _name, _function in _MATHEMATICAL.items():
    _register(_name, _function)


@operator("ai.onnx.Erf")
def erf(call: Call, x: Tensor) -> Tensor:
    return torch.erf(real(x)).to(x.dtype)


@operator("ai.onnx.Abs")
def absolute(call: Call, x: Tensor) -> Tensor:
    return x if x.dtype in _UNSIGNED else torch.abs(x)


@operator("ai.onnx.Neg")
def negative(call: Call, x: Tensor) -> Tensor:
    return torch.neg(x)


@operator("ai.onnx.Sign")
def sign(call: Call, x: Tensor) -> Tensor:
    if x.dtype in _UNSIGNED:
        return (bits(x) != 0).to(x.dtype)
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else x.sign()


@operator("ai.onnx.IsNaN")
def is_nan(call: Call, x: Tensor) -> Tensor:
    return torch.isnan(real(x))


@operator("ai.onnx.IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    y = real(x)
    positive = torch.isposinf(y) & bool(call.get("detect_positive", 1))
    negative = torch.isneginf(y) & bool(call.get("detect_negative", 1))
    return positive | negative


@operator("ai.onnx.Clip")
def clip_attributes(call: Call, x: Tensor) -> Tensor:
    """The bounds are float32, beyond float16's greatest by default."""
    low, high = call.get("min"), call.get("max")
    return x if low is None and high is None else torch.clamp(wide(x), low, high).to(x.dtype)


@operator("ai.onnx.Clip", since=11)
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(x, low), high): the upper bound where the bounds cross."""
    y = ordered(x)
    if low is not None:
        y = torch.maximum(y, ordered(low.to(x.device)).reshape(()))
    if high is not None:
        y = torch.minimum(y, ordered(high.to(x.device)).reshape(()))
    return unordered(y, x.dtype)


@operator("ai.onnx.PRelu")
def prelu_channels(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """One slope for all, or one for each channel of dimension 1."""
    if slope.numel() > 1 and slope.dim() == 1 and x.dim() > 1:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return _prelu(x, slope)


@operator("ai.onnx.PRelu", since=7)
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return _prelu(x, slope)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    if x.dtype in _UNSIGNED:
        return x
    return torch.where(x < 0, slope * x, x)
