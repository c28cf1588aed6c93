"""Two convolutions of one input, side by side in the channels of one output."""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    input_at,
    is_fused,
    is_op,
    only_reader,
    shape_of,
    write,
)


class FuseBranches(Fusion):
    """Concat over the channels of a pointwise `peregrine.Conv` and another of the same input,
    with the same activation and the same size of output, becomes one `peregrine.ConvBranches`:
    the input is read once (the fire module of SqueezeNet)."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_op(node, "Concat") or len(node.inputs) != 2:
            return False
        rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 0
        if rank != 4 or int(attributes_of(node)["axis"]) not in (1, 1 - rank):
            return False
        first, second = (value.producer() if value is not None else None for value in node.inputs)
        if first is None or second is None or not _are_branches(first, second):
            return False
        if any(only_reader(branch.outputs[0]) is not node for branch in (first, second)):
            return False
        attributes = attributes_of(second)
        return write(
            weights,
            Fused.CONV_BRANCHES,
            [*(input_at(first, place) for place in range(3)), *second.inputs[1:3]],
            {
                **Window.read(attributes).attributes(),
                **Activation.read(attributes).attributes(),
            },
            [first, second, node],
        )


def _are_branches(first: ir.Node, second: ir.Node) -> bool:
    for branch in (first, second):
        if not is_fused(branch, Fused.CONV) or input_at(branch, 3) is not None:
            return False
        if attributes_of(branch)["group"] != 1:
            return False
    one, other = attributes_of(first), attributes_of(second)
    sizes, others = shape_of(first.outputs[0]), shape_of(second.outputs[0])
    return (
        first.inputs[0] is second.inputs[0]
        and Window.read(one).is_pointwise
        and Window.read(one).strides == Window.read(other).strides
        and Activation.read(one) == Activation.read(other)
        and sizes is not None
        and others is not None
        and sizes[2:] == others[2:]
    )
