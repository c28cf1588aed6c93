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
"""How many times as long as the fastest a first setting may take for the others to be raced. Where
launches are one CUDA graph, as in the first settings, others differ by less: on an H200 the modes
of torch.compile take 7.99 to 8.27 ms for ResNet-50 at batch 256."""


def why_not(candidate: Candidate, rows: Sequence[CandidateResult], objective: Objective) -> str:
    """Why another setting is not raced, in a sentence; empty where it is.

    Args:
        candidate: the setting.
        rows: those that are done.
        objective: says at which boundary, and in which unit, rows are compared.
    """
    done = [r for r in rows if r.precision is candidate.precision]
    measured = [r for r in done if r.status is Status.OK and r.measurements]
    kin = [r for r in done if r.backend == candidate.backend and r.graph == candidate.graph]
    kin = [r for r in kin if r.variant == candidate.variant] or kin
    own = [r for r in kin if r in measured]
    if not own:
        away = next((r for r in kin if r.status is Status.UNAVAILABLE), None)
        return f"{away.id} is not available here" if away else ""
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
