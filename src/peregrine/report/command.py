"""The command line that races one candidate of a run again."""

from __future__ import annotations

import shlex

from peregrine.results import Report

_WITH_VALUE = {"--only", "--skip", "--backend", "--out", "--from", "--resume"}
_FLAGS = {"--json", "--quiet", "--force"}


def reproduce(report: Report, candidate: str) -> list[str]:
    """The words that race just this candidate again, with the run's own options: a converted
    graph is made again, or read from the cache where the same was made before.

    What chose rows or named places is dropped. Empty where the race was not started by a
    command line: the model may be a Python object.
    """
    kept = _kept_options(report.command)
    if not kept:
        return []
    only = [word for id in rows_to_race(report, candidate) for word in ("--only", id)]
    return ["peregrine", "bench", *kept, *only]


def rows_to_race(report: Report, candidate: str) -> tuple[str, ...]:
    """The row itself; before a repaired one the row that it repairs, whose failure makes it."""
    row = report.candidate(candidate)
    if row is None or row.repair is None or row.repair.of in ("", candidate):
        return (candidate,)
    return row.repair.of, candidate


def _kept_options(command: str) -> list[str]:
    """What follows the verb of a recorded command line; empty where there is nothing to go by."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a shell's command line: a Python call
        return []
    start = next((i for i, word in enumerate(words) if word in {"bench", "build"}), None)
    if start is None or any(w == "--resume" or w.startswith("--resume=") for w in words):
        return []
    kept: list[str] = []
    rest = iter(words[start + 1 :])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif word not in _FLAGS and word.partition("=")[0] not in _WITH_VALUE:
            kept.append(word)
    return kept
