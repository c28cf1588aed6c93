"""Sessions side by side: measured in threads, judged, and written down whatever happens."""

import dataclasses
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from conformance import assert_close
from peregrine.backends import registry
from peregrine.errors import BackendUnavailable, OptionError
from peregrine.harness.clock import Budget
from peregrine.harness.race import race, resume
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.harness.together import measure_together
from peregrine.model.inputs import random_feeds
from peregrine.results import Boundary
from peregrine.types import Candidate, Precision, Profile, Target
from peregrine_faults import FaultySession
from small_models import SMALL
from tiny_model import make_tiny

QUICK = {"min_runs": 5, "measure_s": 0.05, "measure_max_s": 2.0, "final_rounds": 3}
SHORT = Budget(min_runs=12, min_s=0.05, max_s=5.0)
_BATCH = 2


@pytest.mark.parametrize("boundary", Boundary)
@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("onnxruntime", "CPUExecutionProvider"),
        Candidate("openvino", "latency"),
        Candidate("openvino", "throughput"),
        Candidate("pytorch", "eager"),
    ],
    ids=str,
)
def test_each_session_answers_its_own_client(candidate, boundary, tmp_path):
    backend = registry.get(candidate.backend)
    if not (support := backend.available()):
        pytest.skip(support.reason)
    model = SMALL["residual"]().load(tmp_path)
    target = Target(profile=Profile.fixed(model.sizes(_BATCH)), threads=1)
    feeds = [random_feeds(model, _BATCH, seed) for seed in range(3)]
    sessions = [backend.compile(model, candidate, target) for _ in feeds]
    expected = [session.run(fed) for session, fed in zip(sessions, feeds, strict=True)]
    found = measure_together(sessions, feeds, _BATCH, boundary, SHORT)
    assert len(found.samples_ms) >= SHORT.min_runs
    assert min(found.samples_ms) > 0
    for number, (outputs, right) in enumerate(zip(found.outputs, expected, strict=True)):
        assert_close(outputs, right, 1e-6, f"session {number}")
    for session in sessions:
        session.close()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pytorch", "torch_compile", "onnxruntime", "tensorrt"])
def test_each_session_answers_its_own_client_on_a_gpu(name, tmp_path):
    backend = registry.get(name)
    if not (support := backend.available()):
        pytest.skip(support.reason)
    model = SMALL["residual"]().load(tmp_path)
    target = Target("cuda:0", Profile.fixed(model.sizes(_BATCH)))
    feeds = [random_feeds(model, _BATCH, seed) for seed in range(3)]
    built = []
    for candidate in backend.candidates(model, target):
        if candidate.precision is not Precision.FP32:
            continue
        if candidate.variant == "nv_tensorrt_rtx":
            # One of this backend's rows ended the process, sessions of the CUDA provider never
            # did; a race gives each row a worker of its own.
            continue
        with ExitStack() as stack:
            try:
                sessions = [stack.enter_context(backend.compile(model, candidate, target))]
            except BackendUnavailable:
                continue  # a provider whose libraries are not on this machine
            built.append(candidate)
            if sessions[0].alone:
                continue
            sessions += [
                stack.enter_context(backend.compile(model, candidate, target)) for _ in feeds[1:]
            ]
            expected = [s.run(fed) for s, fed in zip(sessions, feeds, strict=True)]
            for boundary in Boundary:
                found = measure_together(sessions, feeds, _BATCH, boundary, SHORT)
                for outputs, right in zip(found.outputs, expected, strict=True):
                    assert_close(outputs, right, 1e-5, f"{candidate.id}, {boundary}")
    assert built


