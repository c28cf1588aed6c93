"""Arithmetic of several tensors with broadcasting: sums, products, remainders, powers, bits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.dtypes import (
    bits,
    is_integer,
    modular,
    ordered,
    summable,
    unordered,
)
from peregrine.compiler.torch_ops.registry import Call, operator

Binary = Callable[[Call, Tensor, Tensor], Tensor]


def aligned(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """b as the broadcasting before opset 7 places it: its first dimension at `axis` of a, or its
    last at a's last."""
    axis = call.get("axis")
    if not call.get("broadcast", 0) or axis is None or b.numel() == 1:
        return b
    trailing = a.dim() - axis % a.dim() - b.dim()
    return b.reshape(*b.shape, *[1] * trailing)


def binary(name: str) -> Callable[[Binary], Binary]:
    """Register a function that broadcasts as numpy, with the older broadcasting beside it."""

    def register(function: Binary) -> Binary:
        @operator(f"ai.onnx.{name}")
        @functools.wraps(function)
        def limited(call: Call, a: Tensor, b: Tensor) -> Tensor:
            return function(call, a, aligned(call, a, b))

        return operator(f"ai.onnx.{name}", since=7)(function)

    return register


@binary("Add")
def add(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.add(modular(a), modular(b)).to(a.dtype)


@binary("Sub")
def subtract(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.sub(modular(a), modular(b)).to(a.dtype)


@binary("Mul")
def multiply(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(modular(a), modular(b)).to(a.dtype)


@binary("Div")
def divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are rounded towards zero."""
    if not is_integer(a.dtype):
        return torch.div(a, b)
    if a.dtype is torch.uint64:
        return _divide_unsigned(a, b)[0]
    return torch.div(modular(a), modular(b), rounding_mode="trunc").to(a.dtype)


def _divide_unsigned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of uint64 by signed division of halves (Warren, Hacker's Delight,
    9-3): the quotient of a / 2 by b is at most one too small when doubled, and a divisor of 2**63
    or more goes into a at most once."""
    n, d = a.view(torch.int64), b.view(torch.int64)
    half = (n >> 1) & torch.iinfo(torch.int64).max
    quotient = torch.div(half, torch.where(d < 0, 1, d), rounding_mode="trunc") << 1
    quotient = torch.where(d < 0, 0, quotient)
    rest = n - quotient * d
    more = ordered(rest.view(torch.uint64)) >= ordered(b)
    quotient = quotient + more
    return quotient.view(torch.uint64), (n - quotient * d).view(torch.uint64)


@operator("ai.onnx.Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """With `fmod` the remainder has the sign of a, else that of b."""
    if a.dtype is torch.uint64:
        return _divide_unsigned(a, b)[1]
    if call.get("fmod", 0):
        return torch.fmod(modular(a), modular(b)).to(a.dtype)
    if a.is_floating_point():
        return _float_modulo(wide(a), wide(b)).to(a.dtype)
    return torch.remainder(modular(a), modular(b)).to(a.dtype)


def _float_modulo(a: Tensor, b: Tensor) -> Tensor:
    """Zeros have the sign of b, and so has a finite number's remainder by an infinity."""
    rest = torch.fmod(a, b)
    rest = torch.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
    return torch.where(rest == 0, torch.copysign(rest, b), rest)


@binary("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """In the dtype of the base, whatever the exponent's."""
    if is_integer(a.dtype) and is_integer(b.dtype):
        return torch.pow(modular(a).long(), modular(b).long()).to(a.dtype)
    if is_integer(a.dtype):
        return torch.pow(modular(a).double(), b.double()).to(torch.int64).to(a.dtype)
    base = wide(a)
    return torch.pow(base, b.to(base.dtype)).to(a.dtype)


@operator("ai.onnx.Sum")
def total(call: Call, *tensors: Tensor) -> Tensor:
    return functools.reduce(torch.add, map(summable, tensors)).to(tensors[0].dtype)


@operator("ai.onnx.Mean")
def mean(call: Call, *tensors: Tensor) -> Tensor:
    whole = functools.reduce(torch.add, map(summable, tensors))
    return (whole / len(tensors)).to(tensors[0].dtype)


@operator("ai.onnx.Max")
def maximum(call: Call, *tensors: Tensor) -> Tensor:
    """NaN where any of them is."""
    return unordered(functools.reduce(torch.maximum, map(ordered, tensors)), tensors[0].dtype)


@operator("ai.onnx.Min")
def minimum(call: Call, *tensors: Tensor) -> Tensor:
    """NaN where any of them is."""
    return unordered(functools.reduce(torch.minimum, map(ordered, tensors)), tensors[0].dtype)


@operator("ai.onnx.BitwiseAnd", since=18)
def bitwise_and(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_and(bits(a), bits(b)).view(a.dtype)


@operator("ai.onnx.BitwiseOr", since=18)
def bitwise_or(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_or(bits(a), bits(b)).view(a.dtype)


@operator("ai.onnx.BitwiseXor", since=18)
def bitwise_xor(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_xor(bits(a), bits(b)).view(a.dtype)


@operator("ai.onnx.BitwiseNot", since=18)
def bitwise_not(call: Call, x: Tensor) -> Tensor:
    return torch.bitwise_not(bits(x)).view(x.dtype)


@operator("ai.onnx.BitShift", since=11)
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Shifts by a negative count, or by as many bits as there are, leave only the sign."""
    width = 8 * a.element_size()
    value, count = modular(a), modular(b)
    outside = (count < 0) | (count >= width)
    inside = torch.where(outside, 0, count)
    if call.get("direction") == "LEFT":
        return torch.where(outside, 0, value << inside).to(a.dtype)
    if a.dtype is torch.uint64:
        # The sign's copies that come in from the left are cut off.
        shifted = torch.where(inside == 0, value, (value >> inside) & ~(_top_bits(inside)))
        return torch.where(outside, 0, shifted).view(torch.uint64)
    return torch.where(
        outside, value >> (width - 1) if a.dtype.is_signed else 0, value >> inside
    ).to(a.dtype)


def _top_bits(count: Tensor) -> Tensor:
    """int64 with that many of its highest bits set, from 1 to 63."""
    return torch.iinfo(torch.int64).min >> torch.where(count == 0, 0, count - 1)
