"""What is timed on a GPU is timed alone, whoever else races there."""

import multiprocessing
import threading
import time
from pathlib import Path

import psutil
import pytest

from peregrine import turns
from peregrine.errors import OptionError
from peregrine.events import CandidateDone, CandidateStarted
from peregrine.harness.assemble import findings
from peregrine.harness.race import race, resume, rows_at_a_time
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.harness.turns import Turns
from peregrine.results import Status
from tiny_model import make_tiny

GPU = "cuda:0"
QUICK = {
    "min_runs": 5, "measure_s": 0.05, "measure_max_s": 2.0, "final_rounds": 5, "timeout_s": 8.0,
    "worker_memory_mb": 1500.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _locks(monkeypatch, tmp_path):
    """Locks of these tests alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def _busy(log: str, timed: bool) -> None:
    turns = Turns(GPU, times_kernels=not timed)
    for _ in range(20):
        with turns.take(timed=timed), Path(log).open("ab", buffering=0) as file:
            file.write(b"(")
            time.sleep(0.002)
            file.write(b")")


def test_threads_and_processes_never_overlap(tmp_path):
    log = tmp_path / "log"
    process = multiprocessing.get_context("fork").Process(target=_busy, args=(str(log), True))
    threads = [threading.Thread(target=_busy, args=(str(log), timed)) for timed in (True, False)]
    for one in (process, *threads):
        one.start()
    for one in (process, *threads):
        one.join()
    assert process.exitcode == 0
    assert log.read_bytes() == b"()" * 60


def test_what_is_not_timed_waits_for_nobody(tmp_path):
    with Turns(GPU).take(timed=True), Turns(GPU).take(timed=False):
        pass
    with Turns("cpu").take(timed=True), Turns("cpu", times_kernels=True).take(timed=True):
        pass


def test_rows_are_not_built_side_by_side_on_a_cpu():
    with pytest.raises(OptionError, match="3 at a time on cpu"):
        Request(source="tiny", jobs=3)


def asked(**fields):
    return Request(**{"source": "tiny", "device": GPU, "jobs": 3, **QUICK, **fields})


ROWS = tuple(f"faults[{name}] fp32" for name in ("steady", "segfault", "slower", "wrong", "noisy"))


@pytest.mark.usefixtures("faults")
def test_a_race_with_rows_side_by_side_has_the_same_rows(tmp_path):
    at_work, most = set(), 0

    def watch(event):
        nonlocal most
        if isinstance(event, CandidateStarted):
            at_work.add(event.candidate)
            most = max(most, len(at_work))
        elif isinstance(event, CandidateDone):
            at_work.discard(event.result.id)

    only = (*ROWS, "faults[hang] fp32")
    report = race(
        asked(backends=("faults",), only=only), tmp_path / "run", loader=make_tiny, observer=watch
    )
    assert most >= 3
    assert {c.id: c.status for c in report.candidates} == {
        "faults[steady] fp32": Status.OK,
        "faults[slower] fp32": Status.OK,
        "faults[noisy] fp32": Status.OK,
        "faults[segfault] fp32": Status.FAILED,
        "faults[wrong] fp32": Status.INVALID,
        "faults[hang] fp32": Status.TIMEOUT,
    }
    assert report.winner is not None
    assert any(w.startswith("3 rows were built at a time") for w in report.warnings)


@pytest.mark.usefixtures("faults")
def test_a_build_that_waits_and_is_stopped_is_charged_for_neither(tmp_path):
    """It tunes for two seconds while another row is timed, which stops it and has its turns."""
    rows = ("faults[tuner] fp32", "faults[slower] fp32")
    report = race(
        asked(backends=("faults",), only=rows, measure_s=1.0), tmp_path / "run", loader=make_tiny
    )
    tuner = next(c for c in report.candidates if c.id == "faults[tuner] fp32")
    assert tuner.status is Status.OK, tuner.reason
    assert 1.6 < tuner.build_s < 2.4  # a sleep that began before goes on while it is stopped


def test_how_many_rows_at_a_time_is_for_the_machine_to_say(monkeypatch):
    assert rows_at_a_time(Request(source="tiny")) == 1
    assert rows_at_a_time(asked(jobs=3)) == 3
    assert rows_at_a_time(asked(jobs=0, find_max_batch=True)) == 1
    for cores, free_gb, rows in ((1, 64, 1), (8, 64, 4), (64, 512, 6), (64, 13, 2), (64, 1, 1)):
        monkeypatch.setattr("peregrine.harness.race.physical_cores", lambda n=cores: n)
        monkeypatch.setattr("peregrine.harness.race.available_mb", lambda n=free_gb: n * 1024.0)
        assert rows_at_a_time(asked(jobs=0)) == rows


@pytest.mark.usefixtures("faults")
def test_memory_that_ended_beside_others_is_tried_again_alone(tmp_path):
    started, at_work = [], set()

    def watch(event):
        if isinstance(event, CandidateStarted):
            started.append((event.candidate, set(at_work)))
            at_work.add(event.candidate)
        elif isinstance(event, CandidateDone):
            at_work.discard(event.result.id)

    hog = "faults[hog] fp32"
    only = (hog, "faults[steady] fp32", "faults[slower] fp32")
    report = race(
        asked(backends=("faults",), only=only), tmp_path / "run", loader=make_tiny, observer=watch
    )
    assert [row.status for row in report.candidates if row.id == hog] == [Status.OOM]
    assert [beside - {hog} for row, beside in started if row == hog][1:] == [set()]
    assert len(report.candidates) == 3


@pytest.mark.usefixtures("faults")
@pytest.mark.parametrize("where", [CandidateStarted, CandidateDone])
def test_an_interrupt_ends_every_row_at_work(tmp_path, where):
    seen = 0

    def interrupt(event):
        nonlocal seen
        seen += isinstance(event, where)
        if seen == 2:
            raise KeyboardInterrupt

    path = tmp_path / "run"
    only = (*ROWS, "faults[hang] fp32")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        race(asked(only=only, timeout_s=60.0), path, loader=make_tiny, observer=interrupt)
    assert time.monotonic() - began < 40
    left = [p for p in psutil.Process().children(recursive=True) if "worker" in str(p.cmdline())]
    assert left == []
    kept = [row.id for row in findings(RunDirectory.read(path)).candidates]
    report = resume_with_a_short_patience(path)
    assert set(kept) <= {c.id for c in report.candidates}
    assert len(report.candidates) == len(only)


def resume_with_a_short_patience(path):
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace('"timeout_s": 60.0', '"timeout_s": 8.0'))
    return resume(path)


def test_a_worker_waits_for_its_turn_by_itself(monkeypatch, tmp_path):
    """What times kernels within a build: the race holds the file, or tells that it does."""
    path = tmp_path / "lock"
    monkeypatch.setenv("PEREGRINE_TURNS", str(path))
    order, before = [], time.monotonic()

    def hold():
        with turns.holding(path):
            began.set()
            time.sleep(0.2)
            order.append("race")

    began = threading.Event()
    race_of_others = threading.Thread(target=hold)
    race_of_others.start()
    began.wait()
    with turns.my_turn(), turns.my_turn():
        order.append("worker")
    race_of_others.join()
    assert order == ["race", "worker"]
    ((begin, end),) = turns.waits(before)
    assert end - begin > 0.1
    with turns.holding(path):
        turns.given(True)
        with turns.my_turn():  # the race holds it for this process
            pass
        turns.given(False)
    monkeypatch.delenv("PEREGRINE_TURNS")
    with turns.my_turn():
        pass
