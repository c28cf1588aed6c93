"""What every pass needs: to read constants and sizes, to tell who reads a value, to write."""

from __future__ import annotations

import abc
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from peregrine.compiler.operators import DOMAIN, Fused
from peregrine.types import Array

SOURCES = "peregrine.sources"
"""The metadata that names the nodes of the user's graph behind a node, as a JSON list."""

Attributes: TypeAlias = Mapping[str, Any]
Shape: TypeAlias = tuple[int, ...]
_Signature: TypeAlias = tuple[tuple[str | None, ir.DataType | None, str], ...]

_ARITY = {
    Fused.CONV: (2, 4),
    Fused.LINEAR: (2, 4),
    Fused.DEPTHWISE_POINTWISE: (4, 6),
    Fused.CONV_MAX_POOL: (2, 3),
    Fused.CONV_BRANCHES: (4, 5),
    Fused.POOL_LINEAR: (2, 3),
    Fused.POINTWISE_PAIR: (5, 6),
}
_OUTPUTS = {Fused.POINTWISE_PAIR: 2}
"""How many, where it is not one."""
FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


class GraphPass(ir.passes.InPlacePass):
    """A pass over a graph and the bodies of its control flow. It takes a well-formed graph and
    leaves one, with the same inputs and outputs."""

    _signature: _Signature = ()

    def requires(self, model: ir.Model) -> None:
        problem = next(problems(model.graph), None)
        if problem:
            raise ir.passes.PreconditionError(f"{type(self).__name__}: {problem}")
        self._signature = _signature(model.graph)

    def ensures(self, model: ir.Model) -> None:
        problem = next(problems(model.graph), None)
        if problem is None and _signature(model.graph) != self._signature:
            problem = "an input or output of the graph is another"
        if problem:
            raise ir.passes.PostconditionError(f"{type(self).__name__}: {problem}")


class Fusion(GraphPass):
    """A pass that tries to fuse at every node, the last of each graph first unless it says
    `forwards`: of two nodes that could take a third into themselves, the later one does."""

    forwards: ClassVar[bool] = False

    def __init__(self, apart: Collection[frozenset[str]] = ()) -> None:
        """
        Args:
            apart: sets of nodes of the user's graph, by name, that are not to be fused with one
                another: their parts were faster.
        """
        super().__init__()
        self._apart = tuple(apart)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        weights = Weights(model, self._apart)
        modified = False
        nodes = list(all_nodes(model.graph))
        for node in nodes if self.forwards else reversed(nodes):
            if node.graph is not None:  # it is None of a node that another took in
                modified |= self.fuse(node, weights)
        return ir.passes.PassResult(model, modified)

    @abc.abstractmethod
    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        """Rewrite what starts or ends at `node`; False where nothing does, and nothing changed."""


class Weights:
    """New constants of a model, each under a name of its own."""

    def __init__(self, model: ir.Model, apart: Collection[frozenset[str]] = ()) -> None:
        self._model = model
        self.apart = tuple(apart)
        self._taken: set[str | None] = set(model.graph.initializers)
        for node in all_nodes(model.graph):
            values = (*node.inputs, *node.outputs)
            self._taken |= {value.name for value in values if value is not None}
        self._made: dict[tuple[ir.Value, str], ir.Value] = {}

    @property
    def model(self) -> ir.Model:
        return self._model

    def add(self, array: Array, name: str, dtype: ir.DataType) -> ir.Value:
        """An initializer of the main graph with these numbers, rounded once to `dtype`."""
        with np.errstate(over="ignore", under="ignore"):
            array = np.ascontiguousarray(array.astype(dtype.numpy()))
        fresh, again = name, 1
        while fresh in self._taken:
            again += 1
            fresh = f"{name}_{again}"
        self._taken.add(fresh)
        value = ir.Value(
            name=fresh,
            type=ir.TensorType(dtype),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=fresh),
        )
        self._model.graph.register_initializer(value)
        return value

    def transposed(self, value: ir.Value) -> ir.Value:
        """A constant matrix turned over, once for all who ask."""
        key = (value, "transposed")
        if key not in self._made:
            array, dtype = constant(value), value.dtype
            assert array is not None
            assert dtype is not None
            self._made[key] = self.add(array.T, f"{value.name}_transposed", dtype)
        return self._made[key]


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Of the graph and of everything inside its control flow."""
    yield from ir.traversal.RecursiveGraphIterator(graph)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether it is one of these standard operators."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def is_fused(node: ir.Node | None, fused: Fused) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == fused.op_type


def constant(value: ir.Value | None) -> Array | None:
    """Its numbers, where they are known."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def exact(value: ir.Value | None) -> Array | None:
    """The numbers of a floating-point constant as float64."""
    array = constant(value)
    if array is None or value is None or value.dtype not in FLOATS:
        return None
    return array.astype(np.float64)


