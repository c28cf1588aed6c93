import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from peregrine.environments import Interpreter, interpreter_for
from peregrine.errors import (
    BackendUnavailable,
    Unsupported,
    WorkerCrashed,
    WorkerError,
    WorkerOutOfMemory,
    WorkerTimeout,
)
from peregrine.harness import wire
from peregrine.harness.process import Worker
from peregrine.results import Measurement, Memory, from_builtins
from peregrine.types import Candidate, Profile, Target
from tiny_model import make_tiny

pytestmark = pytest.mark.usefixtures("faults")

_BACKEND = "peregrine_faults:FaultsBackend"


@pytest.fixture
def model(tmp_path):
    return make_tiny(tmp_path / "model")


@pytest.fixture
def start(tmp_path):
    """Starts workers, and checks at the end that none of them, nor a child, is left."""
    pids = []

    def start(**options):
        worker = Worker(interpreter_for("faults"), log=tmp_path / "worker.log", **options)
        pids.append(worker.pid)
        workers.append(worker)
        return worker

    workers: list[Worker] = []
    yield start
    for worker in workers:
        worker.kill()
    deadline = time.monotonic() + 5
    while any(_group_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker or its child is still running"
        time.sleep(0.05)


def _group_alive(group: int) -> bool:
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (psutil.Error, ProcessLookupError):
            continue
    return False


def _open(worker, model, variant, **options):
    return worker.call(
        "open",
        timeout_s=options.pop("timeout_s", 60),
        backend=_BACKEND,
        model=str(model.directory),
        candidate=wire.encode_candidate(Candidate("faults", variant)),
        target=wire.encode_target(
            Target(options.pop("device", "cpu"), profile=Profile.fixed({"batch": 2}))
        ),
    )


def test_a_candidate_runs_and_gives_the_right_outputs(start, model, tmp_path):
    worker = start()
    opened = _open(worker, model, "steady")
    assert opened["ended"] > opened["began"]
    assert opened["host_build_peak_mb"] >= opened["host_baseline_mb"] > 0
    x = np.random.default_rng().random((2, 6), np.float32)
    feeds = wire.save_arrays(tmp_path / "feeds", {"x": x})
    worker.call("outputs", timeout_s=60, feeds=str(feeds), batch=2, out=str(tmp_path / "out"))
    got = wire.load_arrays(tmp_path / "out")["y"]
    # Seven rows through a batch of 2: filled up and cut off again.
    rows = np.random.default_rng().random((7, 6), np.float32)
    many = wire.save_arrays(tmp_path / "many", {"x": rows})
    worker.call("stream", timeout_s=60, feeds=str(many), batch=2, out=str(tmp_path / "out7"))
    streamed = wire.load_arrays(tmp_path / "out7")["y"]

    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model.onnx_path))
    np.testing.assert_allclose(got, evaluator.run(None, {"x": x})[0], rtol=1e-5)
    np.testing.assert_allclose(streamed, evaluator.run(None, {"x": rows})[0], rtol=1e-5)


def test_a_gpu_is_watched_where_it_is_the_target(start, model, tmp_path):
    """Whether or not there is one: its memory is a figure or a reason, and on a CPU neither."""
    worker = start()
    feeds = wire.save_arrays(tmp_path / "feeds", {"x": np.zeros((2, 6), np.float32)})
    once = {"min_runs": 3, "min_s": 0.0, "max_s": 5.0, "warmup_s": 0.2}
    call = {"timeout_s": 60, "feeds": str(feeds), "batch": 2}
    _open(worker, model, "steady", device="cuda:0")
    assert worker.call("first_run", **call)["device"]["device_memory_by"]
    answer = worker.call("measure", boundary="device", budget=once, **call)
    found = from_builtins(answer["measurement"], Measurement)
    memory = Memory(1.0, **worker.call("peak", timeout_s=60)["device"])
    assert (memory.device_peak_mb is None) == memory.device_memory_by.startswith("not known: ")
    assert bool(found.device.reason) == (found.device.readings == 0)
    assert found.events_ms is None  # this backend shows no stream
    _open(worker, model, "steady")
    assert worker.call("peak", timeout_s=60)["device"] == {}
    answer = worker.call("measure", boundary="device", budget=once, **call)
    assert answer["measurement"]["device"] is None


def test_a_measurement_keeps_every_sample(start, model, tmp_path):
    worker = start()
    _open(worker, model, "steady")
    feeds = wire.save_arrays(tmp_path / "feeds", {"x": np.zeros((2, 6), np.float32)})
    budget = {"min_runs": 60, "min_s": 0.0, "max_s": 30.0}
    for boundary in ("host", "device"):
        answer = worker.call(
            "measure", timeout_s=60, feeds=str(feeds), batch=2, boundary=boundary, budget=budget
        )
        found = answer["measurement"]
        assert len(found["samples_ms"]) >= 60
        assert found["boundary"] == boundary
        assert found["latency_ms"]["p50"] == pytest.approx(np.median(found["samples_ms"]))


