"""A suite run: one race after the other, each in its own run directory, kept when it is done."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from peregrine.errors import PeregrineError, RunDirectoryError
from peregrine.events import Observer, ignore
from peregrine.harness.race import partial_report, race, resume
from peregrine.report.render_all import write_all
from peregrine.report.store import FILE as REPORT
from peregrine.report.store import read_json, write_text
from peregrine.suite.ask import FILE, Ask, RaceAsk

ERROR = "error.json"
"""Why a race ended without a full report; it is tried again when the suite goes on."""
_HEAVY = ("feeds", "reference", "artifacts", "graphs", "own", "calibration")
"""What a finished race needs no more, hundreds of megabytes a network."""
_MODEL_FILE = "model.json"

Watch = Callable[[], AbstractContextManager[Observer]]


def unwatched() -> AbstractContextManager[Observer]:
    return contextlib.nullcontext(ignore)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a suite has come. Names are those of the races' run directories."""

    done: tuple[str, ...]
    failed: tuple[str, ...]
    left: tuple[str, ...]
    """Not begun, because the time limit came first."""


def begin(ask: Ask, path: Path) -> None:
    """Make the suite's directory, or take up the one that was asked for the same.

    Raises:
        RunDirectoryError: it holds something else, or cannot be written.
    """
    if (path / FILE).is_file():
        if Ask.load(path) != ask:
            raise RunDirectoryError(
                f"{path} holds a suite that was asked for otherwise.",
                why=f"Its {path / FILE} says what.",
                fix=f"Go on with it as it was asked: --resume {path}; or name another --out.",
            )
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(
            f"{path} is not empty and no suite.", fix="Name another directory with --out."
        )
    ask.save(path)


def run(
    ask: Ask,
    path: Path,
    *,
    time_limit_s: float | None = None,
    watch: Watch = unwatched,
    keep: bool = False,
    command: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Run every race that is not done yet. A race that was interrupted goes on where it was.

    Args:
        ask: what to run.
        path: the suite's directory, after `begin`.
        time_limit_s: begin no race that would end after so many seconds, judged by the longest
            one so far; the first is always run.
        watch: a context for each race, which gives the observer.
        keep: keep inputs, weights and engines of finished races too.
        command: the command line, for the races' reports.
        clock: monotonic seconds.

    Raises:
        RunDirectoryError: the disk is full or not writable.
        KeyboardInterrupt: passed on; what was measured is kept.
    """
    began, longest = clock(), 0.0
    done: list[str] = []
    failed: list[str] = []
    races = ask.races()
    for number, asked in enumerate(races):
        directory = path / asked.name
        if not finished(directory):
            spent = clock() - began
            if time_limit_s is not None and longest and spent + longest > time_limit_s:
                return Progress(tuple(done), tuple(failed), tuple(r.name for r in races[number:]))
            with watch() as observer:
                _race(ask, asked, directory, observer, command)
            longest = max(longest, clock() - began - spent)
        if finished(directory):
            done.append(asked.name)
            if not keep:
                _lighten(directory)
        else:
            failed.append(asked.name)
    return Progress(tuple(done), tuple(failed), ())


def finished(directory: Path) -> bool:
    """Whether a race left its whole report."""
    if not (directory / REPORT).is_file():
        return False
    try:
        return read_json(directory).complete
    except RunDirectoryError:  # written by another version, or damaged: made again
        return False


def _race(ask: Ask, asked: RaceAsk, directory: Path, observer: Observer, command: str) -> None:
    """One race, new or taken up again. What ends it is written down, and the suite goes on."""
    (directory / ERROR).unlink(missing_ok=True)
    try:
        if (directory / "run.json").is_file():
            report = resume(directory, observer=observer)
        else:
            # A kill before the request was written leaves at most a lock file.
            shutil.rmtree(directory, ignore_errors=True)
            report = race(ask.request(asked, command), directory, observer=observer)
        write_all(report, directory)
    except RunDirectoryError:
        raise
    except PeregrineError as error:
        told = {"what": error.what, "why": error.why, "fix": error.fix}
        write_text(directory / ERROR, json.dumps(told, indent=1))
        partial = partial_report(directory)
        if partial is not None:
            write_all(partial, directory)


def _lighten(directory: Path) -> None:
    """Drop what a finished race needs no more. The report, the raw rows and the logs stay."""
    for name in _HEAVY:
        shutil.rmtree(directory / name, ignore_errors=True)
    for file in (directory / "model").rglob("*"):
        if file.is_file() and file.name != _MODEL_FILE:
            file.unlink()
