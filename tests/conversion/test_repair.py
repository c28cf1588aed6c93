"""Repairs keep the right layers, keep no more than they must, and say what they did."""

from __future__ import annotations

import math
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fragile_networks import as_model, calibration, convolutional, overflowing
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.probe_tensors import Runner
from peregrine.conversion.repair import Repairer
from peregrine.conversion.trials import Judged, Limits, judge
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import Repair, from_builtins, to_builtins

INT8_LIMITS = Limits(scaled_error=0.2, top1_agreement=0.9)
FP16_LIMITS = Limits(scaled_error=0.01, top1_agreement=0.9)


def repairer(proto, graph, tmp_path, **options):
    model = as_model(proto, tmp_path / "model")
    data = calibration(model, tmp_path / "calibration")
    return Repairer(model, graph, data, **options)


def fresh_error(model: Model, repaired, seed=99) -> Judged:
    """A written graph against the model's own, on inputs that no repair has seen."""
    rng = np.random.default_rng(seed)
    (spec,) = model.inputs
    items = [
        {spec.name: rng.normal(0, 1, spec.resolve({"batch": 1})).astype(np.float32)}
        for _ in range(16)
    ]
    exact = Runner(onnx.load(model.onnx_path), optimised=False)
    made = Runner(onnx.load(repaired / "model.onnx"), optimised=True)
    return judge([exact.run(i) for i in items], [made.run(i) for i in items], True)


def test_one_outlier_channel_is_repaired_by_leaving_its_layer_out(tmp_path):
    """The channel is written by conv_2 and read by conv_3; between integers they share a scale."""
    made = repairer(convolutional(outlier=1000), Graph.U8S8, tmp_path)
    attempt = made.attempt(INT8_LIMITS, 120, tmp_path / "out")

    first, *_ = attempt.repair.steps
    assert (first.kept, first.passed) == (0, False)
    assert first.scaled_error > 0.2
    assert attempt.conversion is not None
    kept = attempt.conversion.kept
    assert {layer.node for layer in kept} == {"conv_2", "conv_3"}
    assert all(layer.reason.startswith("outliers: one channel of its ") for layer in kept)
    assert "1153 times the others' range" in kept[0].reason
    assert kept[0].error > 0.5
    assert attempt.repair.outcome.startswith(
        "2 of 7 layers kept in fp32: conv_3 and conv_2 (outliers: one channel"
    )
    assert attempt.conversion.graph == "u8s8+repaired"
    assert attempt.conversion.converted["Conv"] == 2

    model = Model.open(tmp_path / "model")
    assert Model.open(tmp_path / "out").graph == "u8s8+repaired"
    assert fresh_error(model, tmp_path / "out").scaled_error < 0.05


def test_where_each_reader_has_its_own_scale_one_layer_is_enough(tmp_path):
    made = repairer(convolutional(outlier=1000), Graph.S8S8, tmp_path)
    attempt = made.attempt(INT8_LIMITS, 120, tmp_path / "out")
    assert attempt.conversion is not None
    assert [layer.node for layer in attempt.conversion.kept] == ["conv_3"]
    assert attempt.conversion.kept[0].reason.startswith("outliers")


def test_openvino_is_repaired_by_the_same_layer(tmp_path):
    pytest.importorskip("nncf")
    made = repairer(convolutional(outlier=1000), Graph.NNCF, tmp_path)
    attempt = made.attempt(INT8_LIMITS, 120, tmp_path / "out")
    assert attempt.conversion is not None
    assert [layer.node for layer in attempt.conversion.kept] == ["conv_3"]
    assert (tmp_path / "out" / "model.xml").is_file()


def test_a_network_that_int8_suits_needs_no_repair(tmp_path):
    made = repairer(convolutional(), Graph.U8S8, tmp_path)
    attempt = made.attempt(INT8_LIMITS, 120, tmp_path / "out")
    assert attempt.conversion is None
    assert [(s.kept, s.passed) for s in attempt.repair.steps] == [(0, True)]
    assert attempt.repair.outcome.startswith("It needs no repair: on 24 calibration items")
    assert not (tmp_path / "out").exists()


