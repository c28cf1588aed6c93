"""Cast, CastLike and BitCast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import FLOAT8, dtype_of
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported

_FNUZ = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_INFINITIES_SATURATE_SINCE = 24
"""Before this opset an infinity became NaN in the types that have no infinity and one zero."""


def cast_to(x: Tensor, dtype: torch.dtype, call: Call) -> Tensor:
    """x in `dtype`, as Cast's attributes and opset say.

    Floats lose their fraction in integers; integers wrap around in narrower ones. What is beyond a
    float8 saturates, or becomes infinite or NaN.
    """
    if dtype is x.dtype:
        return x
    if dtype is torch.bool:
        return (x.float() if x.dtype in FLOAT8 else x) != 0
    if x.is_complex() != dtype.is_complex and x.is_complex():
        raise Unsupported("The native engine casts no complex numbers to real ones.")
    if dtype in FLOAT8:
        return _to_float8(x, dtype, call)
    if x.dtype in FLOAT8:
        x = x.float()
    if x.is_floating_point() and not (dtype.is_floating_point or dtype.is_complex):
        # By way of int64, as a C cast of negative numbers to unsigned types goes.
        return x.to(dtype) if dtype is torch.uint64 else x.to(torch.int64).to(dtype)
    return x.to(dtype)


def _to_float8(x: Tensor, dtype: torch.dtype, call: Call) -> Tensor:
    value = x.float()
    if dtype is torch.float8_e8m0fnu:
        return _to_power_of_two(value, call)
    if not call.get("saturate", 1):
        return _overflowing(value, dtype)
    greatest = torch.finfo(dtype).max
    inside = torch.clamp(value, -greatest, greatest)
    if dtype in _FNUZ and call.opset < _INFINITIES_SATURATE_SINCE:
        inside = torch.where(torch.isinf(value), torch.nan, inside)
    return inside.to(dtype)


def _overflowing(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounds beyond the greatest number is an infinity in e5m2 and NaN in the others."""
    info = torch.finfo(dtype)
    # The spacing of the greatest numbers: those from half of it above the greatest round up.
    spacing = info.eps * 2.0 ** math.floor(math.log2(info.max))
    beyond = value.abs() >= info.max + spacing / 2
    outside = torch.copysign(torch.full_like(value, torch.inf), value)
    if dtype is not torch.float8_e5m2:
        outside = torch.full_like(value, torch.nan)
    inside = torch.clamp(value, -info.max, info.max).to(dtype)
    return torch.where(beyond, outside.to(dtype).view(torch.uint8), inside.view(torch.uint8)).view(
        dtype
    )


def _to_power_of_two(value: Tensor, call: Call) -> Tensor:
    """float8e8m0: the exponent alone, rounded as `round_mode` says; a negative number's is that
    of its magnitude."""
    mantissa, exponent = torch.frexp(value.abs())  # The mantissa lies in [0.5, 1).
    mode = call.get("round_mode", "up")
    if mode == "down":
        upwards = torch.zeros_like(value, dtype=torch.bool)
    else:
        upwards = mantissa > 0.5 if mode == "up" else mantissa >= 0.75
    stored = exponent - 1 + upwards.to(exponent.dtype) + 127
    saturates = bool(call.get("saturate", 1))
    not_a_number = 255
    low, high = (0, 254) if saturates else (not_a_number, not_a_number)
    stored = torch.where((stored < 0) | (value == 0), low, stored)
    stored = torch.where((stored > 254) | torch.isinf(value), high, stored)
    stored = torch.where(torch.isnan(value), not_a_number, stored)
    return stored.to(torch.uint8).view(torch.float8_e8m0fnu)


@operator("ai.onnx.Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return cast_to(x, dtype_of(call.attributes["to"]), call)


@operator("ai.onnx.CastLike", since=15)
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return cast_to(x, like.dtype, call)


@operator("ai.onnx.BitCast", since=26)
def bit_cast(call: Call, x: Tensor) -> Tensor:
    dtype = dtype_of(call.attributes["to"])
    if dtype.itemsize != x.element_size():
        raise Unsupported(f"BitCast of {x.dtype} to {dtype}, which has another width.")
    return x.view(dtype)
