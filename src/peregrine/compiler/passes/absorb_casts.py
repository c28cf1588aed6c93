"""Casts at the borders of the graph that fused operators do as they read and write.

A fused operator computes in the dtype of its weights. `peregrine.Conv` and `peregrine.ConvMaxPool`
round their X to it as they read, whatever float X comes in, so a Cast from an input of the graph
to that dtype goes where these alone read it. Sums are float32 until the output is written, so a
Cast to float32 that makes an output of the graph goes where one of `WRITERS` alone feeds it: the
operator's output has dtype float32 then, with one rounding fewer. Elsewhere Casts stay: between two
operators a wider tensor would cost memory traffic.
"""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.operators import DOMAIN, Fused
from peregrine.compiler.passes.rewriting import (
    FLOATS,
    Fusion,
    Weights,
    is_fused,
    is_op,
    note_sources,
    only_reader,
)

READERS = (Fused.CONV, Fused.CONV_MAX_POOL)
WRITERS = (Fused.CONV, Fused.LINEAR, Fused.POOL_LINEAR)


class AbsorbCasts(Fusion):
    """Remove the Casts that the text above speaks of."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_op(node, "Cast") or node.outputs[0].dtype not in FLOATS:
            return False
        value = node.inputs[0]
        if value is None or value.dtype not in FLOATS:
            return False
        return _absorb_input(node, value) or _absorb_output(node, value)


def _absorb_input(cast: ir.Node, value: ir.Value) -> bool:
    output = cast.outputs[0]
    uses = list(output.uses())
    if not value.is_graph_input() or output.is_graph_output() or not uses:
        return False
    for use in uses:
        weight = use.node.inputs[1] if use.idx == 0 and len(use.node.inputs) > 1 else None
        reads = any(is_fused(use.node, fused) for fused in READERS)
        if not reads or weight is None or weight.dtype is not output.dtype:
            return False
    for use in uses:
        use.node.replace_input_with(0, value)
        note_sources(use.node, [cast, use.node])
    _remove(cast)
    return True


def _absorb_output(cast: ir.Node, value: ir.Value) -> bool:
    producer, output = value.producer(), cast.outputs[0]
    if producer is None or producer.domain != DOMAIN or only_reader(value) is not cast:
        return False
    writes = any(is_fused(producer, fused) for fused in WRITERS)
    if not writes or not output.is_graph_output() or output.dtype is not ir.DataType.FLOAT:
        return False
    value.dtype = output.dtype
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    name, output.name = output.name, None
    value.name = name
    note_sources(producer, [producer, cast])
    _remove(cast)
    return True


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)
