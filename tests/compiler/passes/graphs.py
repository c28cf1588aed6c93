"""Small graphs in ONNX's text form, and what every test of a pass checks on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.helper import np_dtype_to_tensor_dtype

from compiler.fused_reference import run
from peregrine.compiler.passes.rewriting import attributes_of
from peregrine.types import Array

TOLERANCES = {np.dtype(np.float32): 1e-6, np.dtype(np.float16): 2e-3}
TOLERANCES[np.dtype(ml_dtypes.bfloat16)] = 2e-2


class Arrays:
    """Random normal arrays of a seed, which is printed for a failing test."""

    def __init__(self, seed: int, dtype: type = np.float32) -> None:
        print(f"seed {seed}")
        self._rng = np.random.default_rng(seed)
        self._dtype = dtype

    def __call__(self, *shape: int) -> Array:
        """Of variance 1 as inputs; as weights the fan-in keeps outputs of order 1."""
        fan_in = np.prod(shape[1:]) if len(shape) > 2 else 1
        return np.asarray(self._rng.standard_normal(shape) / np.sqrt(fan_in)).astype(self._dtype)

    def positive(self, *shape: int) -> Array:
        return np.asarray(self._rng.uniform(0.5, 2, shape)).astype(self._dtype)

    def image(self, *shape: int) -> Array:
        return np.asarray(self._rng.standard_normal(shape)).astype(self._dtype)


def graph(
    body: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> ir.Model:
    """A graph with a node a line, its inputs of the shapes and dtypes of `feeds`, all sizes and
    dtypes inferred. Nodes are named after their first outputs."""
    nodes = [onnx.parser.parse_node(line) for line in body.strip().splitlines()]
    for node in nodes:
        node.name = node.output[0]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [
                helper.make_tensor_value_info(
                    name, np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def operators(model: ir.Model) -> list[str]:
    """Operator types in the graph's order."""
    return [node.op_type for node in model.graph]


def counts(model: ir.Model) -> dict[str, int]:
    """Operator, with its domain where that is not ONNX's, -> how many."""
    return dict(Counter(f"{n.domain}.{n.op_type}".lstrip(".") for n in model.graph))


def the(model: ir.Model, op_type: str) -> ir.Node:
    """The one node of an operator."""
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def attributes(model: ir.Model, op_type: str) -> dict[str, object]:
    """Of the one node of an operator."""
    return attributes_of(the(model, op_type))


def prove(
    rewrite: ir.passes.InPlacePass,
    model: ir.Model,
    feeds: Mapping[str, Array],
    *,
    tolerance: float | None = None,
) -> ir.Model:
    """Run the pass. It must say that it changed something, leave the same function with the same
    inputs and outputs, all sizes and dtypes known and as they are, and find nothing more to do."""
    before = run(model, feeds)
    signature = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    result = rewrite(model)
    assert result.modified
    assert result.model is model
    assert signature == [
        (v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)
    ]
    same(run(model, feeds), before, tolerance)
    _check_values(model, feeds)
    while rewrite(model).modified:  # what one change makes possible
        same(run(model, feeds), before, tolerance)
    return model


def untouched(rewrite: ir.passes.InPlacePass, model: ir.Model) -> None:
    """The pass must leave the graph as it is, and say so."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not rewrite(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def same(outputs: Sequence[Array], wanted: Sequence[Array], tolerance: float | None) -> None:
    for output, want in zip(outputs, wanted, strict=True):
        assert output.dtype == want.dtype
        assert output.shape == want.shape
        allowed = TOLERANCES[want.dtype] if tolerance is None else tolerance
        difference = np.linalg.norm(output.astype(np.float64) - want.astype(np.float64))
        assert difference <= allowed * np.linalg.norm(want.astype(np.float64))


def _check_values(model: ir.Model, feeds: Mapping[str, Array]) -> None:
    """Every value's shape and dtype are known, and are those that it has when it is run."""
    values = [value for node in model.graph for value in node.outputs if value.name]
    probe = ir.from_proto(ir.to_proto(model))
    by_name = {v.name: v for node in probe.graph for v in node.outputs}
    probe.graph.outputs[:] = [by_name[value.name] for value in values]
    for value, array in zip(values, run(probe, feeds), strict=True):
        assert value.dtype is not None
        assert value.shape is not None
        assert tuple(value.shape) == array.shape
