"""A few nodes in a row, done for some of the images at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from peregrine.compiler.operators import Fused
from peregrine.compiler.passes.rewriting import (
    GraphPass,
    constant,
    note_sources,
    only_reader,
    shape_of,
)

Chain: TypeAlias = tuple[str, str]
"""The output of the first node and that of the last, by name."""

BATCHWISE = frozenset(
    {Fused.CONV, Fused.DEPTHWISE_POINTWISE, Fused.CONV_BRANCHES, Fused.CONV_MAX_POOL}
    | {"ai.onnx.MaxPool"}
)
"""Operators that compute each image of their first input by itself."""


class SliceBatch(GraphPass):
    """What lies between two of the nodes is then as large as some of the images need, and may even
    stay in the cache. The input is split, and the outputs are put together again, by a Split and a
    Concat over the images, which take no time: both are a matter of offsets (`layout`)."""

    def __init__(self, slices: Mapping[Chain, int]) -> None:
        """
        Args:
            slices: in how many parts the images of each chain are done; chains that share no node.
        """
        super().__init__()
        self._slices = dict(slices)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        made = {value.name: node for node in model.graph for value in node.outputs}
        modified = False
        for (first, last), parts in self._slices.items():
            nodes = _chain(made.get(first), made.get(last))
            images = shape_of(nodes[0].outputs[0]) if nodes else None
            if images and images[0] % parts == 0:
                _slice(nodes, parts)
                modified = True
        return ir.passes.PassResult(model, modified)


def _chain(first: ir.Node | None, last: ir.Node | None) -> list[ir.Node]:
    """The nodes from one to the other where each is read by the next alone and all are batchwise;
    none where they are not."""
    nodes: list[ir.Node] = []
    node = first
    while node is not None and _is_batchwise(node):
        nodes.append(node)
        if node is last:
            return nodes
        node = only_reader(node.outputs[0])
    return []


def _is_batchwise(node: ir.Node) -> bool:
    name = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    others = [value for value in node.inputs[1:] if value is not None]
    return (
        name in BATCHWISE
        and len(node.outputs) == 1
        and node.inputs[0] is not None
        and all(constant(value) is not None for value in others)
        and shape_of(node.inputs[0]) is not None
        and shape_of(node.outputs[0]) is not None
    )


def _slice(nodes: Sequence[ir.Node], parts: int) -> None:
    whole, result = nodes[0].inputs[0], nodes[-1].outputs[0]
    graph = nodes[-1].graph
    assert whole is not None
    assert graph is not None
    split = ir.node(
        "Split",
        [whole],
        {"axis": 0, "num_outputs": parts},
        outputs=[_part(whole, index, parts) for index in range(parts)],
        name=f"{whole.name}/slices",
    )
    new, ends = [split], []
    for index, piece in enumerate(split.outputs):
        value = piece
        for node in nodes:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [value, *node.inputs[1:]],
                node.attributes.values(),
                outputs=[_part(node.outputs[0], index, parts)],
                name=f"{node.name}/{index}",
                version=node.version,
            )
            note_sources(copy, [node])
            new.append(copy)
            value = copy.outputs[0]
        ends.append(value)
    joined = ir.node(
        "Concat",
        ends,
        {"axis": 0},
        outputs=[ir.Value(name=result.name, type=result.type, shape=result.shape)],
        name=f"{result.name}/joined",
    )
    new.append(joined)
    ir.convenience.replace_nodes_and_values(
        graph, nodes[-1], list(reversed(nodes)), new, [result], [joined.outputs[0]]
    )


def _part(value: ir.Value, index: int, parts: int) -> ir.Value:
    sizes = shape_of(value)
    assert sizes is not None
    shape = ir.Shape((sizes[0] // parts, *sizes[1:]))
    return ir.Value(name=f"{value.name}/{index}", type=value.type, shape=shape)