def test_a_product_beyond_fp16_is_kept_with_the_node_that_brings_it_back(tmp_path):
    made = repairer(overflowing(scale=3e5), Graph.FP16, tmp_path)
    attempt = made.attempt(FP16_LIMITS, 120, tmp_path / "out")
    assert attempt.repair.steps[0].passed is False
    assert attempt.conversion is not None
    assert {layer.node for layer in attempt.conversion.kept} == {"large", "back"}
    assert all(layer.reason.startswith("range: its ") for layer in attempt.conversion.kept)
    assert "65504" in attempt.repair.outcome
    judged = fresh_error(Model.open(tmp_path / "model"), tmp_path / "out")
    assert judged.sound
    assert judged.scaled_error < 0.01


def test_bf16_holds_what_fp16_does_not(tmp_path):
    made = repairer(overflowing(scale=3e5), Graph.BF16, tmp_path)
    attempt = made.attempt(Limits(0.05, 0.9), 120, tmp_path / "out")
    assert attempt.repair.outcome.startswith("It needs no repair")


def test_fp8_does_not_hide_what_overflows_in_the_fp16_around_it(tmp_path):
    made = repairer(convolutional(outlier=1e5), Graph.FP8, tmp_path)
    attempt = made.attempt(Limits(0.2, 0.5), 120, tmp_path / "out")
    assert attempt.repair.steps[0].passed is False
    assert attempt.conversion is not None
    assert {"conv_2", "conv_3"} <= {layer.node for layer in attempt.conversion.kept}
    assert "range: its output reaches" in attempt.repair.outcome


def test_where_nothing_helps_it_says_how_far_it_came(tmp_path):
    made = repairer(convolutional(), Graph.U8S8, tmp_path)
    attempt = made.attempt(Limits(1e-5), 120, tmp_path / "out")
    assert attempt.conversion is None
    assert not any(step.passed for step in attempt.repair.steps)
    most = attempt.repair.steps[-1].kept
    assert 1 <= most <= 3
    assert attempt.repair.outcome.startswith(
        f"Nothing helps: even with {most} of 7 layers in fp32 the error is 0.0"
    )
    assert not (tmp_path / "out").exists()


def test_the_budget_ends_between_steps(tmp_path):
    made = repairer(convolutional(outlier=1000), Graph.U8S8, tmp_path)
    attempt = made.attempt(INT8_LIMITS, 0, tmp_path / "out")
    assert attempt.conversion is None
    assert attempt.repair.outcome.startswith(
        "The budget of 0 s ended after 1 step: with 0 layers in fp32 the error was still 0."
    )


def test_a_second_attempt_with_tighter_limits_keeps_more_and_ranks_no_more(tmp_path, monkeypatch):
    seen = []
    made = repairer(convolutional(outlier=1000), Graph.S8S8, tmp_path, progress=seen.append)
    first = made.attempt(INT8_LIMITS, 120, tmp_path / "out")
    assert list(first.repair.steps) == seen
    ranking = made.ranking(0)
    tighter = 0.9 * min(step.scaled_error for step in first.repair.steps if step.passed)
    second = made.attempt(Limits(tighter), 120, tmp_path / "again")
    assert made.ranking(0) is ranking
    assert second.conversion is not None
    assert first.conversion is not None
    assert len(second.conversion.kept) > len(first.conversion.kept)
    assert any(step.passed and step.scaled_error <= tighter for step in second.repair.steps)


def test_a_failure_that_is_not_the_conversions_is_said(tmp_path):
    """The file changes after the repairer has read it: its own fp32 no longer gives its outputs."""
    made = repairer(convolutional(), Graph.U8S8, tmp_path)
    assert made.trials.reference
    other = as_model(convolutional(outlier=2), tmp_path / "other")
    proto = onnx.load(other.onnx_path)
    for tensor in proto.graph.initializer:
        if tensor.name == "wf":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "wf"))
    onnx.save(proto, other.onnx_path)
    shutil.copy(other.onnx_path, tmp_path / "model" / "model.onnx")
    attempt = made.attempt(INT8_LIMITS, 120, tmp_path / "out")
    assert attempt.repair.steps == ()
    assert attempt.repair.outcome.startswith("The failure does not come from the conversion")


