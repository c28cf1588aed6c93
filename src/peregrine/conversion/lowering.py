"""A graph's float32 tensors rewritten in a narrower float type, or rounded to it.

What the types of a node may be is read from the operator's own ONNX schema, so that there is no
list of operators to keep: an input is narrowed where the schema allows the type there, and an
output follows the inputs that share its type variable. Whatever that leaves in float32 stands
between Casts. Two kinds of node stay in float32 that could be narrowed: those the caller keeps,
and what follows from shapes alone, since sizes and positions beyond 2048 (fp16) or 256 (bf16)
would not be exact. The bodies of control flow are graphs like any other: what goes in and comes
out of one is float32.

`onnxruntime.transformers.float16` is not used: it moves small weights up to 6e-8 and large ones
down to 65504, which hides what fp16 loses; it rounds a weight that a kept layer shares with
another; and it knows no bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from peregrine.types import Array

STANDS_FOR_INFINITY = 1e9
"""A lone number of at least this size masks or bounds; it is no weight."""

_FLOAT = ir.DataType.FLOAT
_SHAPE_OPS = {"Shape", "Size"}
# Without a `dtype`, these answer in the type of their input, which no type variable says.
_ANSWER_IN_KIND = {"RandomNormalLike", "RandomUniformLike", "Bernoulli", "EyeLike"}


def narrow(array: Array, dtype: ir.DataType) -> Array:
    """Rounded to nearest, as IEEE 754 says: what is too small becomes zero and what is too large
    infinite, for the guard to see. Only a lone number that stands for infinity (the -3.4e38 of
    an attention mask) becomes the largest finite one instead: times zero it must stay zero."""
    largest = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    if array.size == 1 and STANDS_FOR_INFINITY <= abs(array.item()) < np.inf:
        array = np.clip(array, -largest, largest)
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(dtype.numpy())


@dataclass
class Loss:
    """What narrowing did to the weights."""

    weights: int = 0
    """Elements narrowed."""
    vanished: Counter[str] = field(default_factory=Counter)
    """Initializer -> elements that became zero."""
    overflowed: Counter[str] = field(default_factory=Counter)
    """Initializer -> elements that became infinite."""

    def note(self, name: str, was: Array, now: Array) -> None:
        self.weights += was.size
        if vanished := int(np.count_nonzero((now == 0) & (was != 0))):
            self.vanished[name] = vanished
        if overflowed := int(np.count_nonzero(np.isinf(now) & np.isfinite(was))):
            self.overflowed[name] = overflowed


class Plan:
    """Which nodes of a graph compute in `dtype`, and which of their tensors that makes narrow.

    `opset` is the version of the standard operators whose schemas decide: the graph's own, or
    the later one that it will be converted to.
    """

    def __init__(
        self, graph: ir.Graph, dtype: ir.DataType, keep: frozenset[str], opset: int
    ) -> None:
        self.graph, self.dtype = graph, dtype
        self.from_shapes = _from_shapes(graph)
        self.reads: dict[ir.Node, frozenset[int]] = {}
        """Node that computes in `dtype` -> places of the inputs that it reads in it."""
        self.written: dict[ir.Value, None] = {}
        """Outputs of these nodes that are in `dtype`, in the graph's order."""
        for node in all_nodes(graph):
            if node.name in keep or node in self.from_shapes or _has_body(node):
                continue
            reads, writes = _narrowed(node, dtype, opset)
            if reads:
                self.reads[node] = reads
                self.written.update(dict.fromkeys(writes))

    def converted(self) -> Counter[str]:
        """Operator type -> nodes that compute in `dtype`."""
        return Counter(node.op_type for node in self.reads)

    def left(self) -> Counter[str]:
        """Operator type -> nodes with weights that compute in float32."""
        return Counter(
            node.op_type
            for node in all_nodes(self.graph)
            if node not in self.reads and any(_is_weight(value) for value in node.inputs)
        )


