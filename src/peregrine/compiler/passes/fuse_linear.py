"""Gemm and MatMul with constant weights, with bias, residual sum and activation."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from peregrine.compiler.operators import Fused
from peregrine.compiler.passes.affine import channel_constant
from peregrine.compiler.passes.fuse_conv import follow
from peregrine.compiler.passes.rewriting import (
    FLOATS,
    Fusion,
    Weights,
    attributes_of,
    constant,
    exact,
    input_at,
    is_op,
    shape_of,
    write,
)
from peregrine.types import Array


class FuseLinear(Fusion):
    """Each product with a constant matrix on the right becomes a `peregrine.Linear`.

    A Gemm's alpha and beta are multiplied into its weights and its constant bias; a third input
    that is no bias is the residual where it has the output's shape, and else the Gemm stays.
    What follows is taken in as by a convolution."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        product = _gemm(node) or _matmul(node)
        if product is None:
            return False
        tail = follow(node, channel_axis=-1, residual=product.residual)
        bias = product.bias
        if tail.bias is not None:
            bias = tail.bias if bias is None else bias + tail.bias
        dtype = node.outputs[0].dtype
        assert dtype is not None
        write(
            weights,
            Fused.LINEAR,
            [
                node.inputs[0],
                _normalised(node, product, weights),
                None if bias is None else weights.add(bias, f"{node.name}_bias", dtype),
                tail.residual,
            ],
            tail.activation.attributes(),
            tail.nodes,
        )
        return True


@dataclass(frozen=True, slots=True)
class _Product:
    """alpha * X @ W + bias + residual."""

    alpha: float = 1.0
    transposed: bool = False
    """Whether W is (N, K) already."""
    bias: Array | None = None
    residual: ir.Value | None = None


def _matmul(node: ir.Node) -> _Product | None:
    if not is_op(node, "MatMul") or not _has_matrix(node):
        return None
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) < 1:
        return None
    return _Product()


def _gemm(node: ir.Node) -> _Product | None:
    if not is_op(node, "Gemm") or not _has_matrix(node):
        return None
    attributes = attributes_of(node)
    if attributes.get("transA", 0):
        return None
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    transposed = bool(attributes.get("transB", 0))
    third, output = input_at(node, 2), node.outputs[0]
    if third is None or beta == 0:
        return _Product(alpha, transposed)
    bias = channel_constant(third, output, channel_axis=-1)
    if bias is not None:
        return _Product(alpha, transposed, bias=beta * bias)
    shape = shape_of(output)
    if beta == 1 and shape is not None and shape_of(third) == shape:
        return _Product(alpha, transposed, residual=third)
    return None


def _has_matrix(node: ir.Node) -> bool:
    """Whether its second input is a constant matrix of a floating type."""
    array = constant(node.inputs[1])
    return array is not None and array.ndim == 2 and node.outputs[0].dtype in FLOATS


def _normalised(node: ir.Node, product: _Product, weights: Weights) -> ir.Value:
    """W as (N, K), with alpha in it."""
    value = node.inputs[1]
    assert value is not None
    if product.alpha != 1:
        array, dtype = exact(value), value.dtype
        assert array is not None
        assert dtype is not None
        array = product.alpha * (array if product.transposed else array.T)
        return weights.add(array, f"{value.name}_scaled", dtype)
    return value if product.transposed else weights.transposed(value)
