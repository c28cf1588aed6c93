"""What a graph says about its own inputs and outputs: bounds of integers, scores over classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from peregrine.model.onnx_file import graphs
from peregrine.types import Array, TensorSpec

if TYPE_CHECKING:
    import onnx

# Operators that hand integers on without changing their values.
_CARRIERS = {
    *("Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze"),
}
_SCORES = re.compile(r".*(logit|label|class|prob|score|softmax|pred|target)", re.IGNORECASE)
# Looked through on the way back from an output to what makes its values.
_PASS_THROUGH = {"Identity", "Reshape", "Flatten", "Squeeze", "Cast", "Add", "Div"}
_CLASSIFIES = {"Softmax", "LogSoftmax", "Gemm", "MatMul"}


def integer_ranges(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]
) -> dict[str, tuple[float, float]]:
    """Bounds [low, high) of integer inputs, where the graph gives them away.

    An input that indexes a table (Gather, GatherElements, OneHot) is bounded by the table; else
    one that is compared with several constants (a spelled-out one-hot) by these; else a scalar
    that is compared with one constant (a sampling rate) takes it: [v, v].
    """
    facts = _Facts(model)
    found = {}
    for spec in inputs:
        if not spec.dtype.startswith(("int", "uint")):
            continue
        uses = list(facts.uses(spec.name, set()))
        tables = [rows for kind, rows in uses if kind == "table"]
        compared = [values for kind, values in uses if kind == "equal"]
        listed = [values for values in compared if len(values) > 1]
        if tables:
            found[spec.name] = (0.0, min(rows[0] for rows in tables))
        elif listed:
            found[spec.name] = (min(map(min, listed)), max(map(max, listed)) + 1)
        elif compared and all(dim == 1 for dim in spec.shape):
            # Not for a vector: a mask compared with 0 would become all zeros.
            found[spec.name] = (compared[0][0], compared[0][0])
    return found


class _Facts:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants: dict[str, onnx.TensorProto] = {}
        self.users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.maker: dict[str, onnx.NodeProto] = {}
        for graph in graphs(model.graph):
            self.constants |= {tensor.name: tensor for tensor in graph.initializer}
            for node in graph.node:
                for position, name in enumerate(node.input):
                    self.users.setdefault(name, []).append((node, position))
                for name in node.output:
                    self.maker[name] = node
                if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                    self.constants[node.output[0]] = node.attribute[0].t

    def constant(self, name: str, depth: int = 4) -> Array | None:
        """The value of `name`, looked for behind operators that only reshape it."""
        from onnx import numpy_helper

        if name in self.constants:
            tensor = self.constants[name]
            external = tensor.data_location == tensor.EXTERNAL
            value: Array | None = None if external else numpy_helper.to_array(tensor)
            return value
        maker = self.maker.get(name)
        if depth and maker is not None and maker.op_type in _CARRIERS - {"Gather", "Slice"}:
            return self.constant(maker.input[0], depth - 1)
        return None

    def uses(self, name: str, seen: set[str]) -> Iterator[tuple[str, list[float]]]:
        """("table", [rows]) or ("equal", values) for every telling use of `name`."""
        if name in seen:
            return
        seen.add(name)
        for node, position in self.users.get(name, ()):
            kind = node.op_type
            if kind in ("Gather", "GatherElements") and position == 1:
                if rows := self._rows(node):
                    yield "table", [float(rows)]
            elif kind == "OneHot" and position == 0:
                depth = self.constant(node.input[1])
                if depth is not None:
                    yield "table", [float(np.ravel(depth)[0])]
            elif kind == "Equal":
                values = self.constant(node.input[1 - position])
                if values is not None and values.size and values.dtype.kind in "iu":
                    yield "equal", [float(v) for v in np.unique(values)]
            elif kind in _CARRIERS and position == 0:
                yield from self.uses(node.output[0], seen)

    def _rows(self, gather: onnx.NodeProto) -> int:
        """Entries along the axis that a Gather indexes, where its table is a constant."""
        table = self.constants.get(gather.input[0])
        axis = next((a.i for a in gather.attribute if a.name == "axis"), 0)
        return int(table.dims[axis]) if table is not None and table.dims else 0


def is_classifier(model: onnx.ModelProto, outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether the first output is [batch, classes] scores: by its name, or by what makes it."""
    first = outputs[0]
    if not scores_shape(first):
        return False
    if _SCORES.match(first.name):
        return True
    maker = {name: node for node in model.graph.node for name in node.output}
    node = maker.get(first.name)
    while node is not None and node.op_type in _PASS_THROUGH:
        node = next((maker[name] for name in node.input if name in maker), None)
    return node is not None and node.op_type in _CLASSIFIES


def scores_shape(spec: TensorSpec) -> bool:
    """Whether a tensor could hold one score a class: float, [batch, at least 2]."""
    if not spec.dtype.startswith(("float", "bfloat")) or len(spec.shape) != 2:
        return False
    classes = spec.shape[1]
    return isinstance(classes, int) and classes >= 2
