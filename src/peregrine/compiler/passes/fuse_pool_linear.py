"""The head of a classifier: the mean over an image and a matrix product."""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.operators import Activation, Fused
from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    constant,
    input_at,
    is_fused,
    is_op,
    only_reader,
    shape_of,
    write,
)

_VIEWS = ("Flatten", "Reshape", "Squeeze")


class FusePoolLinear(Fusion):
    """GlobalAveragePool, or ReduceMean over height and width, whose (N, C) only a
    `peregrine.Linear` without a residual reads, becomes one `peregrine.PoolLinear` with it."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_fused(node, Fused.LINEAR) or input_at(node, 3) is not None:
            return False
        fused = [node]
        value = node.inputs[0]
        while value is not None and only_reader(value) is fused[0]:
            producer = value.producer()
            assert producer is not None
            fused.insert(0, producer)
            value = producer.inputs[0]
            if not is_op(producer, *_VIEWS):
                break
        pooled = shape_of(fused[0].inputs[0])
        if len(fused) == 1 or not _is_mean_of_image(fused[0]) or pooled is None:
            return False
        # With the image's N and C in place, whatever the views between did changed no order.
        if shape_of(node.inputs[0]) != pooled[:2]:
            return False
        return write(
            weights,
            Fused.POOL_LINEAR,
            [fused[0].inputs[0], *node.inputs[1:3]],
            Activation.read(attributes_of(node)).attributes(),
            fused,
        )


def _is_mean_of_image(node: ir.Node) -> bool:
    shape = shape_of(node.inputs[0])
    if shape is None or len(shape) != 4:
        return False
    if is_op(node, "GlobalAveragePool"):
        return True
    if not is_op(node, "ReduceMean"):
        return False
    given = constant(input_at(node, 1))  # an attribute until opset 17
    axes = attributes_of(node).get("axes") if given is None else given.tolist()
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]
