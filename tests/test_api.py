"""The Python API as the README shows it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

import peregrine
from peregrine.api import make_request
from peregrine.errors import FeedError, OptionError, PeregrineError
from peregrine.harness.rundir import RunDirectory
from tiny_model import tiny_graph

torch = pytest.importorskip("torch")

_QUICK = {"min_runs": 5, "measure_s": 0.05, "final_rounds": 3}
# Further rows of one backend show nothing here.
_VARIANTS = ("*threads=1*", "*spinning*", "*OpenVINOExecutionProvider*", "*throughput*")


class Net(torch.nn.Module):
    """Defined in a test, so no worker can import it: it must cross as an exported program."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    module, x = Net().eval(), np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    return peregrine.bench(
        module,
        {"x": x},
        objective=peregrine.Objective.latency(max_memory_mb=4000),
        batches=(2,),
        skip=("torch_compile", "tensorrt", "pytorch[channels_last]*", *_VARIANTS),
        out=tmp_path_factory.mktemp("api") / "run",
        **_QUICK,
    )


def test_a_module_in_memory_is_raced_on_every_kind_of_backend(report):
    ok = {row.backend for row in report.candidates if row.status == "ok"}
    assert {"pytorch", "onnxruntime", "openvino"} <= ok
    assert report.winner is not None
    assert report.reference.workflow == "PyTorch fp32 eager"
    assert any("given" in words for words in report.reference.inputs)


def test_the_objectives_limit_is_in_the_report(report):
    assert "4000" in report.objective


def test_a_limit_nobody_keeps_leaves_no_winner_and_says_why(report):
    run = RunDirectory.read(Path(report.run_dir))
    record = json.loads((run.path / "run.json").read_text())
    record["objective"]["max_memory_mb"] = 1.0
    (run.path / "run.json").write_text(json.dumps(record))
    strict = peregrine.open_report(run.path)
    assert strict.winner is None
    for row in strict.candidates:
        if row.status == "ok":
            assert "at most 1 MB" in row.disqualified


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "pytorch"])
def test_one_backend_without_a_race(backend):
    module, x = Net().eval(), np.random.default_rng(1).random((3, 3, 16, 16), np.float32)
    with peregrine.session(module, backend=backend, inputs={"x": x}) as session:
        name = session.outputs[0].name
        got = session.run({"x": x})[name]
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_model_proto_and_a_path_make_the_same_session(tmp_path):
    onnx.save(tiny_graph(), tmp_path / "tiny.onnx")
    x = np.random.default_rng(2).random((4, 6), np.float32)
    with (
        peregrine.session(tiny_graph(), backend="openvino") as one,
        peregrine.session(tmp_path / "tiny.onnx", backend="openvino") as other,
    ):
        np.testing.assert_array_equal(one.run({"x": x})["y"], other.run({"x": x})["y"])


def test_wrong_feeds_are_refused_with_what_was_expected():
    with peregrine.session(tiny_graph(), backend="onnxruntime") as session:
        for feeds, words in (
            ({"z": np.zeros((1, 6), np.float32)}, "x:float32"),
            ({"x": np.zeros((1, 6), np.float64)}, "float64"),
            ({"x": np.zeros((1, 7), np.float32)}, "(1, 7)"),
            ({"x": np.zeros((0, 6), np.float32)}, "zero"),
        ):
            with pytest.raises(FeedError) as caught:
                session.run(feeds)
            assert words in str(caught.value)


def test_an_unknown_backend_or_option_is_answered_with_those_there_are():
    with pytest.raises(OptionError, match="openvino"):
        peregrine.session(tiny_graph(), backend="openvinoo")
    with pytest.raises(OptionError) as caught:
        peregrine.bench(tiny_graph(), batchs=(1,))
    assert "batches" in str(caught.value)


