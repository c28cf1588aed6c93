"""Pad with zeros folded into the Conv after it."""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    constant,
    input_at,
    is_op,
    note_sources,
    only_reader,
    shape_of,
)


class FoldPads(Fusion):
    """A Pad of height, width and the like by zeros that only a Conv reads becomes pads of that
    Conv (exporters write it for SAME padding, which is not symmetric)."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        pads = _zeros(node)
        conv = only_reader(node.outputs[0]) if pads is not None else None
        if pads is None or conv is None or not is_op(conv, "Conv"):
            return False
        attributes = attributes_of(conv)
        if conv.inputs[0] is not node.outputs[0]:
            return False
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
            return False
        had = attributes.get("pads", (0,) * len(pads))
        conv.attributes.pop("auto_pad", None)
        conv.attributes["pads"] = ir.AttrInt64s(
            "pads", [a + b for a, b in zip(had, pads, strict=True)]
        )
        conv.replace_input_with(0, node.inputs[0])
        note_sources(conv, [node, conv])
        graph = node.graph
        assert graph is not None
        graph.remove(node, safe=True)
        return True


def _zeros(node: ir.Node) -> tuple[int, ...] | None:
    """Pads of the axes from the third on, as a Conv has them: first all starts, then all ends."""
    if not is_op(node, "Pad") or attributes_of(node).get("mode", "constant") != "constant":
        return None
    fill, amounts = input_at(node, 2), constant(input_at(node, 1))
    filled = constant(fill)
    if amounts is None or (fill is not None and (filled is None or filled.any())):
        return None
    shape = shape_of(node.inputs[0])
    if shape is None:
        return None
    rank = len(shape)
    axes = list(range(rank))
    if input_at(node, 3) is not None:
        given = constant(input_at(node, 3))
        if given is None:
            return None
        axes = [int(axis) % rank for axis in given.tolist()]
    starts, ends = [0] * rank, [0] * rank
    numbers = [int(amount) for amount in amounts.tolist()]
    for axis, start, end in zip(axes, numbers[: len(axes)], numbers[len(axes) :], strict=True):
        starts[axis], ends[axis] = start, end
    if any(starts[:2]) or any(ends[:2]) or min(*starts, *ends) < 0:
        return None
    return (*starts[2:], *ends[2:])
