"""Graphs for a processor without VNNI: weights in 7 bits, said, and never taken for the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converting import calibration, job, run, small
from peregrine.conversion import saturation
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.convert import convert
from peregrine.conversion.dynamic import make_dynamic
from peregrine.conversion.nncf import make_nncf
from peregrine.conversion.quantize import make_static
from peregrine.conversion.ranges import open_session
from peregrine.conversion.untracked import import_openvino
from peregrine.model.graphs import Graph
from peregrine.model.load import load

AVX2 = ("avx", "avx2", "fma")
VNNI = (*AVX2, "avx512_vnni", "avx512bw", "avx512f", "avx512vl")
MAKERS = {Graph.U8S8: make_static, Graph.S8S8: make_static, Graph.DYNAMIC: make_dynamic}


@pytest.fixture
def processor(monkeypatch):
    """Make conversions for a processor of these flags and this architecture."""

    def become(flags, machine="x86_64"):
        monkeypatch.setattr(saturation, "cpu_flags", lambda: flags)
        monkeypatch.setattr(saturation.platform, "machine", lambda: machine)

    return become


@pytest.mark.parametrize(
    ("flags", "machine", "clipped"),
    [
        (AVX2, "x86_64", True),
        ((*AVX2, "avx512bw", "avx512f", "avx512vl"), "x86_64", True),
        ((), "AMD64", True),
        (VNNI, "x86_64", False),
        ((*AVX2, "avx_vnni"), "AMD64", False),
        (("asimd",), "aarch64", False),
        (("asimd", "asimddp"), "arm64", False),
        ((), "ppc64le", False),
    ],
)
def test_only_x86_without_vnni_saturates(flags, machine, clipped):
    assert saturation.saturates(flags, machine) is clipped


def test_the_processor_of_this_machine_adds_as_is_said(tmp_path):
    """Bytes at their limits, in full 8 bits: their sums are clipped, or exact."""
    channels = 64
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, channels])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(np.full((channels, 16), 127, np.int8), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(proto, optimized=True)
    (found,) = session.run(None, {"x": np.full((1, channels), 255, np.uint8)})
    exact = bool((found == channels * 255 * 127).all())
    assert exact is not saturation.saturates()


def _integer_weights(path):
    """Constants of int8 that are not zero points."""
    constants = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    return [c for c in constants if c.dtype == np.int8 and c.any()]


@pytest.mark.parametrize(
    ("graph", "network", "flags", "most", "notes"),
    [
        (Graph.U8S8, "residual", AVX2, 64, (saturation.NOTE,)),
        (Graph.U8S8, "residual", VNNI, 127, ()),
        (Graph.DYNAMIC, "attention", AVX2, 64, (saturation.NOTE,)),
        (Graph.DYNAMIC, "attention", VNNI, 127, ()),
        (Graph.S8S8, "residual", AVX2, 127, ()),
    ],
)
def test_weights_keep_to_the_bits_that_are_safe(
    graph, network, flags, most, notes, processor, tmp_path
):
    processor(flags)
    options = {"calibrator": "minmax"} if graph.calibrated else {}
    work = job(small(network, tmp_path), graph, tmp_path, **options)
    made = MAKERS[graph](work)
    weights = _integer_weights(work.out / "model.onnx")
    assert weights
    assert max(np.abs(w.astype(int)).max() for w in weights) == most
    assert made.notes == notes


@pytest.mark.parametrize(("flags", "notes"), [(AVX2, (saturation.NOTE,)), (VNNI, ())])
def test_so_do_those_of_nncf(flags, notes, processor, tmp_path):
    pytest.importorskip("nncf")
    processor(flags)
    work = job(small("residual", tmp_path), Graph.NNCF, tmp_path, calibrator="minmax")
    made = make_nncf(work)
    operators = import_openvino().Core().read_model(work.out / made.file).get_ops()
    constants = [op for op in operators if op.get_type_name() == "Constant"]
    weights = [op.data for op in constants if op.get_element_type().get_type_name() == "i8"]
    largest = [int(np.abs(w.astype(int)).max()) for w in weights if w.ndim > 1]
    assert len(largest) > 1
    assert min(largest) <= 64  # nncf's first layer, everywhere
    assert (max(largest) <= 64) is bool(notes)
    assert made.notes == notes


def test_a_graph_for_one_processor_is_not_taken_on_another(processor, tmp_path):
    model = small("conv", tmp_path)
    data = calibration(model, tmp_path, 8)
    made = {}
    for name, flags in (("a", VNNI), ("b", AVX2), ("c", VNNI), ("d", AVX2)):
        processor(flags)
        made[name] = convert(model, Graph.U8S8, tmp_path / name, calibration=data)
    assert [one.cached for one in made.values()] == [False, False, True, True]
    assert made["b"].notes == (saturation.NOTE,)
    assert dataclasses.replace(made["d"], cached=False) == made["b"]
    content = {name: (tmp_path / name / "model.onnx").read_bytes() for name in made}
    assert content["a"] == content["c"] != content["b"] == content["d"]
    # TensorRT's graph is the same wherever it is made.
    processor(VNNI)
    convert(model, Graph.S8S8, tmp_path / "e", calibration=data, calibrator="minmax")
    processor(AVX2)
    again = convert(model, Graph.S8S8, tmp_path / "f", calibration=data, calibrator="minmax")
    assert again.cached


@pytest.mark.parametrize("seed", range(3))
def test_integer_kernels_compute_what_the_graph_says(seed, tmp_path):
    """A convolution of large like-signed weights over bright pixels, where clipping is worst: its
    fused kernels and its Q/DQ pairs in fp32 agree, on whatever processor this is."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1, (16, 16, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = load(proto, tmp_path / "m")
    feeds = {"x": rng.uniform(2, 4, (4, 16, 8, 8)).astype(np.float32)}
    data = Calibration.write(tmp_path, model, [feeds], "bright pixels")
    work = job(model, Graph.U8S8, tmp_path, calibration=data, calibrator="minmax")
    make_static(work)
    made = work.out / "model.onnx"
    (exact,) = run(made, feeds)
    (fused,) = run(made, feeds, optimized=True)
    np.testing.assert_allclose(fused, exact, rtol=0.02)
