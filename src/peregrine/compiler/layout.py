"""Where each value of a graph lies and with which strides.

Images between fused operators are channels-last: a convolution is then a matrix product whose rows
lie together. A concatenation of channels costs nothing where its producers write into slices of
its output, one allocation with the strides of the whole. Values that only `torch_ops` makes and
reads are left to torch, which answers with views where it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from peregrine.compiler.operation import TensorType, channels_last_strides, contiguous_strides
from peregrine.compiler.operators import DOMAIN
from peregrine.compiler.plan import Place

# Standard operators that have tactics of their own, which write where they are told.
_WRITES_IN_PLACE = {"MaxPool", "GlobalAveragePool"}


@dataclass(frozen=True, slots=True)
class Location:
    """A value's place; `root` is the value whose memory it is a slice of, itself if of none."""

    type: TensorType
    place: Place
    root: str
    offset: int = 0
    """Bytes from the start of the root."""


def operator_name(node: ir.Node) -> str:
    """`ai.onnx.Relu`, `peregrine.Conv`."""
    return f"{node.domain or 'ai.onnx'}.{node.op_type}"


def value_type(value: ir.Value) -> tuple[str, tuple[int, ...] | None]:
    """dtype (numpy's name, "" where nobody inferred it) and sizes (None where not all known)."""
    dtype = value.dtype.numpy().name if value.dtype is not None else ""
    shape = value.shape
    if shape is None:
        return dtype, None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return dtype, sizes if len(sizes) == len(shape) else None


def locate(graph: ir.Graph) -> dict[str, Location]:
    """The location of every graph input and of every node's output."""
    outputs = {value.name for value in graph.outputs}
    found: dict[str, Location] = {}
    for value in graph.inputs:
        dtype, shape = value_type(value)
        strides = None if shape is None else contiguous_strides(shape)
        found[value.name or ""] = Location(
            TensorType(dtype, shape, strides), Place.INPUT, value.name or ""
        )
    for node in graph:
        for value in node.outputs:
            if value.name:
                found[value.name] = _own_location(node, value, value.name in outputs)
    # A later concatenation may hold an earlier one: parents first.
    for node in reversed(list(graph)):
        found |= _slices(node, found)
    for node in graph:
        found |= _pieces(node, found, outputs)
    return found


def _own_location(node: ir.Node, value: ir.Value, is_output: bool) -> Location:
    dtype, shape = value_type(value)
    name = value.name or ""
    if shape is None or not dtype:
        return Location(TensorType(dtype, None, None), Place.STEP, name)
    planned = (
        node.domain == DOMAIN
        or (node.op_type in _WRITES_IN_PLACE and len(node.outputs) == 1)
        or any(use.node.domain == DOMAIN for use in value.uses())
    )
    if not planned and not is_output and not _eliminated(node):
        return Location(TensorType(dtype, shape, None), Place.STEP, name)
    strides = channels_last_strides(shape) if len(shape) == 4 else contiguous_strides(shape)
    place = Place.OUTPUT if is_output else Place.ARENA
    return Location(TensorType(dtype, shape, strides), place, name)


def _eliminated(node: ir.Node) -> bool:
    """Whether a concatenation needs no work: of images or of their channels, each made by a node
    for it alone to hold in its own memory."""
    if node.domain or node.op_type != "Concat" or len(node.inputs) < 2:
        return False
    output = node.outputs[0]
    if output.shape is None or len(output.shape) != 4 or _axis(node) not in (0, 1):
        return False
    values = list(node.inputs)
    graph_outputs = {id(v) for v in node.graph.outputs} if node.graph is not None else set()
    return len({id(v) for v in values}) == len(values) and all(
        value is not None
        and (producer := value.producer()) is not None
        and (
            producer.domain == DOMAIN
            or producer.op_type in _WRITES_IN_PLACE
            or _eliminated(producer)
        )
        and id(value) not in graph_outputs
        and value_type(value)[1] is not None
        and _concatenations(value) == 1
        for value in values
    )


def _concatenations(value: ir.Value) -> int:
    """How many concatenations read it: it can lie in one of them alone."""
    return sum(use.node.op_type == "Concat" and not use.node.domain for use in value.uses())


def _slices(node: ir.Node, found: Mapping[str, Location]) -> dict[str, Location]:
    """New locations of what an eliminated concatenation reads, within what it writes."""
    if not _eliminated(node):
        return {}
    whole = found[node.outputs[0].name or ""]
    return _along(whole, _axis(node), [value.name or "" for value in node.inputs if value], found)


def _pieces(
    node: ir.Node, found: Mapping[str, Location], outputs: set[str | None]
) -> dict[str, Location]:
    """New locations of what a Split over the images of a planned tensor makes: parts of that."""
    if node.domain or node.op_type != "Split" or node.inputs[0] is None:
        return {}
    whole = found.get(node.inputs[0].name or "")
    names = [value.name or "" for value in node.outputs]
    if (
        whole is None
        or whole.place not in (Place.ARENA, Place.INPUT)
        or whole.type.strides is None
        or _axis(node) != 0
        or any(name in outputs or not name or found[name].type.shape is None for name in names)
    ):
        return {}
    return _along(whole, 0, names, found)


def _along(
    whole: Location, axis: int, names: Sequence[str], found: Mapping[str, Location]
) -> dict[str, Location]:
    """Locations one after the other within a tensor."""
    assert whole.type.strides is not None
    step = whole.type.strides[axis] * whole.type.itemsize
    at, slices = 0, {}
    for name in names:
        part = found[name].type
        assert part.shape is not None
        slices[name] = Location(
            TensorType(part.dtype, part.shape, whole.type.strides),
            whole.place,
            whole.root,
            whole.offset + at * step,
        )
        at += part.shape[axis]
    return slices


def _axis(node: ir.Node) -> int:
    """Of a Concat or Split of tensors whose rank is known; from the front."""
    kept = node.attributes.get("axis")
    axis = kept.as_int() if kept is not None else 0
    shape = node.outputs[0].shape
    return axis + len(shape) if axis < 0 and shape is not None else axis


def is_free(node: ir.Node, found: Mapping[str, Location]) -> bool:
    """Whether a node is a concatenation whose inputs lie in its output already, or a Split whose
    outputs lie in its input."""
    if node.op_type == "Split" and not node.domain and node.inputs[0] is not None:
        whole = found.get(node.inputs[0].name or "")
        roots = {found[value.name].root for value in node.outputs if value.name}
        return whole is not None and roots == {whole.root}
    if not _eliminated(node):
        return False
    root = found[node.outputs[0].name or ""].root
    return all(value is not None and found[value.name or ""].root == root for value in node.inputs)
