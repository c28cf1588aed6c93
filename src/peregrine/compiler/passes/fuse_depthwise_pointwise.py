"""A depthwise convolution whose result never leaves the chip: the pointwise one reads it there."""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    input_at,
    is_fused,
    only_reader,
    shape_of,
    write,
)


class FuseDepthwisePointwise(Fusion):
    """A depthwise `peregrine.Conv` that only a pointwise one reads, as its X, becomes one
    `peregrine.DepthwisePointwise` with it."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_fused(node, Fused.CONV) or not _is_depthwise(node):
            return False
        after = only_reader(node.outputs[0])
        if after is None or not is_pointwise(after) or after.inputs[0] is not node.outputs[0]:
            return False
        attributes, following = attributes_of(node), attributes_of(after)
        return write(
            weights,
            Fused.DEPTHWISE_POINTWISE,
            [
                *(input_at(node, place) for place in range(3)),
                *(input_at(after, place) for place in range(1, 4)),
            ],
            {
                **Window.read(attributes).attributes(),
                **Activation.read(attributes).attributes("inner_"),
                **Activation.read(following).attributes(),
            },
            [node, after],
        )


def _is_depthwise(node: ir.Node) -> bool:
    """One filter a channel, and no residual."""
    shape = shape_of(node.inputs[1])
    assert shape is not None
    group = attributes_of(node)["group"]
    return group == shape[0] and shape[1] == 1 and group > 1 and input_at(node, 3) is None


def is_pointwise(node: ir.Node) -> bool:
    """A `peregrine.Conv` that is a matrix product over all channels, at every position."""
    if not is_fused(node, Fused.CONV):
        return False
    attributes = attributes_of(node)
    window = Window.read(attributes)
    return window.is_pointwise and window.strides == (1, 1) and attributes["group"] == 1
