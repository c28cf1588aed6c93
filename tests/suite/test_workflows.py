"""Which rows a suite asks for and takes, in every precision, on a GPU that need not be here."""

import dataclasses

import pytest

from example_report import example_report
from example_rows import absent, row
from peregrine.backends import registry
from peregrine.backends._ort_providers import CUDA, ladder
from peregrine.report.store import write_json
from peregrine.results import Status
from peregrine.suite.ask import make_ask
from peregrine.suite.study import read
from peregrine.suite.workflows import ORT_TRT, PAPER, TORCH_TRT, W0, W1, W2, W3, patterns
from peregrine.types import Candidate, Precision, Profile, Target
from torch_model import small_torch_model

_TYPED = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16)
_GPU = "cuda:0"


def _report(*rows):
    return dataclasses.replace(example_report(), candidates=rows)


def _row(backend, precision, variant="", median=1.0, **options):
    return row(backend, variant, median, seed=1, precision=precision, options=options)


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """Ids of what backends propose for a GPU."""
    model = small_torch_model(tmp_path_factory.mktemp("model"), "conv")
    target = Target(_GPU, Profile.fixed(model.sizes(1)))
    ids = {Candidate("onnxruntime", CUDA, p, graph=g).id for p, g in ladder(CUDA, target)}
    for name in ("pytorch", "torch_tensorrt", "tensorrt", "native"):
        ids.update(c.id for c in registry.get(name).candidates(model, target))
    return ids


@pytest.mark.parametrize("precision", _TYPED)
def test_each_workflow_has_a_row_in_each_precision_of_a_gpu(offered, precision):
    for workflow in PAPER:
        assert offered.intersection(patterns((workflow,), _GPU, (precision,))), workflow.key


def test_a_race_is_asked_for_all_precisions_at_once(offered):
    precisions = (Precision.FP32, Precision.TF32, Precision.FP16)
    ask = make_ask("paper", networks=("resnet18",), precisions=precisions, device="cuda")
    (race,) = ask.races()
    request = ask.request(race)
    assert race.name == "resnet18-cuda"
    assert request.precisions == precisions
    assert offered.intersection(request.only) == {
        f"{head} {p}{tail}"
        for head, tail in (
            ("pytorch[eager]", ""), ("torch_tensorrt", " cuda_graph"), ("tensorrt", ""),
            ("onnxruntime[CUDAExecutionProvider]", ""),
        )
        for p in precisions
    }  # fmt: skip
    assert request.first_in_final == tuple(f"pytorch[eager] {p}" for p in precisions)
    assert set(request.backends) == {"pytorch", "torch_tensorrt", "tensorrt", "onnxruntime"}


def test_the_row_of_a_workflow_is_of_its_own_precision():
    report = _report(
        _row("tensorrt", Precision.FP16), _row("tensorrt", Precision.FP32),
        _row("torch2trt", Precision.FP16, median=0.5), _row("torch2trt", Precision.TF32),
    )  # fmt: skip
    assert W2.row(report, _GPU, Precision.FP32).id == "tensorrt fp32"
    assert W2.row(report, _GPU, Precision.TF32) is None
    assert TORCH_TRT.row(report, _GPU, Precision.TF32).id == "torch2trt tf32"
    assert TORCH_TRT.row(report, _GPU, Precision.FP32) is None


def test_a_tf32_row_of_onnx_runtime_is_its_cuda_provider_s():
    report = _report(
        _row("onnxruntime", Precision.FP32, "nv_tensorrt_rtx"),
        _row("onnxruntime", Precision.TF32, CUDA, median=2.0),
    )
    assert W3.row(report, _GPU, Precision.FP32).variant == "nv_tensorrt_rtx"
    assert W3.row(report, _GPU, Precision.TF32).variant == CUDA
    assert ORT_TRT.row(report, _GPU, Precision.TF32) is None


def test_the_reason_of_a_whole_backend_is_that_of_every_precision():
    gone = absent("torch_tensorrt", "", Status.UNAVAILABLE, "not installed", absent=True)
    failed = absent("tensorrt", "", Status.FAILED, "no fp32 kernel")
    report = _report(gone, failed)
    for precision in _TYPED:
        assert W1.row(report, _GPU, precision) is gone
    assert W2.row(report, _GPU, Precision.FP32) is failed
    assert W2.row(report, _GPU, Precision.FP16) is None
    assert W0.row(report, _GPU, Precision.FP32) is None


@pytest.mark.parametrize("precisions", [(Precision.FP32,), (Precision.FP32, Precision.TF32)])
def test_an_fp32_row_that_validation_caught_points_to_tf32(tmp_path, precisions):
    ask = make_ask("paper", networks=("resnet18",), precisions=precisions, device="cuda")
    ask.save(tmp_path)
    invalid = absent("tensorrt", "", Status.INVALID, "error 1e-3")
    report = _report(invalid, _row("tensorrt", Precision.TF32))
    write_json(dataclasses.replace(report, complete=True), tmp_path / "resnet18-cuda/report.json")
    entry = read([tmp_path]).entry("resnet18", "W2", Precision.FP32, _GPU)
    assert (entry.status, entry.reason) == ("invalid", "error 1e-3")
    assert ("--precision fp32,tf32" in entry.fix) is (len(precisions) == 1)
