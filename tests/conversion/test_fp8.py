"""FP8 graphs: their form, what they lose on a CPU, and that TensorRT-RTX builds them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from conformance import target
from converting import calibration, job, small, worst_error
from peregrine.backends._trt_engine import build_engine, installed_module
from peregrine.conversion.convert import convert
from peregrine.conversion.fp8 import make_fp8, scale_of
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision
from small_models import SMALL


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_lose_what_3_bits_of_mantissa_lose(name, tmp_path):
    work = job(small(name, tmp_path), Graph.FP8, tmp_path)
    assert make_fp8(work).converted
    # Half a step of E4M3 is 1/16 of a value; sums of many average it out.
    assert 1e-5 < worst_error(work.model, work.out / "model.onnx") < 0.06


def test_weights_are_stored_in_fp8_per_channel_and_the_rest_is_float16(tmp_path):
    work = job(small("residual", tmp_path), Graph.FP8, tmp_path)
    made = make_fp8(work)
    assert made.converted == {"Conv": 3, "Gemm": 1}
    proto = onnx.load(work.out / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    tensors = {t.name: t for t in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    for conv in (node for node in proto.graph.node if node.op_type == "Conv"):
        activation, weight = (makers[name] for name in conv.input[:2])
        assert tensors[weight.input[0]].data_type == TensorProto.FLOAT8E4M3FN
        assert list(tensors[weight.input[1]].dims) == [16]
        assert list(tensors[activation.input[1]].dims) == []
        for pair in (activation, weight):
            assert tensors[pair.input[1]].data_type == TensorProto.FLOAT16
    assert not any(t.data_type == TensorProto.FLOAT for t in tensors.values())
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_kept_nodes_have_no_pairs(tmp_path):
    model = small("residual", tmp_path)
    work = job(model, Graph.FP8, tmp_path, keep=frozenset({"/conv1/Conv"}))
    made = make_fp8(work)
    assert made.converted == {"Conv": 2, "Gemm": 1}
    assert made.left == {"Conv": 1}
    proto = onnx.load(work.out / "model.onnx")
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    (kept,) = (node for node in proto.graph.node if node.name == "/conv1/Conv")
    assert "DequantizeLinear" not in {makers.get(name) for name in kept.input}


def test_a_graph_whose_products_are_all_kept_is_refused(tmp_path):
    model = small("dynamic_batch", tmp_path)
    names = [n.name for n in job(model, Graph.FP8, tmp_path).prepared.graph.node]
    with pytest.raises(Unsupported, match="nothing to quantise"):
        make_fp8(job(model, Graph.FP8, tmp_path, keep=frozenset(names)))


@given(st.floats(0, 1e6))
def test_a_scaled_amax_fits(amax):
    scale = float(scale_of(np.array(amax), 28.0))
    assert scale > 0
    assert np.isfinite(scale)
    assert amax / scale <= 28


@pytest.mark.parametrize("name", ["conv", "residual", "depthwise", "attention", "resnet18"])
def test_tensorrt_rtx_builds_it(name, tmp_path):
    if installed_module() != "tensorrt_rtx":
        pytest.skip("TensorRT-RTX, which builds without a GPU, is not installed")
    model = small(name, tmp_path) if name in SMALL else load(name, tmp_path / name)
    convert(model, Graph.FP8, tmp_path / "fp8", calibration=calibration(model, tmp_path, 4))
    made = Model.open(tmp_path / "fp8")
    candidate = Candidate("tensorrt", "", Precision.FP8, {}, "fp8")
    engine = build_engine(made, candidate, target(made))
    if name == "resnet18":  # 11.7 million weights of one byte
        assert 11.5e6 < len(engine) < 20e6
    assert engine
