"""Looking into a graph while it runs: its tensors beside those of its conversion, and what one
node's loss does to the outputs.

Both graphs here are cut where tensors of the fp32 graph and of its conversion have one name.
Every converter keeps the names of the tensors it does not make itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from peregrine.conversion.prepare import at_opset, opset
from peregrine.conversion.ranges import open_session
from peregrine.errors import Unsupported
from peregrine.types import Array, Feeds

CONVERTED = "converted//"
"""Before the names of the conversion's tensors, where both graphs are in one."""
_BEFORE = "before//"
"""Before the name of a tensor that the conversion has without its activation function, or in
another type."""
_NARROW = "narrow//"
"""Before the name of an fp32 tensor, cast to the type that the conversion has there."""
_EXACT = "exact//"
_DELTA = "delta//"
_MERGED = ("Relu", "Clip")


class Runner:
    """A graph in ONNX Runtime on the CPU.

    Without `optimised` every node runs as it is written: roundings that an optimiser would fold
    away stay, and Q/DQ pairs are computed in fp32 around the node instead of being fused into it.

    Raises:
        Unsupported: ONNX Runtime does not take the graph, or does not run it.
    """

    def __init__(self, graph: onnx.ModelProto, *, optimised: bool) -> None:
        self._session = open_session(graph, optimized=optimised)
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """All outputs by name."""
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise Unsupported(
                "ONNX Runtime does not run the converted graph.", why=str(error).strip()[:600]
            ) from error
        return dict(zip(self.outputs, values, strict=True))


@dataclass(frozen=True, slots=True)
class Wiring:
    """Who makes and who reads a graph's tensors. Bodies of If, Loop and Scan are not entered."""

    nodes: Mapping[str, onnx.NodeProto]
    """By name."""
    maker: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, tuple[onnx.NodeProto, ...]]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.ModelProto) -> Wiring:
        maker, readers = {}, dict[str, tuple[Any, ...]]()
        for node in graph.graph.node:
            for name in node.output:
                maker[name] = node
            for name in set(node.input) - {""}:
                readers[name] = (*readers.get(name, ()), node)
        constants = {tensor.name: tensor for tensor in graph.graph.initializer}
        return cls({node.name: node for node in graph.graph.node}, maker, readers, constants)

    def data(self, node: onnx.NodeProto) -> list[str]:
        """Inputs of a node that are computed, not constant."""
        return [name for name in node.input if name and name not in self.constants]