def test_a_segmentation_fault_says_so_and_the_next_worker_runs(start, model):
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        _open(start(), model, "segfault")
    assert _open(start(), model, "steady")["versions"]


def test_an_abort_says_so(start, model):
    with pytest.raises(WorkerCrashed, match="SIGABRT"):
        _open(start(), model, "abort")


@pytest.mark.parametrize("variant", ["hang", "hang_with_child"])
def test_a_hang_is_ended_with_all_it_started(start, model, variant):
    with pytest.raises(WorkerTimeout, match="within 3 s") as caught:
        _open(start(), model, variant, timeout_s=3)
    assert "--timeout" in caught.value.fix


def test_time_that_it_stood_still_counts_for_no_limit(start, model):
    worker = start()
    timers = [threading.Timer(0.3, worker.pause), threading.Timer(2.3, worker.resume)]
    began = time.monotonic()
    for timer in timers:
        timer.start()
    with pytest.raises(WorkerTimeout):
        _open(worker, model, "hang", timeout_s=1.0)
    assert time.monotonic() - began >= 2.9
    for timer in timers:
        timer.join()
    assert 1.9 < worker.paused_s() < 2.5
    assert worker.paused_s(time.monotonic()) == 0
    assert 0.4 < worker.paused_s(began + 1.8) < 0.8
    # It waited before, while and after it was stopped.
    waits = [(began, began + 0.1), (began + 0.2, began + 1), (began + 2, began + 2.6)]
    assert worker.paused_s(began, waits=waits) == pytest.approx(2.5, abs=0.2)


def test_eating_all_memory_is_ended_at_the_limit(start, model):
    with pytest.raises(WorkerOutOfMemory, match="limit of 1200 MiB"):
        _open(start(memory_limit_mb=1200), model, "hog")


@pytest.mark.parametrize(
    ("variant", "kind", "words"),
    [
        ("unsupported", Unsupported, "Frobnicate"),
        ("unavailable", BackendUnavailable, "no such device"),
        ("python_error", WorkerError, "ZeroDivisionError: a bug in the backend"),
    ],
)
def test_errors_cross_as_what_they_are(start, model, variant, kind, words):
    worker = start()
    with pytest.raises(kind, match=words):
        _open(worker, model, variant)
    # The worker is still there to be asked again.
    assert _open(worker, model, "steady")["versions"]


def test_the_whole_traceback_is_in_the_log(start, model):
    worker = start()
    with pytest.raises(WorkerError):
        _open(worker, model, "python_error")
    assert "Traceback" in worker.log.read_text()


def test_an_interpreter_that_is_not_there_is_a_clear_error(tmp_path):
    missing = Interpreter(tmp_path / "no-python", {}, ())
    with pytest.raises(WorkerCrashed, match="could not be started"):
        Worker(missing, log=tmp_path / "log")


def test_the_worker_imports_no_more_than_it_must(start, tmp_path):
    """Another interpreter has numpy and one runtime, not the tool's own dependencies."""
    script = textwrap.dedent(
        """
        import sys
        import peregrine.harness.worker
        allowed = {"numpy", "peregrine", "ml_dtypes"}
        third = {m.partition(".")[0] for m in sys.modules} - set(sys.stdlib_module_names)
        print(sorted(m for m in third - allowed if not m.startswith("_")))
        """
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"


def test_killing_the_race_leaves_no_orphan(model, tmp_path):
    """SIGKILL cannot be caught: the kernel and the closed pipe must end the worker."""
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from peregrine.environments import interpreter_for
        from peregrine.harness.process import Worker
        from peregrine.harness import wire
        from peregrine.types import Candidate, Target
        worker = Worker(interpreter_for("faults"), log=Path({str(tmp_path / "log")!r}))
        print(worker.pid, flush=True)
        worker.call("open", timeout_s=60, backend={_BACKEND!r}, model={str(model.directory)!r},
            candidate=wire.encode_candidate(Candidate("faults", "hang")),
            target=wire.encode_target(Target()))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    while "onnx_cpp2py" not in Path(f"/proc/{group}/maps").read_text():
        assert time.monotonic() < deadline, "the worker never reached its backend"
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _group_alive(group):
        assert time.monotonic() < deadline, "the worker outlived the race"
        time.sleep(0.05)


def test_a_workers_temporary_files_go_with_it(start, model, tmp_path):
    scratch = tmp_path / "scratch"
    worker = start(scratch=scratch)
    _open(worker, model, "steady")
    (scratch / "left-by-a-compiler").touch()
    assert f"TMPDIR={scratch}" in Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
    worker.kill()
    assert not scratch.exists()