def scalar(value: ir.Value | None) -> float | None:
    """The number of a floating-point constant that holds one."""
    array = exact(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def shape_of(value: ir.Value | None) -> Shape | None:
    """Its sizes, where all are known."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(value.shape)
    return tuple(int(size) for size in sizes) if value.shape.is_static() else None  # type: ignore[arg-type]


def input_at(node: ir.Node, place: int) -> ir.Value | None:
    """None for an optional input that is absent."""
    return node.inputs[place] if place < len(node.inputs) else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads it, once, in the graph that makes it; None where anything else
    does, an output of the graph included."""
    uses = list(value.uses())
    producer = value.producer()
    if len(uses) != 1 or value.is_graph_output() or producer is None:
        return None
    node = uses[0].node
    return node if node.graph is producer.graph else None


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """Attributes that are numbers, strings and lists of them, as plain values."""
    return {
        name: tuple(attribute.value)
        if isinstance(attribute.value, Sequence) and not isinstance(attribute.value, str)
        else attribute.value
        for name, attribute in node.attributes.items()
        if not attribute.is_ref()
    }


def sources(nodes: Iterable[ir.Node]) -> list[str]:
    """Names of the nodes of the user's graph behind these, each once."""
    found: dict[str, None] = {}
    for node in nodes:
        kept = node.metadata_props.get(SOURCES)
        found.update(dict.fromkeys(json.loads(kept) if kept else [str(node.name)]))
    return list(found)


def note_sources(node: ir.Node, nodes: Iterable[ir.Node]) -> None:
    """Note that `node` does the work of `nodes`."""
    node.metadata_props[SOURCES] = json.dumps(sources(nodes))


def write(
    weights: Weights,
    fused: Fused,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes,
    old: Sequence[ir.Node],
) -> bool:
    """Put a fused operator of one output in the place of `old`, whose last node's one output
    becomes its own, and which in the order given depend on one another: all that the fused
    operator reads is there at the place of the last.

    The output keeps its name, dtype and shape; the names of `old` go into the metadata. False, and
    nothing changed, where they are to stay apart."""
    return write_several(weights, fused, inputs, attributes, old, old[-1], [old[-1].outputs[0]])


def write_several(
    weights: Weights,
    fused: Fused,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes,
    old: Sequence[ir.Node],
    place: ir.Node,
    were: Sequence[ir.Value],
) -> bool:
    """Put a fused operator in the place of `place`, one of `old`, where all that it reads is there
    already and none of `were` is read yet.

    `were` are outputs of `old` that become its own, in this order; they keep their names, dtypes
    and shapes. The names of `old` go into the metadata. False, and nothing changed, where they are
    to stay apart."""
    names = frozenset(sources(old))
    if any(names <= kept for kept in weights.apart):
        return False
    graph = place.graph
    assert graph is not None
    while inputs[-1] is None:
        inputs = inputs[:-1]
    node = ir.node(
        fused.op_type,
        inputs,
        dict(attributes),
        domain=DOMAIN,
        outputs=[ir.Value(name=was.name, type=was.type, shape=was.shape) for was in were],
        name=str(old[0].name),
        metadata_props={SOURCES: json.dumps(sources(old))},
    )
    weights.model.opset_imports.setdefault(DOMAIN, 1)
    ir.convenience.replace_nodes_and_values(
        graph, place, list(old), [node], list(were), list(node.outputs)
    )
    return True


def _signature(graph: ir.Graph) -> _Signature:
    """Names, dtypes and shapes of what goes in and comes out."""
    values = (*graph.inputs, *graph.outputs)
    return tuple((value.name, value.dtype, str(value.shape)) for value in values)


def problems(graph: ir.Graph, outer: Iterable[ir.Value] = ()) -> Iterator[str]:
    """What is wrong with a graph: a value read before it is made, or a fused operator that is
    none."""
    known = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                yield f"{node.name} reads {value.name} before it is made"
        if node.domain == DOMAIN:
            yield from _misfits(node)
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                yield from problems(attribute.as_graph(), known)
            elif attribute.type is ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from problems(body, known)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            yield f"nothing makes the output {value.name}"


def _misfits(node: ir.Node) -> Iterator[str]:
    try:
        fused = Fused(f"{DOMAIN}.{node.op_type}")
    except ValueError:
        yield f"{DOMAIN} has no operator {node.op_type}"
        return
    fewest, most = _ARITY[fused]
    if not fewest <= len(node.inputs) <= most or (len(node.outputs) != _OUTPUTS.get(fused, 1)):
        yield f"{node.name} ({fused}) has {len(node.inputs)} inputs, {len(node.outputs)} outputs"
    if any(output.dtype is None for output in node.outputs):
        yield f"{node.name} ({fused}) has an output without a dtype"