def merged_nodes(exact: onnx.ModelProto, converted: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> the node that makes it in the conversion, where the activation function that
    makes it in fp32 is gone: unsigned integers that start at zero are a ReLU by themselves."""
    before, after = Wiring.of(exact), Wiring.of(converted)
    return {
        name: after.maker[name].name
        for name, node in before.maker.items()
        if node.op_type in _MERGED
        and node.name not in after.nodes
        and name in after.maker
        and after.maker[name].name in before.nodes
    }


def side_by_side(exact: onnx.ModelProto, converted: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of both, in which every converted node reads fp32 tensors.

    A tensor `t` that both have comes out twice: `t` as the fp32 graph computes it, and
    `converted//t`: what the converted nodes between `t` and the next tensors before it make of
    these in fp32. So an error is that of one node, not of all nodes before it. Q/DQ pairs and
    roundings count for the node that reads them where the converter put them behind `t`, and for
    the node that makes `t` where it put them before.
    """
    # A converter may have raised the version for an operator that it needs.
    if opset(converted) > opset(exact):
        exact = at_opset(exact, opset(converted))
    made = onnx.ModelProto()
    made.CopyFrom(exact)
    known = {name for node in exact.graph.node for name in node.output if name}
    known |= {value.name for value in exact.graph.input}
    constants = {tensor.name for tensor in exact.graph.initializer}
    # Constants of one name may differ: a converter may round a weight in place. Names that only the
    # conversion has stay, since the bodies of If and Loop read them too.
    renamed = {
        t.name: CONVERTED + t.name if t.name in known | constants else t.name
        for t in converted.graph.initializer
    }
    for tensor in converted.graph.initializer:
        copy = made.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = renamed[tensor.name]
    exact_wiring, merged = Wiring.of(exact), merged_nodes(exact, converted)
    narrow = {name: kind for name, kind in _types(converted).items() if name in known}

    def cast(source: str, target: str, to: int) -> None:
        made.graph.node.append(onnx.helper.make_node("Cast", [source], [target], target, to=to))

    narrowed: set[str] = set()
    shown = []
    for node in converted.graph.node:
        for name in sorted(set(node.input) & narrow.keys() - narrowed):
            cast(name, _NARROW + name, narrow[name])
            narrowed.add(name)
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        copy.name = CONVERTED + node.name
        # Names of the conversion's own need no prefix; a name that both have is the fp32 one
        # wherever it is read, also inside the bodies of If and Loop.
        copy.input[:] = [
            _NARROW + name if name in narrow else renamed.get(name, name) for name in node.input
        ]
        copy.output[:] = [
            _BEFORE + n
            if n in merged or n in narrow
            else CONVERTED + n
            if n in known | constants
            else n
            for n in node.output
        ]
        for name in node.output:
            if name in merged:
                activation = made.graph.node.add()
                activation.CopyFrom(exact_wiring.maker[name])
                activation.name = CONVERTED + activation.name
                activation.input[0] = _BEFORE + name
                activation.output[0] = CONVERTED + name
            elif name in narrow:
                cast(_BEFORE + name, CONVERTED + name, onnx.TensorProto.FLOAT)
            if name in known:
                shown.append(name)
    _merge_opsets(made, converted)
    del made.graph.output[:]
    for name in shown:
        made.graph.output.add().name = name
        made.graph.output.add().name = CONVERTED + name
    del made.graph.value_info[:]
    return made


def _types(converted: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> its type, where that is a float narrower than float32."""
    narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    kinds = {v.name: v.type.tensor_type.elem_type for v in converted.graph.value_info}
    return {name: kind for name, kind in kinds.items() if kind in narrow}


def with_deltas(exact: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The fp32 graph with something to add to each of these float32 tensors: an input
    `delta//NAME` each, a scalar 0 for nothing, else of the tensor's shape."""
    made = onnx.ModelProto()
    made.CopyFrom(exact)
    wanted = set(tensors)
    nodes = []
    for node in made.graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in wanted:
                node.output[position] = _EXACT + name
                nodes.append(onnx.helper.make_node("Add", [_EXACT + name, _DELTA + name], [name]))
                value = made.graph.input.add()
                value.name = _DELTA + name
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(ordered)
    return made


class Sensitivity:
    """What adding to single tensors does to the outputs of an fp32 graph."""

    def __init__(self, exact: onnx.ModelProto, tensors: Iterable[str]) -> None:
        self._tensors = tuple(tensors)
        self._runner = Runner(with_deltas(exact, self._tensors), optimised=True)
        self._none = {_DELTA + name: np.zeros((), np.float32) for name in self._tensors}

    def run(self, feeds: Feeds, deltas: Feeds) -> dict[str, Array]:
        """Outputs with `deltas` added, by tensor."""
        given = {_DELTA + name: value for name, value in deltas.items()}
        return self._runner.run({**feeds, **self._none, **given})


def float_pairs(values: Mapping[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Name, fp32 value and converted value of the float32 tensors of a `side_by_side` run."""
    for name, value in values.items():
        twin = values.get(CONVERTED + name)
        if (
            isinstance(value, np.ndarray)
            and isinstance(twin, np.ndarray)
            and value.dtype == twin.dtype == np.float32
            and value.shape == twin.shape
            and value.size
        ):
            yield name, value, twin


def _merge_opsets(made: onnx.ModelProto, other: onnx.ModelProto) -> None:
    known = {entry.domain for entry in made.opset_import}
    made.opset_import.extend(e for e in other.opset_import if e.domain not in known)
    made.ir_version = max(made.ir_version, other.ir_version)
    functions = {(f.domain, f.name) for f in made.functions}
    made.functions.extend(f for f in other.functions if (f.domain, f.name) not in functions)
