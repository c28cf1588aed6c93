"""`report.json`: written whole or not at all, read back into the records of `results`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

from peregrine.errors import RunDirectoryError
from peregrine.report.words import shown
from peregrine.results import REPORT_FORMAT, Report, from_builtins, to_builtins

FILE = "report.json"


def to_json(report: Report) -> str:
    """The report as `report.json` holds it: what the published schema describes."""
    # Below the working directory its own path is enough, and means something elsewhere too.
    report = dataclasses.replace(report, run_dir=shown(report.run_dir))
    text = json.dumps(to_builtins(report), indent=1, ensure_ascii=False, allow_nan=False)
    # Lists of numbers on one line each. A JSON string holds no raw newline, so none can match.
    return re.sub(r"\[\n[\d.eE+,\s-]+\]", _on_one_line, text) + "\n"


def _on_one_line(numbers: re.Match[str]) -> str:
    return "[" + " ".join(numbers[0][1:-1].split()) + "]"


def write_json(report: Report, path: Path) -> None:
    """Write `report` to `path`, replacing what is there in one step.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    write_text(path, to_json(report))


def write_text(path: Path, text: str) -> None:
    """Write a file of the report whole or not at all; RunDirectoryError where that fails."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same, for bytes."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunDirectoryError(
            f"{path} cannot be written.",
            why=error.strerror or str(error),
            fix="Free some space there, or name a directory you may write to with --out.",
        ) from error


def read_json(path: Path) -> Report:
    """Read a report; `path` is a `report.json` or the run directory that holds one.

    Raises:
        RunDirectoryError: there is none, or it is damaged or of another format.
    """
    file = path / FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise RunDirectoryError(
            f"There is no report at {file}.",
            why=error.strerror or str(error),
            fix="Name a run directory that `peregrine bench` printed; "
            "if that run was interrupted, finish it with `peregrine bench --resume RUN_DIR`.",
        ) from error
    except ValueError as error:
        raise _damaged(file, f"it is not JSON: {error}") from error
    if not isinstance(data, dict) or "format" not in data:
        raise _damaged(file, "it is JSON, but not a report of Peregrine's")
    if data["format"] != REPORT_FORMAT:
        raise RunDirectoryError(
            f"{file} has format {data['format']}; this Peregrine reads format {REPORT_FORMAT}.",
            why="it was written by another version",
            fix="Open it with the version named in its `versions`, or run the race again.",
        )
    try:
        return from_builtins(data, Report)
    except ValueError as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{file} is not a readable report.",
        why=why,
        fix="Write it again from the run's results: peregrine bench --resume RUN_DIR.",
    )
