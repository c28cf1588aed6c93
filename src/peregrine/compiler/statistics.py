"""Which nodes of a graph stay float32 in fp16 and bf16: variances and norms.

An operator such as LayerNormalization keeps its sums in float32 within its kernel. Written out,
as exporters before opset 17 and others than PyTorch's do, its sum of squares is a tensor: one of
512 numbers of 12 overflows float16, and E[x^2] - E[x]^2 cancels most of either type's digits. So
what a network sums of squares stays float32, from the square up to where the result meets a larger
tensor again; so does any other sum of what is squared.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from peregrine.compiler.passes.rewriting import constant, is_op
from peregrine.conversion.lowering import all_nodes

_SUMS = ("ReduceSum", "ReduceMean")
_SUMS_OF_SQUARES = ("ReduceSumSquare", "ReduceL2")
_FOLLOW = (
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sqrt", "Reciprocal", "Abs", "Clip"),
    *("Reshape", "Expand", "Squeeze", "Unsqueeze", "Identity"),
)
"""What turns sums into a variance, a norm or its inverse."""


def statistics(graph: ir.Graph) -> frozenset[str]:
    """The names of these nodes, of the graph and of the bodies of its control flow. Every node
    must have a name of its own."""
    nodes = list(all_nodes(graph))
    squares = {node for node in nodes if _is_square(node) and _is_summed(node)}
    squared = {node.inputs[0] for node in squares}
    kept = set(squares)
    for node in nodes:  # producers come first
        of_squares = node.inputs and (
            node.inputs[0] in squared or _producer(node.inputs[0]) in squares
        )
        adds = is_op(node, *_SUMS)
        sums = is_op(node, *_SUMS_OF_SQUARES) or (adds and of_squares)
        if sums or _follows(node, kept - squares):
            kept.add(node)
    return frozenset(node.name for node in kept if node.name)


def _is_square(node: ir.Node) -> bool:
    if is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    if not is_op(node, "Pow"):
        return False
    exponent = constant(node.inputs[1])
    return exponent is not None and exponent.size == 1 and exponent.item() == 2


def _is_summed(square: ir.Node) -> bool:
    uses = square.outputs[0].uses()
    return any(use.idx == 0 and is_op(use.node, *_SUMS) for use in uses)


def _follows(node: ir.Node, kept: set[ir.Node]) -> bool:
    """Whether all that it computes with are statistics or constants, and no tensor of another
    size comes of it."""
    if not is_op(node, *_FOLLOW):
        return False
    computed = [v for v in node.inputs if v is not None and v.dtype is ir.DataType.FLOAT]
    computed = [v for v in computed if constant(v) is None]
    if not computed or not all(_producer(value) in kept for value in computed):
        return False
    size, sizes = _elements(node.outputs[0]), [_elements(value) for value in computed]
    return size is None or None in sizes or size <= max(s for s in sizes if s is not None)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _elements(value: ir.Value) -> int | None:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return prod(int(size) for size in value.shape if isinstance(size, int))
