"""Quantisation to integers and float8 and back, and products of quantised tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.casts import cast_to
from peregrine.compiler.torch_ops.dtypes import FLOAT8, dtype_of, to_integers
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported


def _broadcastable(parameter: Tensor, x: Tensor, call: Call) -> Tensor:
    """A scale or zero point for all, for each slice of an axis, or for each block of one."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = call.get("axis", 1) % x.dim()
    block = call.get("block_size", 0)
    if block:
        repeated = parameter.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.dim())])


def _float(x: Tensor) -> Tensor:
    """float32, and float64 as it is."""
    return x if x.dtype is torch.float64 else x.float()


@operator("ai.onnx.QuantizeLinear", since=10)
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """saturate(round(x / scale) + zero), halves rounded to the even neighbour. The quotient is
    rounded to the dtype of the scale, or to `precision`."""
    number = call.get("output_dtype", 0)
    dtype = zero.dtype if zero is not None else dtype_of(number) if number else torch.uint8
    precision = call.get("precision", 0)
    quotient = _float(x) / _broadcastable(_float(scale), x, call)
    rounded = dtype_of(precision) if precision else scale.dtype
    quotient = _float(quotient.to(rounded if rounded not in FLOAT8 else torch.float32))
    if dtype in FLOAT8:
        return cast_to(quotient, dtype, call)
    y = torch.round(quotient)
    if zero is not None:
        y = y + _broadcastable(_float(zero), x, call)
    return to_integers(y, dtype)


@operator("ai.onnx.DequantizeLinear", since=10)
def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) * scale, in the dtype of the scale or in `output_dtype`."""
    number = call.get("output_dtype", 0)
    dtype = dtype_of(number) if number else scale.dtype
    # int32 less its zero point, which must be 0, is exact in float64 alone.
    value = x.double() if x.dtype is torch.int32 else x.float()
    if zero is not None:
        value = value - _broadcastable(zero.to(value.dtype), x, call)
    return (_float(value) * _broadcastable(_float(scale), x, call)).to(dtype)


@operator("ai.onnx.DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 of a range that contains 0. The scale of zeros alone, which have no range, is 1."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1, scale)
    zero = torch.round(torch.clamp(-low / scale, 0, 255))
    return to_integers(torch.round(x / scale) + zero, torch.uint8), scale, zero.to(torch.uint8)


def _for_columns(parameter: Tensor, axis: int) -> Tensor:
    """A scale or zero point of each row (axis -2) or each column (axis -1) of matrices."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.unsqueeze(-1) if axis == -2 and parameter.dim() == 1 else parameter


@operator("ai.onnx.QLinearMatMul", since=10)
def qlinear_matmul(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """Quantised A @ B; the sums of products are exact, the scales multiplied in float64."""
    if a.dtype in FLOAT8 or b.dtype in FLOAT8:
        raise Unsupported("QLinearMatMul of float8: the native engine takes 8-bit integers.")
    left = a.double() - _for_columns(a_zero, -2).double()
    right = b.double() - _for_columns(b_zero, -1).double()
    factor = _for_columns(a_scale.double(), -2) * _for_columns(b_scale.double(), -1)
    y = (left @ right) * (factor / _for_columns(y_scale.double(), -2))
    return to_integers(torch.round(y) + _for_columns(y_zero, -2).double(), y_zero.dtype)
