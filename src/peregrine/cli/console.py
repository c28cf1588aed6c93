"""Where answers, progress and errors are written: standard output for answers alone."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from peregrine.errors import PeregrineError
    from peregrine.events import Observer
    from peregrine.results import Report


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, plain on a pipe."""
    from rich.console import Console

    return Console(stderr=stderr)


def say(text: str) -> None:
    """Print a line of the answer as it is."""
    console().print(text, markup=False, highlight=False)


def say_error(error: PeregrineError) -> None:
    """What went wrong, why, and the fix, on standard error."""
    stderr = console(stderr=True)
    for label, text, style in (
        ("Error:", error.what, "bold red"),
        ("Why:", error.why, "bold"),
        ("Fix:", error.fix, "bold"),
    ):
        if text:
            stderr.print(label, style=style, end=" ")
            stderr.print(text, markup=False, highlight=False)


def watched(*, quiet: bool) -> AbstractContextManager[Observer]:
    """A context that gives the observer: the live view, or nothing."""
    if quiet:
        from peregrine.events import ignore

        return contextlib.nullcontext(ignore)
    from peregrine.report.progress import live

    return live(console(stderr=True))


def show(report: Report, *, as_json: bool) -> None:
    """Print the table or the JSON, then write the run's files: the verdict comes first."""
    from peregrine.report.render_all import write_all

    if as_json:
        from peregrine.report.store import to_json

        sys.stdout.write(to_json(report))
    else:
        from peregrine.report.table import render

        render(report, console())
    write_all(report, Path(report.run_dir))