class Lowering:
    """Writes a plan into the graph that it was made for, once.

    With `emulate` every tensor stays float32 and the narrow ones are only rounded; a rounded
    tensor takes the name of the unrounded one.
    """

    def __init__(self, plan: Plan, *, emulate: bool) -> None:
        self.loss = Loss()
        self._plan, self._graph, self._dtype, self._emulate = plan, plan.graph, plan.dtype, emulate
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._wide: dict[ir.Value, ir.Value] = {}
        self._graphs = dict.fromkeys((self._graph, *self._graph.subgraphs()))
        self._taken = {value.name for graph in self._graphs for value in graph.inputs}
        for node in all_nodes(self._graph):
            self._taken |= {value.name for value in (*node.inputs, *node.outputs) if value}
            self._taken.add(node.name)

    def write(self) -> None:
        """Change the graph in place."""
        for node in list(all_nodes(self._graph)):
            reads = self._plan.reads.get(node, frozenset())
            for place, value in enumerate(node.inputs):
                if value is None:
                    continue
                if place in reads:
                    node.replace_input_with(place, self._narrowed(value))
                elif value in self._plan.written and not self._emulate:
                    node.replace_input_with(place, self._widened(value))
        for value in self._plan.written:
            if self._emulate:
                self._round(value)
            else:
                value.dtype = self._dtype
                if value.is_graph_output():
                    self._take_place(value, self._widened(value))
        for graph in self._graphs:
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output():
                    del graph.initializers[name]

    def _narrowed(self, value: ir.Value) -> ir.Value:
        if value in self._plan.written:
            return value
        if value not in self._narrow:
            if value.is_initializer():
                made = self._initializer(value)
            else:
                made = self._cast(value, self._dtype, self._dtype.short_name())
                if self._emulate:
                    made = self._cast(made, _FLOAT, "back")
            self._narrow[value] = made
        return self._narrow[value]

    def _widened(self, value: ir.Value) -> ir.Value:
        if value not in self._wide:
            self._wide[value] = self._cast(value, _FLOAT, _FLOAT.short_name())
        return self._wide[value]

    def _round(self, value: ir.Value) -> None:
        uses = list(value.uses())
        narrow = self._cast(value, self._dtype, self._dtype.short_name())
        rounded = self._cast(narrow, _FLOAT, "rounded")
        for use in uses:
            use.node.replace_input_with(use.idx, rounded)
        self._take_place(value, rounded)

    def _take_place(self, value: ir.Value, other: ir.Value) -> None:
        """Give `other` the name of `value`, and its places among the outputs of graphs."""
        name = value.name
        value.name = self._fresh(f"{name}_{self._dtype.short_name()}_raw")
        other.name = name
        for graph in self._graphs:
            for place, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[place] = other

    def _initializer(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        was = value.const_value.numpy()
        now = narrow(was, self._dtype)
        self.loss.note(str(value.name), was, now)
        name = self._fresh(f"{value.name}_{self._dtype.short_name()}")
        tensor = ir.tensor(now.astype(np.float32) if self._emulate else now, name=name)
        made = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(now.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, to: ir.DataType, suffix: str) -> ir.Value:
        name = self._fresh(f"{value.name}_{suffix}")
        out = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        node = ir.node(
            "Cast", [value], {"to": int(to)}, outputs=[out], name=self._fresh(f"Cast_{name}")
        )
        producer, graph = value.producer(), value.graph
        assert isinstance(graph, ir.Graph)
        if producer is None:  # an input of the graph
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(producer, node)
        return out

    def _fresh(self, name: str) -> str:
        fresh, again = name, 1
        while fresh in self._taken:
            again += 1
            fresh = f"{name}{again}"
        self._taken.add(fresh)
        return fresh


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Of the graph and of everything inside its control flow."""
    yield from ir.traversal.RecursiveGraphIterator(graph)


def schema_of(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """None for an operator that is not ONNX's own."""
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _narrowed(
    node: ir.Node, dtype: ir.DataType, opset: int
) -> tuple[frozenset[int], list[ir.Value]]:
    """Places of the inputs and the outputs themselves that may be narrow, in one node."""
    schema = schema_of(node, opset)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    typed = all(isinstance(value.type, ir.TensorType) for value in values)
    in_kind = node.op_type in _ANSWER_IN_KIND and "dtype" not in node.attributes
    if schema is None or not typed or in_kind:
        return frozenset(), []
    wanted = f"tensor({dtype.name.lower()})"
    allowed = {c.type_param_str for c in schema.type_constraints if wanted in c.allowed_type_strs}
    reads = {
        place: variable
        for place, value in enumerate(node.inputs)
        if value is not None
        and value.dtype is _FLOAT
        and (variable := _type_at(schema.inputs, place)) in allowed
    }
    writes = [
        value
        for place, value in enumerate(node.outputs)
        if value.name
        and value.dtype is _FLOAT
        and _type_at(schema.outputs, place) in reads.values()
    ]
    return frozenset(reads), writes


def _type_at(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], place: int) -> str:
    """The type variable of an argument; the last parameter may be repeated."""
    return parameters[min(place, len(parameters) - 1)].type_str


def _from_shapes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes whose every input is a constant or follows from the shape of a tensor."""
    constant: set[ir.Node] = set()
    found: set[ir.Node] = set()
    for node in all_nodes(graph):
        if _has_body(node):
            continue
        if node.op_type in _SHAPE_OPS:
            found.add(node)
            continue
        sources = {
            value.producer()
            for value in node.inputs
            if value is not None and not value.is_initializer()
        }
        if sources <= constant:
            constant.add(node)
        elif sources <= constant | found:
            found.add(node)
    return found


def _has_body(node: ir.Node) -> bool:
    """Whether it is control flow, whose schema takes any type but whose body declares one."""
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in bodies for attribute in node.attributes.values())


def _is_weight(value: ir.Value | None) -> bool:
    """A matrix, a kernel or a table, not a bias or a scalar."""
    return (
        value is not None
        and value.is_initializer()
        and value.dtype is _FLOAT
        and value.shape is not None
        and value.shape.rank() > 1
    )
