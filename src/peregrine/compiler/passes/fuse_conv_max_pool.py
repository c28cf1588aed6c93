"""The stem of a network: a convolution of an image, pooled as it is written."""

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
from peregrine.compiler.passes.windows import window_of

MOST_CHANNELS = 4
"""Of the input: beyond that the convolution is worth more than the memory that pooling saves."""


class FuseConvMaxPool(Fusion):
    """A `peregrine.Conv` of few channels that only a MaxPool reads becomes one
    `peregrine.ConvMaxPool` with it. A pool that hands out indices, is dilated, or has a last
    window that hangs over the edge because of `ceil_mode` stays."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_fused(node, Fused.CONV) or not _is_stem(node):
            return False
        pool = only_reader(node.outputs[0])
        window = _pool(pool)
        if pool is None or window is None:
            return False
        attributes = attributes_of(node)
        return write(
            weights,
            Fused.CONV_MAX_POOL,
            [input_at(node, place) for place in range(3)],
            {
                **Window.read(attributes).attributes(),
                "group": attributes["group"],
                **Activation.read(attributes).attributes(),
                **window.attributes("pool_"),
            },
            [node, pool],
        )


def _is_stem(node: ir.Node) -> bool:
    shape = shape_of(node.inputs[1])
    assert shape is not None
    plain = attributes_of(node)["group"] == 1 and input_at(node, 3) is None
    return plain and shape[1] <= MOST_CHANNELS


def _pool(node: ir.Node | None) -> Window | None:
    """The window of a MaxPool that can be fused."""
    if node is None or not is_op(node, "MaxPool"):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    kernel = attributes_of(node)["kernel_shape"]
    given, written = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(kernel) != 2 or given is None or written is None:
        return None
    window = window_of(node, (int(kernel[0]), int(kernel[1])))
    if window is None or window.dilations != (1, 1):
        return None
    return window if window.output(*given[2:]) == written[2:] else None
