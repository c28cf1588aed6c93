"""A 1x1 convolution and the one that reads what it writes: across the border of two blocks."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from peregrine.compiler.operators import Activation, Fused
from peregrine.compiler.passes.fuse_depthwise_pointwise import is_pointwise
from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    input_at,
    shape_of,
    write_several,
)

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
WIDEST = 256
"""Channels of X and of Y2. A kernel keeps a pixel's on the chip, so that of wider ones there are
few pixels to a program, each of which reads all weights."""
FEWEST = 8192
"""Pixels, a tile of 64 for each multiprocessor of a large GPU. With fewer, programs that walk over
all channels of Y1 are slower than two kernels that share them out."""


class FusePointwisePair(Fusion):
    """A pointwise `peregrine.Conv`, and the one pointwise one without a residual that reads its
    output, become one `peregrine.PointwisePair` where that output is also wanted elsewhere, as the
    next residual of a ResNet is: it is written once and not read back in between.

    Only in 16 bits, where the memory is what takes the time, and only where the output between
    them is no smaller than what the first reads."""

    fewest: ClassVar[int] = FEWEST

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        second = _second(node)
        if second is None or not self._pays(node, second):
            return False
        following = Activation.read(attributes_of(second))
        return write_several(
            weights,
            Fused.POINTWISE_PAIR,
            [
                *(input_at(node, place) for place in range(4)),
                *(input_at(second, place) for place in range(1, 3)),
            ],
            {
                **Activation.read(attributes_of(node)).attributes(),
                **following.attributes("second_"),
            },
            [node, second],
            # Whatever else reads the first output may stand before the second convolution.
            node,
            [node.outputs[0], second.outputs[0]],
        )

    def _pays(self, node: ir.Node, second: ir.Node) -> bool:
        x, y1, y2 = node.inputs[0], node.outputs[0], second.outputs[0]
        assert x is not None
        dtypes = {value.dtype for value in (x, y1, y2, node.inputs[1], second.inputs[1]) if value}
        shapes = [shape_of(value) for value in (x, y1, y2)]
        if len(dtypes) != 1 or not dtypes <= HALVES or None in shapes:
            return False
        (n, channels, height, width), (_, hidden, *_), (_, written, *_) = filter(None, shapes)
        return (
            channels <= min(hidden, WIDEST)
            and written <= WIDEST
            and n * height * width >= self.fewest
        )


def _second(node: ir.Node) -> ir.Node | None:
    """The one convolution that may be computed with this one, where there is just one."""
    if not is_pointwise(node):
        return None
    output = node.outputs[0]
    users = list(output.uses())
    if len(users) == 1 and not output.is_graph_output():
        return None  # it need not be written at all, which is another operator
    found = [
        use.node
        for use in users
        if use.idx == 0 and use.node.graph is node.graph and _takes(use.node)
    ]
    return found[0] if len(found) == 1 else None


def _takes(node: ir.Node) -> bool:
    """A pointwise convolution without a residual: all else that it reads is constant."""
    return is_pointwise(node) and input_at(node, 3) is None
