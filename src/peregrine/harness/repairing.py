"""A converted row whose outputs are wrong, made right by leaving some layers as they were.

The layers are chosen on the calibration data, and the repaired row is judged like any other, on
the data that judges: what was fitted is never its own proof. Where that fails too, the next
attempt must come nearer to fp32, until the budget is spent or nothing is left to convert.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from peregrine.errors import PeregrineError
from peregrine.harness.graphs import Repairer
from peregrine.harness.process import Worker
from peregrine.harness.trial import Setting, run_trial
from peregrine.ratios import geometric_mean
from peregrine.results import CandidateResult, Repair, Status, from_builtins
from peregrine.types import Candidate
from peregrine.validate import Thresholds

_MOST_ATTEMPTS = 5
_SAFETY = 0.7
"""The share of the allowed error that a repair aims for: other inputs will be a little worse."""
_TIGHTER = 0.5
_COST_TURNS = 5
_COST_RUNS = 10
_COST_S = 0.25

Phase = Callable[[str, str, str], None]
"""Told candidate, phase and detail."""


def can_be_repaired(setting: Setting, row: CandidateResult) -> bool:
    """Whether a row failed by what its conversion lost."""
    return (
        row.status is Status.INVALID
        and bool(row.graph)
        and row.conversion is not None
        and setting.request.repair_s > 0
    )


def repair_row(
    setting: Setting, row: CandidateResult, phase: Phase
) -> tuple[CandidateResult, CandidateResult | None]:
    """Try to repair a row that failed.

    Returns:
        The failed row, which says what was tried where nothing helped, and the repaired row.
    """
    attempts = _Attempts(setting, row, phase)
    try:
        repaired = attempts.run()
    except PeregrineError as error:
        attempts.outcome, repaired = f"The repair ended: {error.reason}", None
    finally:
        attempts.close()
    told = attempts.told()
    if repaired is None:
        return dataclasses.replace(row, repair=told), None
    cost = _cost(setting, row.candidate, repaired.candidate)
    return row, dataclasses.replace(repaired, repair=dataclasses.replace(told, cost=cost))


class _Attempts:
    def __init__(self, setting: Setting, row: CandidateResult, phase: Phase) -> None:
        self.setting = setting
        self.row = row
        self.phase = phase
        self.began = time.monotonic()
        self.steps: list[Any] = []
        self.outcome = ""
        self.repairer: Repairer | None = None

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.began

    def told(self) -> Repair:
        return Repair(
            of=self.row.id,
            because=self.row.reason,
            steps=tuple(self.steps),
            seconds=self.spent_s,
            budget_s=self.setting.request.repair_s,
            outcome=self.outcome,
        )

    def close(self) -> None:
        if self.repairer is not None:
            self.repairer.close()

    def run(self) -> CandidateResult | None:
        """Attempts, each nearer to fp32 than the one before."""
        repairer = self.setting.graphs.repairer(self.row.graph)
        self.repairer = repairer
        share = _SAFETY
        for _ in range(_MOST_ATTEMPTS):
            left_s = self.setting.request.repair_s - self.spent_s
            if left_s <= 0:
                self.outcome = f"The budget of {self.setting.request.repair_s:.0f} s ended."
                return None
            graph, answer = repairer.attempt(
                self._limits(share),
                left_s,
                self.setting.request.timeout_s,
                lambda name: self.phase(self.row.id, "repair", name),
            )
            found = from_builtins(answer["repair"], Repair)
            self.steps += found.steps
            self.outcome = found.outcome
            share *= _TIGHTER
            if not graph:
                if found.steps and found.steps[-1].passed and not found.steps[-1].kept:
                    continue  # good enough on the calibration data, not on what judges
                return None
            repaired = self._trial(graph)
            if repaired.status in (Status.OK, Status.UNDECIDED):
                return repaired
            self.outcome += f" It still fails on the data that judges: {repaired.reason}"
            if repaired.status is not Status.INVALID:
                return None
        return None

    def _limits(self, share: float) -> dict[str, float]:
        """What the calibration data must show: a share of what is allowed, or of what failed."""
        limits = Thresholds.of(self.row.precision, self.setting.request.thresholds)
        error = limits.scaled_error
        found = self.row.validation.scaled_error if self.row.validation else math.nan
        if math.isfinite(found):
            error = min(error, found)
        return {
            "scaled_error": error * share,
            "top1_agreement": 1 - (1 - limits.top1_agreement) * share,
        }

    def _trial(self, graph: str) -> CandidateResult:
        candidate = dataclasses.replace(self.row.candidate, graph=graph)
        return run_trial(
            self.setting,
            candidate,
            lambda phase, detail: self.phase(candidate.id, phase, detail),
        )


def _cost(setting: Setting, failed: Candidate, repaired: Candidate) -> float | None:
    """Time of the repaired graph over the failed one's, taken in turns; None where the failed
    one does not come back."""
    batch = setting.request.batches[0] if setting.model.batch else 1
    lead = setting.judging.lead(batch)
    times: dict[str, list[float]] = {failed.id: [], repaired.id: []}

    def turn(candidate: Candidate, worker: Worker) -> None:
        answer = setting.call(
            worker,
            "turn",
            lead,
            batch,
            boundary=str(setting.request.objective.boundary),
            runs=_COST_RUNS,
            seconds=_COST_S,
            offline=False,
            quiet=True,
        )
        samples = sorted(answer["samples_ms"])
        times[candidate.id].append(samples[len(samples) // 2])

    try:
        with setting.start(failed, "cost") as one, setting.start(repaired, "cost") as other:
            pairs = ((failed, one), (repaired, other))
            for candidate, worker in pairs:
                setting.open(worker, candidate, batch)
            for _ in range(_COST_TURNS):
                for candidate, worker in pairs:
                    turn(candidate, worker)
    except PeregrineError:
        return None
    return geometric_mean(times[repaired.id]) / geometric_mean(times[failed.id])
