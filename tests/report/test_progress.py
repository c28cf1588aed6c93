"""The live view: lines on a pipe, a region that leaves no trace on a terminal, and silence while
something is timed."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from peregrine.events import (
    CandidateDone,
    CandidateStarted,
    Event,
    FinalRoundDone,
    FinalStarted,
    PhaseStarted,
    Planned,
    Preparing,
    RunDone,
    RunStarted,
)
from peregrine.report import progress
from peregrine.report.progress import Tally, live
from peregrine.results import Report


def events(report: Report) -> list[Event]:
    ids = tuple(c.id for c in report.candidates)
    found: list[Event] = [RunStarted("runs/x", report.model.name, 2), Preparing("exporting")]
    found.append(Planned(ids))
    for c in report.candidates:
        if c.measurements:
            found += [CandidateStarted(c.id), PhaseStarted(c.id, "compile")]
            found.append(PhaseStarted(c.id, "measure", "batch 1"))
        found.append(CandidateDone(c))
    found += [FinalStarted(ids[:2], 3), PhaseStarted(ids[0], "load"), FinalRoundDone(1, 3)]
    return [*found, PhaseStarted(ids[0], "side by side", "2 sessions"), RunDone(report)]


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, force_interactive=True, width=90,
        color_system="standard", legacy_windows=False,
    )  # fmt: skip


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_pipe_gets_plain_lines(report: Report) -> None:
    console = Console(file=io.StringIO(), width=80)
    with live(console) as observe:
        for event in events(report):
            observe(event)
    lines = written(console).splitlines()
    assert "\x1b" not in written(console)
    assert lines[0].endswith("efficientnet_lite0 in runs/x, 2 rows kept")
    done = next(x for x in lines if "openvino[latency] fp32  7.04 ms at batch 1  ok" in x)
    assert done.startswith("[ 0:00]")
    invalid = next(x for x in lines if "invalid" in x)
    assert "[CPUExecutionProvider]" in invalid
    assert "NaN" in invalid
    assert [line[8:] for line in lines[-4:]] == [
        f"final: load, {report.candidates[0].id}",
        "final: round 1 of 3 done",
        f"final: side by side, {report.candidates[0].id}, 2 sessions",
        "done, winner: openvino[latency] fp32",
    ]


def test_a_terminal_keeps_the_rows_and_loses_the_rest(report: Report) -> None:
    console = terminal()
    with live(console) as observe:
        for event in events(report):
            observe(event)
    text = written(console)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, shown again
    for c in report.candidates:
        assert c.id.split()[0] in text


def test_ctrl_c_leaves_a_clean_terminal_and_no_thread(report: Report) -> None:
    console = terminal()

    def interrupted() -> None:
        with live(console) as observe:
            observe(CandidateStarted("x"))
            observe(PhaseStarted("x", "measure"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The cursor is shown again, and the last thing done is to erase the two lines of the view.
    assert "\x1b[?25h" in written(console)
    assert written(console).endswith("\x1b[1A\x1b[2K" * 2)
    assert "peregrine-progress" not in {t.name for t in threading.enumerate()}


def test_nothing_is_drawn_while_something_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    console = terminal()
    with live(console) as observe:
        observe(CandidateStarted("x"))
        observe(PhaseStarted("x", "compile"))
        before = len(written(console))
        deadline = time.monotonic() + 5
        while len(written(console)) == before:  # the clock ticks while compiling ...
            assert time.monotonic() < deadline
            time.sleep(0.01)
        observe(PhaseStarted("x", "measure", "batch 1"))
        time.sleep(0.05)  # a tick that had begun may end
        quiet = len(written(console))
        time.sleep(0.2)
        assert len(written(console)) == quiet  # ... and stands still here


def test_time_left_is_learnt_from_rows_that_ran(report: Report) -> None:
    now = 0.0
    tally = Tally(lambda: now)
    first, second, *_ = report.candidates
    absent = next(c for c in report.candidates if not c.measurements)
    tally.take(Planned((first.id, second.id, absent.id)))
    tally.take(CandidateDone(absent))  # cost nothing, teaches nothing
    assert tally.left is None
    tally.take(CandidateStarted(first.id))
    now = 10.0
    tally.take(CandidateDone(first))
    assert (tally.done, tally.total) == (2, 3)
    assert tally.left == 20.0  # one row like it, and the final
    tally.take(CandidateStarted(second.id))
    now = 14.0
    assert tally.left == 16.0
    tally.take(FinalStarted((first.id,), 4))
    assert tally.quiet
    now = 20.0
    tally.take(FinalRoundDone(1, 4))
    assert tally.left == 18.0


def test_time_left_is_by_the_pace_where_rows_run_side_by_side(report: Report) -> None:
    now = 0.0
    tally = Tally(lambda: now)
    rows = report.candidates[:4]
    tally.take(Planned(tuple(row.id for row in rows)))
    for row in rows[:3]:
        tally.take(CandidateStarted(row.id))
    assert (tally.begun, tally.done) == (3, 0)
    now = 12.0
    tally.take(CandidateDone(rows[1]))
    tally.take(CandidateDone(rows[0]))
    tally.take(CandidateStarted(rows[3].id))
    assert (tally.begun, tally.done) == (4, 2)
    assert tally.left == 18.0  # two rows and the final, one every six seconds


def test_rows_are_counted_that_run(report: Report) -> None:
    first, second, *_ = report.candidates
    absent = next(c for c in report.candidates if not c.measurements)
    tally = Tally(lambda: 0.0)
    tally.take(Planned((first.id,)))
    tally.take(CandidateDone(absent))
    assert (tally.done, tally.total) == (0, 1)
    tally.take(CandidateDone(first))
    tally.take(CandidateStarted(second.id))  # a repair that nobody had planned
    assert (tally.done, tally.total) == (1, 2)


def test_a_hostile_row_cannot_move_the_cursor(hostile: Report) -> None:
    console = terminal()
    with live(console) as observe:
        for event in events(hostile):
            observe(event)
    assert "\x1b[2J" not in written(console)
    assert "[red]x[/red]" in written(console)
