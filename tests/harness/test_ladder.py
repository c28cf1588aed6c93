"""Lower precisions in whole races: what loses too much is repaired or refused, never crowned."""

import numpy as np
import pytest

import peregrine
from fragile_networks import as_model, convolutional
from peregrine.results import Status, Verdict
from peregrine.types import Precision

QUICK = {
    "batches": (1,),
    "min_runs": 5,
    "measure_s": 0.05,
    "measure_max_s": 2.0,
    "final_rounds": 5,
    "backends": ("onnxruntime",),
    "skip": ("*threads=1*", "*spinning*", "*OpenVINO*"),
    "device": "cpu",
}
INT8 = (Precision.FP32, Precision.INT8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path / "cache"))


def network(directory, outlier=None):
    """The path of a small convolutional classifier, with one channel far out if asked for."""
    return as_model(convolutional(outlier=outlier) if outlier else convolutional(), directory)


def items(model, count=48, seed=5):
    (spec,) = model.inputs
    shape = (count, *spec.shape[1:])
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def answers(model, rows):
    import onnxruntime as ort

    session = ort.InferenceSession(str(model.onnx_path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {model.inputs[0].name: rows})
    return scores.argmax(axis=1)


@pytest.mark.slow
def test_an_outlier_channel_is_repaired_in_the_race_and_the_bundle_holds_the_repaired_graph(
    tmp_path,
):
    model = network(tmp_path / "model", outlier=1000)
    rows = items(model)
    np.savez(tmp_path / "rows.npz", **{model.inputs[0].name: rows})
    report = peregrine.bench(
        model.onnx_path,
        out=tmp_path / "run",
        precisions=INT8,
        calibration=(str(tmp_path / "rows.npz"),),
        only=("*u8s8*",),
        **QUICK,
    )
    (failed,) = [r for r in report.candidates if r.graph == "u8s8"]
    (repaired,) = [r for r in report.candidates if r.graph.startswith("u8s8+repaired")]
    assert failed.status is Status.INVALID
    assert "off by" in failed.reason
    assert repaired.status is Status.OK, repaired.reason
    assert repaired.validation.real_only
    assert repaired.repair.of == failed.id
    assert repaired.repair.cost > 0
    assert "outliers" in repaired.repair.outcome
    assert {layer.node for layer in repaired.conversion.kept} >= {"conv_3"}
    assert report.winner.id == repaired.id
    assert report.reference.split.startswith("12 of 48 items of rows.npz calibrate")

    bundle = peregrine.api.build_from(report, tmp_path / "model.bundle")
    with peregrine.load(bundle) as session:
        got = session.run({model.inputs[0].name: rows[:4]})
    (scores,) = got.values()
    assert (scores.argmax(axis=1) == answers(model, rows[:4])).mean() >= 0.75


def test_without_a_repair_budget_a_failed_row_stays_failed(tmp_path):
    model = network(tmp_path / "model", outlier=1000)
    np.savez(tmp_path / "rows.npz", **{model.inputs[0].name: items(model)})
    report = peregrine.bench(
        model.onnx_path,
        out=tmp_path / "run",
        precisions=INT8,
        calibration=(str(tmp_path / "rows.npz"),),
        repair_s=0.0,
        **QUICK,
    )
    by_graph = {r.graph: r for r in report.candidates}
    assert by_graph["u8s8"].status is Status.INVALID
    assert not any("repaired" in graph for graph in by_graph)
    assert report.winner.id == by_graph[""].id


def test_static_int8_without_calibration_data_says_what_to_give(tmp_path):
    model = network(tmp_path / "model")
    report = peregrine.bench(model.onnx_path, out=tmp_path / "run", precisions=INT8, **QUICK)
    (row,) = [r for r in report.candidates if r.graph == "u8s8"]
    assert row.status is Status.UNSUPPORTED
    assert "calibration" in row.reason
    assert "--calibration" in row.fix


def test_random_calibration_is_marked(tmp_path):
    model = network(tmp_path / "model")
    report = peregrine.bench(
        model.onnx_path,
        out=tmp_path / "run",
        precisions=INT8,
        calibration=("random",),
        **QUICK,
    )
    (row,) = [r for r in report.candidates if r.graph == "u8s8"]
    assert row.conversion.random_calibration
    assert "random" in report.reference.split


@pytest.mark.parametrize(
    ("max_drop", "allowed", "status"),
    [
        (0.01, False, Status.UNDECIDED),
        (0.01, True, Status.OK),
        (0.5, False, Status.OK),
        (None, False, Status.OK),
    ],
)
def test_what_the_data_cannot_decide_is_measured_and_not_crowned(
    tmp_path, max_drop, allowed, status
):
    model = network(tmp_path / "model")
    np.savez(tmp_path / "rows.npz", **{model.inputs[0].name: items(model)})
    report = peregrine.bench(
        model.onnx_path,
        out=tmp_path / "run",
        precisions=INT8,
        calibration=(str(tmp_path / "rows.npz"),),
        metric="harness_metrics:low_class",
        max_drop=max_drop,
        allow_undecided=allowed,
        only=("*u8s8*",),
        **QUICK,
    )
    (row,) = [r for r in report.candidates if r.graph == "u8s8"]
    assert row.status is status, row.reason
    assert row.measurements
    verdict = Verdict.UNDECIDED if max_drop == 0.01 else Verdict.OK
    assert row.validation.guard.verdict is verdict
    assert row.validation.guard.items == 36
    if status is Status.UNDECIDED:
        assert report.winner is None
        assert "undecided" in row.reason


def test_a_metric_that_fails_says_so_with_its_line(tmp_path):
    model = network(tmp_path / "model")
    np.savez(tmp_path / "rows.npz", **{model.inputs[0].name: items(model)})
    with pytest.raises(peregrine.errors.OptionError, match="no such thing"):
        peregrine.bench(
            model.onnx_path,
            out=tmp_path / "run",
            calibration=(str(tmp_path / "rows.npz"),),
            metric="harness_metrics:always_wrong",
            **QUICK,
        )


def test_a_metric_without_real_inputs_is_refused_before_the_race(tmp_path):
    model = network(tmp_path / "model")
    with pytest.raises(peregrine.errors.OptionError, match="nothing for the metric"):
        peregrine.bench(
            model.onnx_path, out=tmp_path / "run", metric="harness_metrics:low_class", **QUICK
        )


@pytest.mark.slow
def test_plain_mobilenet_in_fp16_underflows_and_is_never_crowned(tmp_path):
    torch = pytest.importorskip("torch")
    from peregrine.model.vision import torchvision_models

    torch.manual_seed(0)
    plain = torchvision_models().mobilenet_v2(weights=None).eval()
    report = peregrine.bench(
        plain,
        torch.rand(1, 3, 32, 32).numpy(),
        out=tmp_path / "run",
        precisions=(Precision.FP32, Precision.FP16),
        # A CPU without fp16 arithmetic emulates it, slowly.
        only=("pytorch[eager] fp32", "pytorch[channels_last] fp16"),
        **{**QUICK, "backends": ("pytorch",), "skip": ()},
    )
    rows = [r for r in report.candidates if r.precision is Precision.FP16]
    assert rows
    for row in rows:
        assert row.status is Status.INVALID
        assert "underflow" in row.reason
    assert report.candidate(report.winner.id).precision is Precision.FP32
