"""Dynamic INT8: right on recurrent networks and transformers, refused where it has no place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converting import job, small, worst_error
from peregrine.conversion.dynamic import make_dynamic
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.inputs import parse_input
from peregrine.model.load import load
from real_networks import shared_data


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("lstm", {"Gemm": 1, "LSTM": 1}),
        ("attention", {"MatMul": 4}),
        ("int_input", {"Gemm": 1}),
        ("bool_input", {"MatMul": 1}),
    ],
)
def test_small_networks_lose_what_8_bits_lose(name, converted, tmp_path):
    work = job(small(name, tmp_path), Graph.DYNAMIC, tmp_path)
    made = make_dynamic(work)
    assert made.converted == converted
    assert made.left == {}
    assert 0 < worst_error(work.model, work.out / "model.onnx", optimized=True) < 0.03


def test_convolutions_are_left(tmp_path):
    work = job(small("conv", tmp_path), Graph.DYNAMIC, tmp_path)
    made = make_dynamic(work)
    assert made.left == {"Conv": 2}
    operators = {node.op_type for node in onnx.load(work.out / "model.onnx").graph.node}
    assert "ConvInteger" not in operators


def test_kept_nodes_compute_in_fp32(tmp_path):
    model = small("dynamic_batch", tmp_path)
    both = job(model, Graph.DYNAMIC, tmp_path)
    names = [node.name for node in both.prepared.graph.node if node.op_type == "Gemm"]
    one = job(model, Graph.DYNAMIC, tmp_path, keep=frozenset(names[:1]))
    made = make_dynamic(one)
    assert made.converted == {"Gemm": 1}
    assert made.left == {"Gemm": 1}
    kinds = [node.op_type for node in onnx.load(one.out / "model.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 1
    with pytest.raises(Unsupported, match="nothing to quantise"):
        make_dynamic(job(model, Graph.DYNAMIC, tmp_path, keep=frozenset(names)))


@pytest.mark.parametrize("name", ["depthwise", "dynamic_width"])
def test_a_network_of_convolutions_is_refused(name, tmp_path):
    with pytest.raises(Unsupported, match="nothing to quantise"):
        make_dynamic(job(small(name, tmp_path), Graph.DYNAMIC, tmp_path))


def test_gemms_that_share_weights_are_right(tmp_path):
    rng = np.random.default_rng(0)
    nodes = []
    for layer, (source, target) in enumerate([("x", "a"), ("a", "b"), ("b", "c"), ("c", "y")]):
        nodes.append(helper.make_node("Gemm", [source, "w", "bias"], [f"g{layer}"], transB=1))
        nodes.append(helper.make_node("Tanh", [f"g{layer}"], [target]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [
            numpy_helper.from_array(rng.normal(size=(16, 16)).astype(np.float32) / 4, "w"),
            numpy_helper.from_array(rng.normal(size=16).astype(np.float32), "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m")
    work = job(model, Graph.DYNAMIC, tmp_path)
    assert make_dynamic(work).converted == {"Gemm": 4}
    assert worst_error(model, work.out / "model.onnx", optimized=True) < 0.03


REAL = {
    "silero_vad_op18_ifless": {
        "dims": {"sequence": 576},
        "inputs": [parse_input("sr:int64:scalar=16000")],
    },
    "ppocrv4_rec": {"dims": {"height": 48, "width": 320}},
    "magika_v3_3": {},
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_lose_what_8_bits_lose(name, tmp_path):
    model = load(shared_data() / "models" / f"{name}.onnx", tmp_path / "m", **REAL[name])
    work = job(model, Graph.DYNAMIC, tmp_path)
    made = make_dynamic(work)
    assert made.converted
    assert worst_error(model, work.out / "model.onnx", optimized=True, batch=1) < 0.05
