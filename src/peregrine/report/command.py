"""The command line of a run, and the ones that follow from it."""

from __future__ import annotations

import shlex

from peregrine.results import Report

_WITH_VALUE = {"--only", "--out", "--resume"}
_FLAGS = {"--json"}


def rerun(report: Report, verb: str, *extra: str) -> list[str]:
    """The words of `peregrine VERB MODEL ...` with the run's own options and `extra`.

    What chose rows or named places is dropped. Empty where the model cannot be named on a
    command line, because it was a Python object.
    """
    words = _kept_options(report.command)
    if words is None:
        if not report.model.source:
            return []
        words = [report.model.source]
    return ["peregrine", verb, *words, *extra]


def _kept_options(command: str) -> list[str] | None:
    """What follows the verb of a recorded command line; None where there is nothing to go by."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a shell's command line: a Python call
        return None
    start = next((i for i, word in enumerate(words) if word in {"bench", "build"}), None)
    if start is None or any(w == "--resume" or w.startswith("--resume=") for w in words):
        return None
    kept: list[str] = []
    rest = iter(words[start + 1 :])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif word not in _FLAGS and word.partition("=")[0] not in _WITH_VALUE:
            kept.append(word)
    return kept or None


def reproduce(report: Report, candidate: str) -> list[str]:
    """The words that race just this candidate again; empty as for `rerun`."""
    return rerun(report, "bench", "--only", candidate)