def test_a_graph_that_cannot_be_converted_ends_with_its_reason(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["logits"], "relu")]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        for name in ("x", "logits")
    ]
    graph = helper.make_graph(nodes, "bare", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    attempt = repairer(proto, Graph.DYNAMIC, tmp_path).attempt(INT8_LIMITS, 60, tmp_path / "out")
    assert attempt.conversion is None
    assert attempt.repair.outcome.startswith("The repair ended: ")
    assert "has nothing to quantise dynamically" in attempt.repair.outcome


def test_an_attempt_survives_the_wire(tmp_path):
    made = repairer(overflowing(scale=3e5), Graph.FP16, tmp_path)
    attempt = made.attempt(FP16_LIMITS, 120, tmp_path / "out")
    assert from_builtins(to_builtins(attempt.repair), Repair) == attempt.repair


def outputs(*rows):
    return [{"y": np.array([row], np.float32)} for row in rows]


def test_zeros_and_values_that_are_not_finite_never_pass():
    anything = Limits(scaled_error=math.inf)
    exact = outputs([1.0, 2.0], [3.0, 4.0])
    assert anything.passed(judge(exact, outputs([9.0, 9.0], [9.0, 9.0]), False))
    assert not anything.passed(judge(exact, outputs([1.0, 2.0], [0.0, 0.0]), False))
    assert not anything.passed(judge(exact, outputs([1.0, 2.0], [3.0, np.nan]), False))
    assert not anything.passed(judge(exact, outputs([1.0, 2.0], [3.0, np.inf]), False))
    assert not anything.passed(judge(exact, [{"y": np.zeros((1, 3), np.float32)}] * 2, False))


def test_judging_is_the_mean_over_items_of_the_worst_output():
    exact = [{"a": np.array([3.0, 4.0]), "b": np.array([2.0])} for _ in range(2)]
    got = [{"a": np.array([3.0, 4.5]), "b": np.array([2.0])}, {**exact[1], "b": np.array([2.5])}]
    found = judge(exact, got, False)
    assert found.scaled_error == pytest.approx(0.125)  # b: (0 + 0.25) / 2; a: (0.1 + 0) / 2
    assert found.agreement is None


def test_agreement_counts_for_classifiers():
    exact, got = outputs([1.0, 2.0], [4.0, 3.0]), outputs([1.1, 2.0], [3.4, 3.5])
    found = judge(exact, got, True)
    assert found.agreement == 0.5
    assert Limits(1.0, 0.5).passed(found)
    assert not Limits(1.0, 0.6).passed(found)


@pytest.mark.slow
def test_mobilenet_with_plain_weights_underflows_in_fp16_and_never_passes_as_zeros(tmp_path):
    """Unconditioned weights shrink activations layer by layer: in fp16 the logits are zeros."""
    torch = pytest.importorskip("torch")
    from peregrine.model.inputs import InputSpec
    from peregrine.model.load import load
    from peregrine.model.vision import torchvision_models
    from peregrine.types import TensorSpec

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision_models().mobilenet_v2(weights=None).eval()
    spec = InputSpec(TensorSpec("x", "float32", ("batch", 3, 96, 96)))
    model = load(network, tmp_path / "model", inputs=[spec], name="mobilenet_v2")
    rng = np.random.default_rng(0)
    images = rng.random((4, 3, 96, 96), dtype=np.float32)
    data = Calibration.write(tmp_path / "calibration", model, [{"x": images}], "4", random=True)
    made = Repairer(model, Graph.FP16, data)

    untouched = made.judged(frozenset())
    assert untouched.zeros
    assert untouched.scaled_error == pytest.approx(1.0)
    worst = made.ranking(60)[0]
    assert worst.reason.cause == "underflow"
    assert "% of the values of its input become zero in fp16" in worst.reason.words
    assert worst.effect > 0.99

    attempt = made.attempt(Limits(0.02, 0.9), 300, tmp_path / "out")
    assert not any(s.passed for s in attempt.repair.steps if s.scaled_error > 0.02)
    assert not attempt.repair.steps[0].passed
    assert attempt.conversion is not None, attempt.repair.outcome
    assert 2 <= len(attempt.conversion.kept) <= 50
    assert f"{len(attempt.conversion.kept)} of " in attempt.repair.outcome
    item = {"x": rng.random((1, 3, 96, 96), dtype=np.float32)}
    exact = Runner(onnx.load(model.onnx_path), optimised=False).run(item)
    repaired = Runner(onnx.load(tmp_path / "out" / "model.onnx"), optimised=False).run(item)
    judged = judge([exact], [repaired], False)
    assert judged.sound
    assert not judged.zeros
    assert judged.scaled_error < 0.05
