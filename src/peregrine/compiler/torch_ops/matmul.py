"""Matrix products: MatMul, Gemm, Einsum, those of integers, and the determinant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products, wide
from peregrine.compiler.torch_ops.dtypes import is_integer, modular
from peregrine.compiler.torch_ops.registry import Call, operator


def product(a: Tensor, b: Tensor, call: Call) -> Tensor:
    """a @ b in a's dtype. Halves are summed in float32: by the GPU's own products, and on a CPU
    by float32's."""
    if is_integer(a.dtype):
        return _integer_product(modular(a), modular(b)).to(a.dtype)
    if a.dtype in HALVES and not a.is_cuda:
        return (wide(a) @ wide(b)).to(a.dtype)
    with float32_products(a.device, tf32=call.tf32):
        return a @ b


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """CUDA has no product of integer matrices: there it is a sum of products."""
    if not a.is_cuda:
        return a @ b
    if b.dim() == 1:
        return (a * b).sum(-1)
    if a.dim() == 1:
        return (a.unsqueeze(-1) * b).sum(-2)
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


@operator("ai.onnx.MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return product(a, b, call)


@operator("ai.onnx.MatMulInteger", since=10)
def matmul_integer(
    call: Call,
    a: Tensor,
    b: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
) -> Tensor:
    """int32, with zero points for a's rows and b's columns. float64 holds the sums exactly."""
    left, right = a.double(), b.double()
    if a_zero is not None:
        left = left - (a_zero.unsqueeze(-1) if a_zero.numel() > 1 else a_zero.reshape(())).double()
    if b_zero is not None:
        right = right - b_zero.reshape(() if b_zero.numel() == 1 else b_zero.shape).double()
    return (left @ right).to(torch.int64).to(torch.int32)


@operator("ai.onnx.Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * A' @ B' + beta * C, where ' may transpose."""
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if is_integer(a.dtype):
        y = _integer_product(modular(a), modular(b)) * int(alpha)
        return (y if c is None else y + modular(c) * int(beta)).to(a.dtype)
    if not a.is_cuda:
        dtype, a, b, c = a.dtype, wide(a), wide(b), None if c is None else wide(c)
        return _gemm(a, b, c, alpha, beta).to(dtype)
    with float32_products(a.device, tf32=call.tf32):
        return _gemm(a, b, c, alpha, beta)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    if c is None or beta == 0:
        return a @ b if alpha == 1 else (a @ b) * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@operator("ai.onnx.Einsum", since=12)
def einsum(call: Call, *operands: Tensor) -> Tensor:
    dtype = operands[0].dtype
    equation = call.attributes["equation"].replace(" ", "")
    values: Sequence[Tensor] = [modular(wide(x)) for x in operands]
    if is_integer(dtype) and operands[0].is_cuda:
        values = [x.cpu() for x in values]  # Its products of integers are a CPU's alone.
    with float32_products(operands[0].device, tf32=call.tf32):
        y = torch.einsum(equation, *values)
    return y.to(operands[0].device).to(dtype)


@operator("ai.onnx.Det", since=11)
def determinant(call: Call, x: Tensor) -> Tensor:
    y: Tensor = torch.linalg.det(wide(x))
    return y.to(x.dtype)