def test_the_rate_is_that_of_all_clients_and_the_latency_each_ones(tmp_path):
    """`slower` sleeps 20 ms an inference, which threads do at once."""
    model = make_tiny(tmp_path)
    sessions = [FaultySession(model, "slower") for _ in range(4)]
    feeds = [random_feeds(model, _BATCH, seed) for seed in range(4)]
    budget = Budget(min_runs=1, min_s=0.5, max_s=5.0)
    before = threading.active_count()
    found = measure_together(sessions, feeds, _BATCH, Boundary.DEVICE, budget)
    assert threading.active_count() == before
    assert min(found.samples_ms) >= 20
    # Little's law: clients in flight are rate times latency.
    in_flight = found.throughput_per_s / _BATCH * float(np.mean(found.samples_ms)) / 1e3
    assert in_flight == pytest.approx(4, rel=0.05)


def test_a_session_that_fails_stops_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr(FaultySession, "made", [])
    model = make_tiny(tmp_path)
    sessions = [FaultySession(model, v) for v in ("steady", "steady", "crash_in_company")]
    feeds = [random_feeds(model, _BATCH, 0)] * 3
    endless = Budget(min_runs=10**9, min_s=300.0, max_s=300.0)
    with pytest.raises(RuntimeError, match="too many"):
        measure_together(sessions, feeds, _BATCH, Boundary.DEVICE, endless)


@pytest.fixture(scope="module")
def raced(tmp_path_factory, faults_for_module):
    path = tmp_path_factory.mktemp("together") / "run"
    names = ("steady", "crosstalk", "solitary", "crash_in_company")
    request = Request(
        source="tiny",
        backends=("faults",),
        only=tuple(f"faults[{name}]*" for name in names),
        streams=(1, 2, 3),
        threads=2,
        **QUICK,
    )
    return race(request, path, loader=make_tiny)


def _found(report, variant):
    return [c for c in report.concurrency if c.candidate == f"faults[{variant}] fp32"]


def test_leaders_run_with_every_number_of_sessions(raced):
    steady = _found(raced, "steady")
    assert [c.sessions for c in steady] == [1, 2, 3]
    assert [c.threads for c in steady] == [2, 1, 1]
    for c in steady:
        assert not c.error
        assert c.boundary is Boundary.HOST
        assert c.throughput_per_s > 0
        assert len(c.samples_ms) >= c.sessions * QUICK["min_runs"]
        assert c.latency_ms.min <= c.latency_ms.p50 <= c.latency_ms.p99 <= c.latency_ms.max
        assert c.peak_mb > 0


@pytest.mark.parametrize(
    ("variant", "sessions", "words"),
    [
        ("crosstalk", 2, "Side by side its outputs are wrong"),
        ("solitary", 2, "It keeps its state in a global variable."),
        ("crash_in_company", 3, "three of us are too many"),
    ],
)
def test_what_cannot_run_beside_itself_says_so_and_is_tried_no_further(
    raced, variant, sessions, words
):
    *good, last = _found(raced, variant)
    assert [c.sessions for c in good] == list(range(1, sessions))
    assert not any(c.error for c in good)
    assert last.sessions == sessions
    assert words in last.error
    assert (last.latency_ms, last.samples_ms) == (None, ())
    assert raced.candidate(f"faults[{variant}] fp32").can_win


def test_an_interrupted_race_goes_on_with_the_numbers_that_are_left(raced, tmp_path_factory):
    path = tmp_path_factory.mktemp("again") / "run"
    request = dataclasses.replace(
        RunDirectory.read(Path(raced.run_dir)).request, only=("faults[steady]*",), streams=(1, 2)
    )

    class Stop(Exception):
        pass

    seen = []

    def interrupt(event):
        if getattr(event, "phase", "") == "side by side":
            seen.append(event.detail)
            if len(seen) == 2:
                raise Stop

    with pytest.raises(Stop):
        race(request, path, loader=make_tiny, observer=interrupt)
    report = resume(path, observer=interrupt)
    assert seen == [f"{n} sessions at batch 1" for n in (1, 2, 2)]
    assert [c.sessions for c in report.concurrency] == [1, 2]
    assert report.complete


@pytest.mark.parametrize("streams", [(2, 1), (0, 1), (1, 1)])
def test_numbers_of_sessions_ascend_from_one(streams):
    with pytest.raises(OptionError, match="no numbers of sessions"):
        Request("tiny", streams=streams)