def test_the_winner_of_a_module_is_built_and_loads_in_a_process_without_it(tmp_path):
    x = np.random.default_rng(3).random((2, 3, 16, 16), np.float32)
    module = Net().eval()
    bundle = peregrine.build(
        module, tmp_path / "net.bundle", {"x": x}, batches=(2,), backends=("openvino",), **_QUICK
    )
    np.save(tmp_path / "x.npy", x)
    script = textwrap.dedent(
        f"""
        import numpy as np, peregrine
        session = peregrine.load({str(bundle)!r})
        outputs = session.run({{"x": np.load({str(tmp_path / "x.npy")!r})}})
        np.save({str(tmp_path / "y.npy")!r}, next(iter(outputs.values())))
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)


def _handed_over(rows):
    """Calibration data in every form that a program may have it."""
    return {
        "a generator of dicts": ({"x": row[np.newaxis]} for row in rows),
        "one array": rows,
        "one dict": {"x": rows},
        "a list of arrays": [*rows],
    }


@pytest.mark.parametrize("form", _handed_over(np.zeros((1, 6))))
def test_calibration_data_in_memory_is_split(form, tmp_path):
    rows = np.random.default_rng(8).random((9, 6), np.float32)
    report = peregrine.bench(
        tiny_graph(),
        calibration=_handed_over(rows)[form],
        backends=("onnxruntime",),
        skip=_VARIANTS,
        batches=(1,),
        out=tmp_path / "run",
        **_QUICK,
    )
    assert report.reference.split.startswith("2 of 9 given items calibrate, the other 7 judge")
    assert RunDirectory.read(tmp_path / "run").request.calibration == ("<in memory>",)


def test_calibration_data_in_files_is_named_in_full(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", np.random.default_rng(8).random((9, 6), np.float32))
    monkeypatch.chdir(tmp_path)
    report = peregrine.bench(
        tiny_graph(),
        np.ones((2, 6), np.float32),
        calibration=Path("rows.npy"),
        input_specs=("x:float32:Bx6",),
        backends=("onnxruntime",),
        skip=_VARIANTS,
        batches=(2,),
        out=tmp_path / "run",
        **_QUICK,
    )
    request = RunDirectory.read(tmp_path / "run").request
    assert request.calibration == (str(tmp_path / "rows.npy"),)
    assert report.reference.split.startswith("2 of 9 items of rows.npy calibrate, the other 7")


def test_data_and_labels_that_are_not_there_are_refused_at_once(tmp_path):
    for wrong in ({"calibration": ["nowhere"]}, {"images": str(tmp_path), "labels": "nowhere"}):
        with pytest.raises(OptionError, match="nowhere"):
            peregrine.bench(tiny_graph(), out=tmp_path / "run", **wrong)


def test_auto_precisions_are_those_of_the_device():
    assert {"fp32", "int8"} <= set(make_request("m", device="cpu", precisions="auto").precisions)
    assert "tf32" in make_request("m", device="cuda:0", precisions=("auto",)).precisions
    assert make_request("m", device="cpu").precisions == ("fp32",)


def test_a_model_that_does_not_run_is_an_error_of_ours(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x @ x

    with pytest.raises(PeregrineError):
        peregrine.bench(
            Broken(), {"x": np.zeros((2, 3), np.float32)}, out=tmp_path / "run", **_QUICK
        )


def test_public_names_resolve_and_are_all_there():
    assert set(peregrine.__all__) == {
        "Objective",
        "PeregrineError",
        "Report",
        "bench",
        "build",
        "doctor",
        "load",
        "open_report",
        "session",
    }
    for name in peregrine.__all__:
        assert getattr(peregrine, name) is not None
    assert peregrine.__version__
    with pytest.raises(AttributeError, match="nonsense"):
        peregrine.nonsense  # noqa: B018


def test_a_bundle_for_throughput_holds_the_engine_of_the_winning_batch(tmp_path):
    report = peregrine.bench(
        Net().eval(),
        {"x": np.zeros((1, 3, 16, 16), np.float32)},
        objective=peregrine.Objective.throughput(),
        backends=("openvino",),
        skip=("*throughput*",),
        sweep=(1, 2, 4),
        out=tmp_path / "run",
        **_QUICK,
    )
    from peregrine.api import build_from

    batch = report.winner.batch
    with peregrine.load(build_from(report, tmp_path / "net.bundle")) as session:
        assert session.how == "engine"
        x = np.random.default_rng(4).random((batch, 3, 16, 16), np.float32)
        assert next(iter(session.run({"x": x}).values())).shape == (batch, 5)
