"""Coarse first, then only around what wins: which rows of a plan are worth their minutes.

A backend's other settings (without a CUDA graph, in another mode) are raced after its first ones,
and only where these came near the fastest, or did not run at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from peregrine.objective import Objective, item_ms
from peregrine.results import CandidateResult, Measurement, Status
from peregrine.types import Candidate

WITHIN = 1.25
"""A setting that took this many times as long as the fastest row will not win by another setting
of its backend: in the tables of an H200 (batch 1 and 256) none made up more than a fifth, but for
CUDA graphs, which the first settings have."""


def why_not(candidate: Candidate, rows: Sequence[CandidateResult], objective: Objective) -> str:
    """Why another setting is not raced, in a sentence; empty where it is.

    Args:
        candidate: the setting.
        rows: those that are done.
        objective: says at which boundary, and in which unit, rows are compared.
    """
    measured = [
        r
        for r in rows
        if r.status is Status.OK and r.precision is candidate.precision and r.measurements
    ]
    own = [r for r in measured if r.backend == candidate.backend and r.graph == candidate.graph]
    own = [r for r in own if r.variant == candidate.variant] or own
    if not own:
        return ""
    nearest = min((_behind(r, measured, objective) for r in own), key=lambda found: found[0])
    ratio, row, leader = nearest
    if ratio <= WITHIN:
        return ""
    return f"{row} took {ratio:.1f} times as long as {leader}"


def _behind(
    row: CandidateResult, rows: Sequence[CandidateResult], objective: Objective
) -> tuple[float, str, str]:
    """How many times as long as the fastest row this one took, at the batch where it was nearest;
    both by their ids."""
    found = []
    for own in _at_boundary(row, objective):
        times = [
            (item_ms(m, objective), other.id)
            for other in rows
            for m in _at_boundary(other, objective)
            if m.batch == own.batch
        ]
        best, leader = min(times)
        found.append((item_ms(own, objective) / best, row.id, leader))
    return min(found, default=(1.0, row.id, row.id))


def _at_boundary(row: CandidateResult, objective: Objective) -> list[Measurement]:
    return [m for m in row.measurements if m.boundary is objective.boundary]
