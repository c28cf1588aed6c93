"""The race on backends that misbehave in every way, and killed at every point."""

import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from peregrine.errors import NoCandidate, OptionError, RunDirectoryError
from peregrine.events import CandidateDone, FinalRoundDone
from peregrine.harness.assemble import assemble, findings
from peregrine.harness.race import race, resume
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.results import Status, SweepEnd
from peregrine_faults import VARIANTS
from tiny_model import make_tiny

pytestmark = pytest.mark.usefixtures("faults")

QUICK = {
    "min_runs": 5,
    "measure_s": 0.05,
    "measure_max_s": 2.0,
    "final_rounds": 5,
    "timeout_s": 8.0,
    "worker_memory_mb": 1500.0,
}


def quick(**fields) -> Request:
    return Request(**{"source": "tiny", "backends": ("faults",), **QUICK, **fields})


@pytest.fixture(scope="module")
def everything(tmp_path_factory, faults_for_module):
    """One race over every misbehaviour, shared by the tests that look at its rows."""
    path = tmp_path_factory.mktemp("race") / "run"
    request = quick(
        backends=("faults", "crash_on_probe"), skip=("*hang_with_child*",), sweep=(1, 2, 4, 8)
    )
    return race(request, path, loader=make_tiny)


_EXPECTED = {
    "steady": (Status.OK, ""),
    "slower": (Status.OK, ""),
    "noisy": (Status.OK, ""),
    "fell_back": (Status.OK, ""),
    "bad_artifact": (Status.OK, ""),
    "crash_at_batch_4": (Status.OK, ""),
    "segfault": (Status.FAILED, "SIGSEGV"),
    "abort": (Status.FAILED, "SIGABRT"),
    "hang": (Status.TIMEOUT, "within 8 s"),
    "hog": (Status.OOM, "limit of 1500 MiB"),
    "nan": (Status.INVALID, "NaN"),
    "wrong": (Status.INVALID, "y"),
    "racy": (Status.INVALID, "another output the second time"),
    "unsupported": (Status.UNSUPPORTED, "Frobnicate"),
    "unavailable": (Status.UNAVAILABLE, "no such device"),
    "python_error": (Status.FAILED, "ZeroDivisionError"),
}


def test_every_misbehaviour_is_tried():
    assert set(_EXPECTED) | {"hang_with_child"} == set(VARIANTS)


@pytest.mark.parametrize("variant", _EXPECTED)
def test_each_misbehaviour_is_a_row_with_its_reason(everything, variant):
    row = everything.candidate(f"faults[{variant}] fp32")
    assert row is not None
    status, words = _EXPECTED[variant]
    assert row.status is status, row.reason
    assert words in row.reason
    if status is not Status.OK:
        assert row.reason
        assert not row.can_win


def test_a_backend_that_crashes_when_asked_is_a_row(everything):
    row = next(r for r in everything.candidates if r.backend == "crash_on_probe")
    assert row.status is Status.FAILED
    assert "SIGABRT" in row.reason


def test_the_winner_is_valid_and_no_slower_than_any_row_of_the_final(everything):
    winner = everything.winner
    row = everything.candidate(winner.id)
    assert row.status is Status.OK
    assert row.validation.passed
    assert not row.disqualified
    for comparison in winner.finals:
        assert comparison.tie or comparison.ratio >= 1.0
    slow = next(c for c in winner.finals if "slower" in c.candidate)
    assert slow.ratio > 2


def test_a_row_that_fell_back_or_cannot_come_back_may_not_win(everything):
    for variant, words in (("fell_back", "fell back"), ("bad_artifact", "another version")):
        row = everything.candidate(f"faults[{variant}] fp32")
        assert words in row.disqualified
        assert not row.can_win
        assert everything.winner.id != row.id


def test_a_crash_in_the_sweep_keeps_what_was_measured_before(everything):
    row = everything.candidate("faults[crash_at_batch_4] fp32")
    assert {m.batch for m in row.measurements} == {1, 2}
    assert row.sweep_ended_by is SweepEnd.ERROR
    assert "SIGABRT" in row.sweep_stopped


def test_an_invalid_row_is_not_timed(everything):
    for variant in ("nan", "wrong"):
        assert everything.candidate(f"faults[{variant}] fp32").measurements == ()


