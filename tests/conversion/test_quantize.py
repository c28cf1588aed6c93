"""Static INT8 graphs: their form, what they lose, and what is chosen and kept."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance import scaled_error
from converting import calibration, job, run, small, worst_error
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.quantize import (
    choose,
    collect_ranges,
    fusing_is_exact,
    judge,
    make_static,
    quantize,
)
from peregrine.conversion.saturation import reduces_range
from peregrine.errors import OptionError, Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.load import load
from peregrine.results import CalibratorTrial
from photo_arrays import read_images
from real_networks import shared_data
from small_models import SMALL

TASTES = {Graph.U8S8: TensorProto.UINT8, Graph.S8S8: TensorProto.INT8}
BOTH = pytest.mark.parametrize("graph", TASTES)


def _constants(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("name", SMALL)
@BOTH
def test_small_networks_lose_what_8_bits_lose(name, graph, tmp_path):
    model = small(name, tmp_path)
    work = job(model, graph, tmp_path, calibrator="minmax")
    made = make_static(work)
    path = work.out / "model.onnx"
    assert made.converted
    # A step of an 8-bit scale is 1/255 of the range, and a few layers add up.
    assert 0 < worst_error(model, path, optimized=fusing_is_exact(graph)) < 0.06


@BOTH
def test_weights_are_signed_per_channel_and_activations_of_the_taste(graph, tmp_path):
    work = job(small("residual", tmp_path), graph, tmp_path, calibrator="minmax")
    make_static(work)
    proto = onnx.load(work.out / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    constants = _constants(proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convs) == 3
    for conv in convs:
        activation, weight = (makers[name] for name in conv.input[:2])
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (16,)
        assert not constants[weight.input[2]].any()
        zero = constants[activation.input[2]]
        assert helper.np_dtype_to_tensor_dtype(zero.dtype) == TASTES[graph]
        # TensorRT: no zero points, fp32 biases, no pair shared between products.
        if graph is Graph.S8S8:
            assert zero == 0
            assert constants[conv.input[2]].dtype == np.float32
            assert sum(activation.output[0] in other.input for other in convs) == 1
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@BOTH
def test_kept_nodes_compute_in_fp32(graph, tmp_path):
    work = job(small("residual", tmp_path), graph, tmp_path, calibrator="minmax")
    kept = "/conv1/Conv"
    work = job(
        work.model,
        graph,
        tmp_path,
        calibrator="minmax",
        keep=frozenset({kept}),
        calibration=work.calibration,
    )
    made = make_static(work)
    proto = onnx.load(work.out / "model.onnx")
    conv = next(node for node in proto.graph.node if node.name == kept)
    assert _constants(proto)[conv.input[1]].dtype == np.float32
    assert made.converted["Conv"] == 2
    assert made.left == {"Conv": 1}


def test_another_keep_needs_no_calibration_data_again(tmp_path):
    work = job(small("residual", tmp_path), Graph.U8S8, tmp_path)
    before = work.prepared.SerializeToString(deterministic=True)
    found = collect_ranges(work)
    shutil.rmtree(work.calibration.directory)
    assert list(found) == ["minmax", "entropy", "percentile"]
    names = [n.name for n in work.prepared.graph.node if n.op_type in ("Conv", "Gemm")]
    errors = []
    for kept in range(len(names) + 1):
        made = quantize(work.prepared, found["minmax"], Graph.U8S8, names[:kept])
        errors.append(worst_error(work.model, made))
    assert errors[0] > errors[-1]
    assert errors[-1] < 1e-5
    assert work.prepared.SerializeToString(deterministic=True) == before


def test_every_calibrator_is_tried_and_the_best_is_kept(tmp_path):
    work = job(small("conv", tmp_path), Graph.U8S8, tmp_path)
    made = make_static(work)
    assert [trial.calibrator for trial in made.tried] == ["minmax", "entropy", "percentile"]
    assert made.calibrator == choose(made.tried)
    assert all(trial.agreement is not None for trial in made.tried)
    named = job(
        work.model, Graph.U8S8, tmp_path, calibration=work.calibration, calibrator="entropy"
    )
    made = make_static(named)
    assert made.calibrator == "entropy"
    assert made.tried == ()


def test_of_near_errors_agreement_decides():
    minmax = CalibratorTrial("minmax", 0.100, 0.90)
    percentile = CalibratorTrial("percentile", 0.103, 0.95)
    entropy = CalibratorTrial("entropy", 0.2, 1.0)
    assert choose([minmax, entropy, percentile]) == "percentile"
    assert choose([minmax, entropy]) == "minmax"


def test_nan_is_never_chosen():
    want = [[np.ones((1, 3), np.float32)]]
    bad = judge("entropy", want, [[np.full((1, 3), np.nan, np.float32)]], True)
    good = judge("minmax", want, [[np.full((1, 3), 5, np.float32)]], True)
    assert choose([bad, good]) == "minmax"


def test_products_of_two_activations_stay_in_fp32(tmp_path):
    model = small("attention", tmp_path)
    work = job(model, Graph.U8S8, tmp_path, calibrator="minmax")
    constants = {tensor.name for tensor in work.prepared.graph.initializer}
    products = [n for n in work.prepared.graph.node if n.op_type == "MatMul"]
    two = {n.name for n in products if n.input[1] not in constants}
    assert two
    make_static(work)
    proto = onnx.load(work.out / "model.onnx")
    dequantized = {
        name for n in proto.graph.node if n.op_type == "DequantizeLinear" for name in n.output
    }
    for node in proto.graph.node:
        if node.name in two:
            assert not dequantized.issuperset(node.input)


def test_shared_weights_are_right_in_every_place(tmp_path):
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["a"], transB=1),
            helper.make_node("Relu", ["a"], ["c"]),
            helper.make_node("Gemm", ["c", "w", "b"], ["d"], transB=1),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [
            numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=8).astype(np.float32), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m")
    for graph_name in TASTES:
        work = job(model, graph_name, tmp_path, calibrator="minmax")
        make_static(work)
        fused = fusing_is_exact(graph_name)
        assert worst_error(model, work.out / "model.onnx", optimized=fused) < 0.05


def test_an_unknown_calibrator_is_refused(tmp_path):
    with pytest.raises(OptionError, match="'median'"):
        make_static(job(small("conv", tmp_path), Graph.U8S8, tmp_path, calibrator="median"))


def test_missing_calibration_is_refused(tmp_path):
    with pytest.raises(Unsupported, match="needs calibration data"):
        make_static(job(small("conv", tmp_path), Graph.U8S8, tmp_path, calibration=None))


def test_a_graph_without_products_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    with pytest.raises(Unsupported, match="nothing to quantise"):
        make_static(job(model, Graph.U8S8, tmp_path / "out"))


def test_photos_keep_their_class(tmp_path):
    data = shared_data()
    model = load(data / "models" / "efficientnet_lite0.onnx", tmp_path / "model")
    photos = read_images(data / "images", model, limit=56).pixels
    (tmp_path / "calibration").mkdir()
    kept = Calibration.write(tmp_path / "calibration", model, [{"input": photos[:16]}], "16 photos")
    work = job(model, Graph.U8S8, tmp_path, calibration=kept, calibrator="minmax")
    made = make_static(work)
    assert made.converted["Conv"] == 49
    assert not made.left
    feeds = {"input": photos[16:]}
    (expected,) = run(model.onnx_path, feeds, optimized=True)
    (found,) = run(work.out / "model.onnx", feeds, optimized=True)
    assert np.mean(expected.argmax(1) == found.argmax(1)) >= 0.9
    # Steps of 7-bit weights are twice as wide: 0.20 instead of 0.10.
    assert scaled_error(found, expected) < (0.25 if reduces_range(Graph.U8S8) else 0.2)


def test_ranges_need_every_input_of_a_network_of_tokens(tmp_path):
    model = small("int_input", tmp_path)
    work = job(model, Graph.U8S8, tmp_path, calibration=calibration(model, tmp_path, 8))
    bounds = collect_ranges(work, ["minmax"])["minmax"]
    assert "ids" not in bounds
    assert bounds
