"""The command line as a user meets it: real processes, exit codes, what is printed where."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from peregrine import environments
from tiny_model import tiny_graph

_QUICK = ("--runs", "5", "--rounds", "3", "--batch", "1")


def peregrine(*arguments, cwd=None, timeout=300):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "peregrine", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_graph(), path)
    return path


def _refused(result, *words):
    """It failed as a person can use: what, and how to fix it, no traceback."""
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    text = " ".join(result.stderr.split())
    assert "Error:" in text
    assert "Fix:" in text
    for word in words:
        assert word in text, text
    return text


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """One real race by ONNX Runtime and OpenVINO, shared by the tests that look at it."""
    root = tmp_path_factory.mktemp("raced")
    onnx.save(tiny_graph(), root / "tiny.onnx")
    result = peregrine(
        "bench", root / "tiny.onnx", "--runs", 20, "--rounds", 4, "--batch", "1,3",
        "--out", root / "run", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return root / "run", result


def test_a_race_prints_json_alone_on_standard_output(raced):
    run, result = raced
    report = json.loads(result.stdout)
    assert report == json.loads((run / "report.json").read_text())
    assert report["winner"]["id"] in [c["id"] for c in report["candidates"]]


def test_a_run_leaves_what_people_look_at(raced):
    run, _ = raced
    page = (run / "report.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (run / "results.jsonl").stat().st_size > 0
    report = json.loads((run / "report.json").read_text())
    valid = [c for c in report["candidates"] if c["status"] == "ok"]
    assert len(list((run / "reproduce").glob("*.sh"))) >= len(valid) >= 2


def test_every_row_that_did_not_run_has_a_reason(raced):
    run, _ = raced
    for row in json.loads((run / "report.json").read_text())["candidates"]:
        if row["status"] != "ok":
            assert row["reason"], row["id"]
        if row["status"] == "unavailable":
            assert row["fix"], row["id"]


def test_measurements_have_what_the_schema_promises(raced):
    import jsonschema

    from peregrine.report.schema import report_schema

    run, _ = raced
    report = json.loads((run / "report.json").read_text())
    jsonschema.validate(report, report_schema())
    for row in report["candidates"]:
        if row["status"] != "ok":
            continue
        seen = {(m["batch"], m["boundary"]) for m in row["measurements"]}
        assert seen == {(b, where) for b in (1, 3) for where in ("host", "device")}
        for m in row["measurements"]:
            assert len(m["samples_ms"]) >= 20
            assert m["ci95_ms"][0] <= m["latency_ms"]["p50"] <= m["ci95_ms"][1]
        assert row["build_s"] > 0
        assert row["load_s"] > 0
        assert row["first_run_ms"] > 0
        assert row["memory"]["host_peak_mb"] > 0


def test_an_earlier_run_is_reported_again(raced):
    run, result = raced
    again = peregrine("report", run, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(result.stdout)
    table = peregrine("report", run)
    assert json.loads(result.stdout)["winner"]["id"] in table.stdout


def test_a_finished_run_resumes_to_the_same_report(raced):
    run, result = raced
    again = peregrine("bench", "--resume", run, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["winner"] == json.loads(result.stdout)["winner"]


def test_a_script_reproduces_a_row(raced, tmp_path):
    run, _ = raced
    script = next(p for p in (run / "reproduce").glob("*.sh") if "onnxruntime" in p.name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_the_winner_is_built_and_loads_in_two_lines(raced, tmp_path):
    run, _ = raced
    result = peregrine("build", "--from", run, "--out", tmp_path / "tiny.bundle")
    assert result.returncode == 0, result.stderr
    import peregrine as package

    x = np.random.default_rng(0).random((5, 6), np.float32)
    with package.load(tmp_path / "tiny.bundle") as session:
        got = session.run({"x": x})["y"]
    from onnx.reference import ReferenceEvaluator

    expected = ReferenceEvaluator(tiny_graph()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    refused = peregrine("build", "--from", run, "--out", tmp_path / "tiny.bundle")
    _refused(refused, "--force")


def test_a_bundle_and_the_run_that_chose_it_are_both_kept(tmp_path, tiny):
    bundle, run = tmp_path / "tiny.bundle", tmp_path / "run"
    result = peregrine(
        "build", tiny, "--out", bundle, "--run-dir", run, "--backend", "onnxruntime",
        "--runs", 5, "--rounds", 3,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str(bundle) in result.stdout
    report = json.loads(peregrine("report", run, "--json").stdout)
    assert {c["backend"] for c in report["candidates"]} == {"onnxruntime"}
    assert report["winner"]["id"]


def test_the_version():
    from importlib.metadata import version

    result = peregrine("--version")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"peregrine {version('peregrine-inference')}\n"


def test_a_missing_file(tmp_path):
    _refused(peregrine("bench", tmp_path / "nothing.onnx", cwd=tmp_path), "nothing.onnx")


def test_a_name_that_is_nearly_one(tmp_path):
    _refused(peregrine("bench", "resnet5O", cwd=tmp_path), "resnet50")


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_truncated_file(tmp_path, tiny, keep):
    tiny.write_bytes(tiny.read_bytes()[:keep])
    _refused(peregrine("bench", tiny, cwd=tmp_path))


def test_random_bytes(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    _refused(peregrine("bench", "noise.onnx", cwd=tmp_path))


def test_a_graph_that_fails_the_checker(tmp_path):
    graph = tiny_graph()
    graph.graph.node[1].input[0] = "nowhere"
    onnx.save(graph, tmp_path / "bad.onnx")
    _refused(peregrine("bench", "bad.onnx", cwd=tmp_path))


def test_an_operator_nobody_supports(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")],
        "frob",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), tmp_path / "frob.onnx")
    _refused(peregrine("bench", "frob.onnx", *_QUICK, cwd=tmp_path), "Frobnicate")


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("was-executed"),))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Payload()))
    _refused(peregrine("bench", "model.pt", cwd=tmp_path), "--trust")
    assert not (tmp_path / "was-executed").exists()


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"z": np.zeros((1, 6), np.float32)}, "z"),
        ({"x": np.zeros((1, 7), np.float32)}, "(1, 7)"),
        ({"x": np.zeros((1, 6), np.float64)}, "float64"),
        ({"x": np.full((1, 6), np.nan, np.float32)}, "NaN"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path, tiny, feeds, words):
    np.savez(tmp_path / "feeds.npz", **feeds)
    result = peregrine("bench", tiny, "--feeds", "feeds.npz", *_QUICK, cwd=tmp_path)
    _refused(result, words)


def test_a_batch_of_zero(tmp_path, tiny):
    _refused(peregrine("bench", tiny, "--batch", "0", cwd=tmp_path), "batch of 0")


def test_an_unknown_backend(tmp_path, tiny):
    result = peregrine("bench", tiny, "--backend", "onnxruntim", cwd=tmp_path)
    _refused(result, "onnxruntime")


def test_an_unwritable_run_directory(tmp_path, tiny):
    _refused(peregrine("bench", tiny, "--out", "/proc/run"), "--out")


def test_no_backend_at_all(tmp_path, tiny):
    result = peregrine("bench", tiny, "--backend", "pytorch", *_QUICK, cwd=tmp_path)
    _refused(result, "Nothing here can run this model")


def test_a_model_and_a_run_at_once(tmp_path, tiny):
    _refused(peregrine("bench", tiny, "--resume", tmp_path), "either")


def test_a_directory_that_is_no_run(tmp_path):
    _refused(peregrine("report", tmp_path), "not a run directory")


def test_an_unknown_environment():
    _refused(peregrine("env", "create", "openvin"), "openvino")


def test_doctor_answers_for_every_backend():
    from peregrine.backends import registry

    result = peregrine("doctor")
    assert result.returncode == 0, result.stderr
    for name in registry.names():
        assert name in result.stdout


def test_help_and_import_touch_no_heavy_package():
    script = (
        "import sys, peregrine, peregrine.cli; "
        "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_worker_and_a_run_to_resume(tmp_path, tiny, sent):
    run = tmp_path / "run"
    command = ["bench", str(tiny), "--backend", "onnxruntime", "--out", str(run), *_QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "peregrine", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    rows = run / "results.jsonl"
    while not (rows.exists() and '"candidate"' in rows.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    resumed = peregrine("bench", "--resume", run, "--quiet", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["complete"]


@pytest.mark.slow
def test_a_backend_races_in_an_environment_of_its_own(tmp_path, tiny):
    """Made from the package index."""
    made = peregrine("env", "create", "openvino", timeout=600)
    assert made.returncode == 0, made.stderr
    assert "Successfully installed" in made.stdout + made.stderr
    _refused(peregrine("env", "create", "openvino"), "already")
    assert "openvino" in peregrine("env", "list").stdout
    (kept,) = environments.list_all()
    assert kept.made
    assert kept.backends == ("openvino",)
    found = environments.interpreter_for("openvino")
    directory = Path(os.environ["PEREGRINE_HOME"]) / "environments" / "openvino"
    assert found.python == directory / "bin" / "python"
    assert environments.interpreter_for("onnxruntime").python == Path(sys.executable)
    pinned = dict(p.split("==") for p in environments.version_sets()["openvino"].packages)
    run = tmp_path / "run"
    result = peregrine("bench", tiny, "--backend", "openvino", "--out", run, *_QUICK, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["candidates"]
    assert rows
    for row in rows:
        assert row["status"] == "ok", row["reason"]
        assert row["python"].endswith(" in openvino")
        assert "onnxruntime" not in row["versions"]
        assert row["versions"]["openvino"] == pinned["openvino"]
    assert peregrine("env", "remove", "openvino").returncode == 0
    assert str(os.environ["PEREGRINE_HOME"]) not in peregrine("env", "list").stdout
    assert environments.list_all() == []
    assert not directory.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--threads", "-3"), "-3 threads"),
        (("--skip", "onnxrutime"), "onnxruntime"),
        (("--threshold", "cosin=1"), "cosine"),
        (("--batch", "100000000000"), "do not fit into memory"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, tiny, arguments, words):
    _refused(peregrine("bench", tiny, *arguments, cwd=tmp_path), words)
