"""Variances and norms stay float32 in fp16 and bf16, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.passes.graphs import same
from compiler.test_importing import by_runtime
from peregrine.compiler.importing import specialise
from peregrine.compiler.statistics import statistics
from peregrine.model.model import Model
from peregrine.types import Array, Precision, TensorSpec

WIDTH = 512
X = TensorSpec("x", "float32", ("batch", WIDTH))
CONSTANTS = {
    "axis": np.array([-1]),
    "share": np.float32(1 / WIDTH),
    "zero": np.float32(0),
    "tiny": np.float32(1e-6),
    "two": np.float32(2),
    "gain": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32),
}

# As Flax computes it: E[x^2] - E[x]^2.
BY_MOMENTS = """
s = ReduceSum(x0, axis)
mean = Mul(s, share)
square = Mul(x0, x0)
s2 = ReduceSum(square, axis)
mean2 = Mul(s2, share)
squared = Mul(mean, mean)
difference = Sub(mean2, squared)
spread = Max(zero, difference)
raised = Add(spread, tiny)
root = Sqrt(raised)
inverse = Reciprocal(root)
off = Sub(x0, mean)
scaled = Mul(inverse, gain)
y = Mul(off, scaled)
"""
# As PyTorch exported it before opset 17.
BY_OFFSETS = """
mean = ReduceMean<axes=[-1]>(x0)
off = Sub(x0, mean)
square = Pow(off, two)
spread = ReduceMean<axes=[-1]>(square)
raised = Add(spread, tiny)
root = Sqrt(raised)
normal = Div(off, root)
y = Mul(normal, gain)
"""
UNIT = """
norm = ReduceL2<axes=[-1]>(x0)
least = Max(norm, tiny)
unit = Div(x0, least)
y = Mul(unit, gain)
"""
KEPT = {
    BY_MOMENTS: {
        *("s", "mean", "square", "s2", "mean2", "squared", "difference", "spread", "raised"),
        *("root", "inverse"),
    },
    BY_OFFSETS: {"square", "spread", "raised", "root"},
    UNIT: {"norm", "least"},
}


def network(directory: Path, body: str) -> Model:
    """Its numbers are large behind a first layer, as the outliers of a transformer are."""
    nodes = [onnx.parser.parse_node(line) for line in body.strip().splitlines()]
    nodes.insert(0, onnx.parser.parse_node("x0 = Relu(x)"))
    for node in nodes:
        node.name = node.output[0]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(X.name, TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in CONSTANTS.items() if n in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, directory / "model.onnx")
    return Model("network", directory, (X,), (), batch="batch", onnx="model.onnx")


def large() -> dict[str, Array]:
    return {"x": np.random.default_rng(0).normal(20, 300, (3, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("body", KEPT, ids=["moments", "offsets", "unit"])
def test_what_sums_squares_stays_and_what_meets_the_tensor_again_does_not(tmp_path, body):
    graph = specialise(network(tmp_path, body), {"batch": 3}, Precision.FP32).graph
    assert statistics(graph) == KEPT[body]


@pytest.mark.parametrize("body", KEPT, ids=["moments", "offsets", "unit"])
def test_numbers_whose_squares_overflow_float16(tmp_path, body):
    made = network(tmp_path, body)
    graph = specialise(made, {"batch": 3}, Precision.FP16)
    narrow = {
        v.name for node in graph.graph for v in node.outputs if v.dtype is not ir.DataType.FLOAT
    }
    assert not narrow & KEPT[body]
    assert narrow
    same(by_runtime(graph, large()), by_runtime(made, large()), 3e-3)


def test_sums_of_what_is_not_squared_are_narrow(tmp_path):
    """The means of squeeze-and-excitation, the sum of a softmax."""
    body = (
        "e = Exp(x0)\ns = ReduceSum(e, axis)\nm = ReduceMean<axes=[-1]>(x0)\n"
        "d = Mul(e, m)\ny = Div(d, s)"
    )
    graph = specialise(network(tmp_path, body), {"batch": 3}, Precision.FP32).graph
    assert statistics(graph) == set()
