"""One script a candidate that races just that row again, with the versions it ran on."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

from peregrine.errors import RunDirectoryError
from peregrine.report.command import reproduce, rows_to_race
from peregrine.report.store import write_text
from peregrine.report.words import RANDOM, plain, shown
from peregrine.results import CandidateResult, Report

DIRECTORY = "reproduce"
GRAPHS = "graphs"
"""Where a run directory keeps its converted graphs, each a model directory of its name."""


def write_scripts(report: Report, run_dir: Path) -> list[Path]:
    """Write `reproduce/<candidate>.sh` below `run_dir`, executable, one a candidate.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    paths = []
    for result, name in zip(report.candidates, file_names(report), strict=True):
        path = run_dir / DIRECTORY / f"{name}.sh"
        write_text(path, script(report, result))
        try:
            path.chmod(0o755)
        except OSError as error:
            raise RunDirectoryError(
                f"{path} cannot be made executable.", why=error.strerror or str(error)
            ) from error
        paths.append(path)
    return paths


def file_names(report: Report) -> list[str]:
    """A file name a candidate, in the report's order, each once.

    Ids that differ only in what a file name cannot hold are told apart by a digest.
    """
    slugs = [re.sub(r"[^A-Za-z0-9.=_]+", "-", c.id).strip("-.")[:120] for c in report.candidates]
    folded = [slug.lower() for slug in slugs]
    names = []
    for result, slug in zip(report.candidates, slugs, strict=True):
        if not slug or folded.count(slug.lower()) > 1:
            digest = hashlib.sha256(result.id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            slug = f"{slug}-{digest}".lstrip("-")
        names.append(slug)
    return names


def script(report: Report, result: CandidateResult) -> str:
    """The script that races `result` again; extra arguments are passed on."""
    lines = [
        "#!/usr/bin/env bash",
        _comment(f"{result.id} on {report.model.name}: {result.status}, {result.finished}"),
        _comment(f"Measured on {report.machine.cpu}, {report.machine.os}."),
        _comment("Run it from the directory the race was started in; paths are relative to it."),
    ]
    if result.python:
        lines.append(_comment(f"Interpreter: {result.python}, Python {report.machine.python}"))
    pins = [f"{name}=={_public(version)}" for name, version in sorted(result.versions.items())]
    if pins:
        lines.append("# The versions that ran:")
        lines.append(_comment(f"  python -m pip install {shlex.join(pins)}"))
    lines += [_comment(text) for text in _graph(report, result)]
    lines += ["", "set -euo pipefail", *_action(report, result), ""]
    return "\n".join(lines)


def _action(report: Report, result: CandidateResult) -> list[str]:
    words = reproduce(report, result.id)
    if words:
        line = f'exec {shlex.join(map(plain, words))} "$@"'
        # A quoted `$` is meant as it stands.
        literal = any(mark in word for word in words for mark in "$`")
        return ["# shellcheck disable=SC2016", line] if literal else [line]
    only = tuple(map(plain, rows_to_race(report, result.id)))
    said = (
        "This race was started from Python. Start it there again, with just this row: "
        f"peregrine.bench(model, only={only!r})"
    )
    return [f"echo {shlex.quote(said)} >&2", "exit 1"]


def _graph(report: Report, result: CandidateResult) -> list[str]:
    """What its graph was made of, and where the run keeps the one that was measured."""
    if not result.graph:
        return []
    made = result.conversion
    by = f", by {made.by}" if made is not None and made.by else ""
    lines = [f"It read the graph {result.graph}{by}; the race makes it again or finds it cached."]
    if made is not None and made.calibration:
        lines.append(f"Calibrated on {made.calibration}.")
    if made is not None and made.random_calibration:
        lines.append(f"{RANDOM}.")
    if report.run_dir:
        kept = Path(shown(report.run_dir)) / GRAPHS / result.graph
        lines.append(f"The one that was measured is kept, a model directory: {kept}")
    return lines


def _public(version: str) -> str:
    """Without the local part (`2.13.0+cpu`), which package indexes do not know."""
    return version.partition("+")[0]


def _comment(text: str) -> str:
    """One comment line, whatever the text holds."""
    return "# " + " ".join(plain(text).splitlines())
