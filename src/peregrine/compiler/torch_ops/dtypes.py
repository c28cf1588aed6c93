"""ONNX's types as torch's, and exact arithmetic on those that torch barely knows.

PyTorch stores uint16, uint32, uint64 and the float8 types but has few functions of them. What
only moves elements works on their bits; sums, products and comparisons of unsigned integers work
on signed ones that are wide enough, or of 64 bits, where two's complement gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
from onnx import TensorProto
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call
from peregrine.errors import Unsupported

FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
_BITS = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    **dict.fromkeys(FLOAT8, torch.uint8),
}
_MODULAR = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
}
_SIGN = -(2**63)


def dtype_of(number: int) -> torch.dtype:
    """torch's dtype of a number of ONNX's `TensorProto.DataType`.

    Raises:
        Unsupported: torch computes on none such (strings, integers of 2 and 4 bits).
    """
    found = _DTYPES.get(number)
    if found is None:
        known = number in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(number) if known else f"number {number}"
        raise Unsupported(f"The native engine has no tensors of type {name}.")
    return found


def is_integer(dtype: torch.dtype) -> bool:
    """Whether it is a signed or unsigned integer; bool is none."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def bits(x: Tensor) -> Tensor:
    """The same elements as a type that every function which moves elements takes."""
    return x.view(_BITS[x.dtype]) if x.dtype in _BITS else x


_P = ParamSpec("_P")
_Mover = Callable[Concatenate[Call, Tensor, _P], Tensor]


def moves(function: _Mover[_P]) -> _Mover[_P]:
    """Give an operator that only moves elements of its first input their bits."""

    @functools.wraps(function)
    def run(call: Call, x: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        return function(call, bits(x), *args, **kwargs).view(x.dtype)

    return run


def modular(x: Tensor) -> Tensor:
    """Integers whose sums, differences and products, cast back to x's dtype, are x's."""
    if x.dtype is torch.uint64:
        return x.view(torch.int64)
    return x.to(_MODULAR[x.dtype]) if x.dtype in _MODULAR else x


def ordered(x: Tensor) -> Tensor:
    """Numbers that compare as x's do, of a type that torch compares."""
    if x.dtype is torch.uint64:
        return x.view(torch.int64) ^ _SIGN
    if x.dtype in FLOAT8:
        return x.float()
    return modular(x)


def unordered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What `ordered` made, as `dtype` again."""
    if dtype is torch.uint64:
        return (x ^ _SIGN).view(torch.uint64)
    return x.to(dtype)


def summable(x: Tensor) -> Tensor:
    """x in the type that its sums are kept in: float32 for halves, wide integers for unsigned."""
    return modular(wide(x))


def real(x: Tensor) -> Tensor:
    """x as a float that mathematical functions take: integers as float64, halves as float32."""
    return wide(x) if x.dtype.is_floating_point and x.dtype not in FLOAT8 else x.double()


def to_integers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats with whole values, saturated to an integer dtype. NaN, which has no integer, is 0."""
    info = torch.iinfo(dtype)
    if info.bits > 16:
        x = x.double()
    inside = torch.nan_to_num(x, nan=0.0).clamp(float(info.min), float(info.max))
    return inside.to(torch.int64).to(dtype)


def integers(x: Tensor) -> tuple[int, ...]:
    """A tensor's values as Python's; on a GPU this waits for them."""
    return tuple(int(value) for value in x.reshape(-1).tolist())


def integer(x: Tensor) -> int:
    """The value of a tensor of one element."""
    (value,) = integers(x)
    return value


def filled(shape: tuple[int, ...], value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor whose elements all have the value of a tensor of one element on the CPU."""
    plain = bits(value.reshape(()))
    return torch.full(shape, plain.item(), dtype=plain.dtype, device=device).view(value.dtype)