def test_all_samples_are_kept_on_disk(everything):
    run = RunDirectory.read(Path(everything.run_dir))
    for row in findings(run).candidates:
        for measurement in row.measurements:
            assert len(measurement.samples_ms) >= 5
    assert {r.candidate for r in findings(run).rounds} >= {everything.winner.id}


def test_a_row_says_when_its_trial_ended(everything):
    lines = (Path(everything.run_dir) / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    hang = next(n for n, row in enumerate(rows) if row["record"].get("id") == "faults[hang] fp32")
    begun, written, finished = map(
        datetime.datetime.fromisoformat,
        (rows[hang - 1]["written"], rows[hang]["written"], rows[hang]["record"]["finished"]),
    )
    a_second = datetime.timedelta(seconds=1)  # which `finished` is cut to
    assert begun + QUICK["timeout_s"] * a_second - a_second <= finished <= written


def test_a_report_made_again_is_the_same(everything):
    assert assemble(RunDirectory.read(Path(everything.run_dir))) == everything


def test_no_worker_is_left(everything):
    left = [
        " ".join(p.cmdline())
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE
    ]
    assert [words for words in left if "peregrine.harness" in words] == []


def test_nothing_that_runs_is_an_error_that_says_why(tmp_path):
    with pytest.raises(NoCandidate, match="Nothing here") as caught:
        race(quick(backends=("crash_on_probe",)), tmp_path / "run", loader=make_tiny)
    assert "crash_on_probe" in caught.value.why


def test_an_unknown_backend_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(OptionError, match="Did you mean 'faults'"):
        race(quick(backends=("fault",)), tmp_path / "run", loader=make_tiny)


def test_an_id_that_matches_nothing_lists_those_there_are(tmp_path):
    with pytest.raises(OptionError, match="No candidate matches") as caught:
        race(quick(only=("faults[steadfast] fp32",)), tmp_path / "run", loader=make_tiny)
    assert "faults[steady] fp32" in caught.value.why


def test_a_model_that_cannot_be_loaded_leaves_a_clear_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(os.urandom(1000))
    from peregrine.errors import ModelCorrupt

    with pytest.raises(ModelCorrupt):
        race(quick(source=str(tmp_path / "model.onnx")), tmp_path / "run")


_THREE = ("faults[steady] fp32", "faults[noisy] fp32", "faults[wrong] fp32")


@pytest.mark.parametrize("stop_after", [1, 2, 3, "round"])
def test_an_interrupted_race_goes_on_from_its_rows(tmp_path, stop_after):
    rows = 0

    def interrupt(event):
        nonlocal rows
        rows += isinstance(event, CandidateDone)
        if rows == stop_after or (stop_after == "round" and isinstance(event, FinalRoundDone)):
            raise KeyboardInterrupt

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        race(quick(only=_THREE), path, loader=make_tiny, observer=interrupt)
    kept = findings(RunDirectory.read(path)).candidates
    assert len(kept) == (3 if stop_after == "round" else stop_after)
    partial = assemble(RunDirectory.read(path))
    assert not partial.complete
    report = resume(path)
    assert report.complete
    assert len(report.candidates) == 3
    assert report.winner is not None
    for row in kept:  # not measured again
        again = report.candidate(row.id).measurements
        assert [m.samples_ms for m in again] == [m.samples_ms for m in row.measurements]


def test_a_finished_race_resumes_at_once(tmp_path):
    first = race(quick(only=_THREE[:1]), tmp_path / "run", loader=make_tiny)
    again = resume(tmp_path / "run")
    assert [c.id for c in again.candidates] == [c.id for c in first.candidates]
    assert again.winner == first.winner


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.7, 2.5, 3.5, 5.0])
def test_a_race_killed_at_any_moment_leaves_no_orphan_and_resumes(tmp_path, seconds):
    path = tmp_path / "run"
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from peregrine.harness.race import race
        from peregrine.harness.request import Request
        from tiny_model import make_tiny
        request = Request(source="tiny", backends=("faults",), only={_THREE!r}, **{QUICK!r})
        race(request, Path({str(path)!r}), loader=make_tiny)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    time.sleep(seconds)
    workers = psutil.Process(parent.pid).children(recursive=True) if parent.poll() is None else []
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    try:
        report = resume(path, loader=make_tiny)
    except RunDirectoryError:  # killed before the run directory was begun
        assert not (path / "run.json").exists()
        return
    assert report.complete
    assert report.winner is not None
    lines = (path / "results.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
