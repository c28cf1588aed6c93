"""What the race tells whoever watches it: a progress view, a log, a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from peregrine.results import CandidateResult, Report


@dataclass(frozen=True, slots=True)
class RunStarted:
    run_dir: str
    model: str
    resumed: int
    """Rows kept from an earlier, interrupted run."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """Loading, exporting, computing the reference: `what` in words."""

    what: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The rows to race, in order. Rows that cannot run are already done."""

    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CandidateStarted:
    candidate: str


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """`phase` is compile, validate, images, measure, sweep, final, ..."""

    candidate: str
    phase: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CandidateDone:
    result: CandidateResult


@dataclass(frozen=True, slots=True)
class FinalStarted:
    finalists: tuple[str, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class FinalRoundDone:
    round: int
    rounds: int


@dataclass(frozen=True, slots=True)
class RunDone:
    report: Report


Event: TypeAlias = (
    RunStarted
    | Preparing
    | Planned
    | CandidateStarted
    | PhaseStarted
    | CandidateDone
    | FinalStarted
    | FinalRoundDone
    | RunDone
)


class Observer(Protocol):
    """Called from the race's own thread, never while an inference is being timed by us."""

    def __call__(self, event: Event) -> None: ...


def ignore(event: Event) -> None:
    """The observer that watches nothing."""
