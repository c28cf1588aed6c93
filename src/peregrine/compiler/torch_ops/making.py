"""Tensors made from numbers: constants, ranges, identity matrices, one-hot vectors, triangles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.dtypes import bits, dtype_of, filled, integer, integers, moves
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported


@operator("ai.onnx.Constant")
def constant(call: Call) -> Tensor:
    for name, dtype in (("float", torch.float32), ("int", torch.int64)):
        for attribute in (f"value_{name}", f"value_{name}s"):
            if attribute in call.attributes:
                return torch.tensor(call.attributes[attribute], dtype=dtype, device=call.device)
    value = call.get("value")
    if not isinstance(value, Tensor):
        kinds = ", ".join(sorted(call.attributes))
        raise Unsupported(f"Constant of {kinds}: the native engine takes numbers and tensors.")
    return value.to(call.device)


@operator("ai.onnx.ConstantOfShape", since=9, host=(0,))
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    if value is None:
        return torch.zeros(integers(shape), device=call.device)
    return filled(integers(shape), value, call.device)


@operator("ai.onnx.Range", since=11, host=(0, 1, 2))
def number_range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start + i * delta for i from 0 to before the limit; halves are computed in float32."""
    first, end, step = (wide(x).reshape(()).item() for x in (start, limit, delta))
    count = max(0, math.ceil((end - first) / step))
    if start.dtype.is_floating_point:
        dtype = torch.float64 if start.dtype is torch.float64 else torch.float32
        index = torch.arange(count, dtype=dtype, device=call.device)
        return (first + index * step).to(start.dtype)
    return (first + torch.arange(count, device=call.device) * step).to(start.dtype)


@operator("ai.onnx.EyeLike", since=9)
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on diagonal `k`, above the main one where it is positive."""
    rows, columns = x.shape
    row = torch.arange(rows, device=x.device).unsqueeze(1)
    column = torch.arange(columns, device=x.device)
    ones: Tensor = column - row == call.get("k", 0)
    number = call.get("dtype")
    return ones.to(x.dtype if number is None else dtype_of(number))


@operator("ai.onnx.Trilu", since=14, host=(1,))
@moves
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else integer(k)
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@operator("ai.onnx.OneHot", since=9, host=(1,))
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """`values` are off and on; indices count from the end where negative, and none is on where
    they lie outside."""
    size = int(depth.reshape(()).item())
    index = wide(indices) if indices.is_floating_point() else indices
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + size, index)
    axis = call.get("axis", -1) % (index.dim() + 1)
    shape = [1] * (index.dim() + 1)
    shape[axis] = size
    hot = index.unsqueeze(axis) == torch.arange(size, device=index.device).reshape(shape)
    off, on = bits(values.to(indices.device))
    return torch.where(hot, on, off).view(values.dtype)
