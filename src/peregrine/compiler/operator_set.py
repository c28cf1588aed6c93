"""Which operators of a graph the engine lacks, told from their names alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_STANDARD = "ai.onnx"


def missing(path: Path) -> tuple[str, ...]:
    """Operators of an ONNX file that no tactic runs at the file's opset, in order, each once;
    another domain's with the domain in front. Weights are not read."""
    import onnx

    from peregrine.compiler.torch_ops import registry

    proto = onnx.load(path, load_external_data=False)
    opsets = {entry.domain or _STANDARD: entry.version for entry in proto.opset_import}
    functions = {(f.domain or _STANDARD, f.name) for f in proto.functions}
    lacking: dict[str, None] = {}
    for node in _nodes(proto.graph):
        domain = node.domain or _STANDARD
        if (domain, node.op_type) in functions:
            continue
        if registry.find(f"{domain}.{node.op_type}", opsets.get(domain, 1)) is None:
            name = node.op_type if domain == _STANDARD else f"{domain}.{node.op_type}"
            lacking[name] = None
    return tuple(lacking)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those in the bodies of control flow too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)
