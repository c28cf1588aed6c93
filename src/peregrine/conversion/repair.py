"""Layers to leave in fp32, so that a converted graph keeps near enough to the fp32 one.

`blame` proposes an order, and this proves it: the first k of it are left in fp32 for k = 1, 2, 4,
... until the graph passes, then the smallest such k is found by bisection, then nodes that turn
out not to be needed are given back. Every step converts the graph, from ranges that are computed
once, and runs it on the calibration items. What was fitted on these is no proof for other inputs:
the caller judges the repaired graph on data of its own and may ask again, with tighter limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peregrine.conversion import blame
from peregrine.conversion.blame import Blamed
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.convert import convert
from peregrine.conversion.prepare import prepare
from peregrine.conversion.trials import Judged, Limits, Trials, judge
from peregrine.errors import PeregrineError
from peregrine.model.graphs import REPAIRED, Graph
from peregrine.model.model import Model
from peregrine.results import Conversion, Repair, RepairStep

ITEMS = 32
"""Calibration items that a step is judged on, at most."""
_MOST_KEPT = 0.5
"""Share of the converted nodes that a repair may take back; beyond it the graph is hardly
converted at all."""
_RANKING_SHARE = 0.25
"""Of the budget, for the effects of single nodes."""
_GIVING_BACK_SHARE = 0.5
_NAMED = 5
"""Kept layers that the outcome names; all are in `Conversion.kept`."""

Progress = Callable[[RepairStep], None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt came to."""

    repair: Repair
    """Without the row that failed, its reason and the cost, which the race knows."""
    conversion: Conversion | None = None
    """Of the repaired graph; None where there is none, and `repair.outcome` says why."""


class Repairer:
    """Repairs one converted graph of a model. Keeps the ranges and the ranking of its nodes, so
    that a second attempt costs only its steps."""

    def __init__(
        self,
        model: Model,
        graph: Graph,
        calibration: Calibration,
        *,
        items: int = ITEMS,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._graph = graph
        self._calibration = calibration
        self._items = items
        self._progress = progress
        self._trials: Trials | None = None
        self._ranking: list[Blamed] | None = None
        self._known: dict[frozenset[str], Judged] = {}

    def attempt(self, limits: Limits, budget_s: float, out: Path, name: str = "") -> Attempt:
        """Find the fewest nodes to leave in fp32 and write the repaired model directory.

        Args:
            limits: what the graph must keep to, on the calibration items.
            budget_s: looked at between steps; a step that runs is not interrupted.
            out: directory to write, only where there is a repaired graph.
            name: of the repaired graph; `GRAPH+repaired` when empty.

        Returns:
            The attempt. Where the graph passes as it is, its last step has kept 0 and passed, and
            nothing is written.
        """
        search = _Search(self, limits, time.monotonic() + budget_s)
        began = time.monotonic()
        conversion, outcome = None, ""
        try:
            kept = search.run()
            if kept is None:
                outcome = search.outcome
            else:
                conversion = self._write(kept, out, name or f"{self._graph}{REPAIRED}")
                outcome = _kept_words(kept, search.convertible, search.outcome)
        except PeregrineError as error:
            outcome = f"The repair ended: {error.reason}"
        except _BudgetEnded:
            outcome = (
                f"The budget of {budget_s:.0f} s ended after {_steps(len(search.steps))}: with "
                f"{search.steps[-1].kept} layers in fp32 the error was still "
                f"{search.steps[-1].scaled_error:.2g}."
            )
        seconds = time.monotonic() - began
        repair = Repair("", "", tuple(search.steps), seconds, budget_s, outcome)
        return Attempt(repair, conversion)

    @property
    def trials(self) -> Trials:
        if self._trials is None:
            self._trials = Trials(
                self._model, prepare(self._model), self._graph, self._calibration, self._items
            )
        return self._trials

    def ranking(self, seconds: float) -> list[Blamed]:
        """The converted nodes, the worst first; `seconds` bounds the first call."""
        if self._ranking is None:
            trials = self.trials
            self._ranking = blame.rank(
                trials.prepared,
                trials.blamed_graph,
                self._calibration,
                trials.to_blame,
                seconds=seconds,
            )
        return self._ranking

    def judged(self, keep: frozenset[str]) -> Judged:
        """The graph that leaves `keep` in fp32 against fp32; each is made once."""
        if keep not in self._known:
            trials = self.trials
            self._known[keep] = judge(trials.reference, trials.run(keep), self._model.classifier)
        return self._known[keep]

    def told(self, step: RepairStep) -> None:
        if self._progress:
            self._progress(step)

    def _write(self, kept: Sequence[Blamed], out: Path, name: str) -> Conversion:
        return convert(
            self._model,
            self._graph,
            out,
            calibration=self._calibration,
            keep=tuple(b.kept() for b in kept),
            calibrator=self.trials.calibrator,
            name=name,
        )


class _BudgetEnded(Exception):
    """The time is up and nothing passes yet."""


class _Search:
    def __init__(self, repairer: Repairer, limits: Limits, deadline: float) -> None:
        self.repairer = repairer
        self.limits = limits
        self.deadline = deadline
        self.steps: list[RepairStep] = []
        self.tried: set[frozenset[str]] = set()
        self.outcome = ""
        self.convertible = 0

    def run(self) -> list[Blamed] | None:
        """The nodes to keep, the worst first; None where none are needed or nothing helps."""
        alone = self.repairer.trials.unconverted()
        if not self.limits.passed(alone):
            self.outcome = (
                f"The failure does not come from the conversion: without any converted layer the "
                f"error is {alone.words} against the model as it came."
            )
            return None
        if self._passes(frozenset()):
            self.outcome = (
                f"It needs no repair: on {self.repairer.trials.items} calibration items its error "
                f"is {self.steps[-1].scaled_error:.2g}, and {self.limits.scaled_error:.2g} is "
                "allowed."
            )
            return None
        self._look_at_the_clock()
        ranking = self.repairer.ranking((self.deadline - time.monotonic()) * _RANKING_SHARE)
        self.convertible = len(ranking)
        if not ranking:
            self.outcome = "No node loses anything by itself, so there is none to leave in fp32."
            return None
        keep = self._prefix(ranking)
        if keep is None:
            last = self.steps[-1]
            self.outcome = (
                f"Nothing helps: even with {last.kept} of {len(ranking)} layers in fp32 the error "
                f"is {last.scaled_error:.2g}, and {self.limits.scaled_error:.2g} is allowed. "
                f"The worst: {ranking[0].node} ({ranking[0].reason})."
            )
            return None
        keep = self._without_the_needless(keep, ranking)
        return [b for b in ranking if b.node in keep]

    def _prefix(self, ranking: Sequence[Blamed]) -> frozenset[str] | None:
        """The smallest first part of the ranking, partners included, that passes."""
        sets = [_first(ranking, count) for count in range(len(ranking) + 1)]
        most = max(1, int(len(ranking) * _MOST_KEPT))
        last = max(count for count in range(len(sets)) if len(sets[count]) <= most or count == 1)
        failing, count = 0, 1
        while not self._passes(sets[count]):
            self._look_at_the_clock()
            if count >= last:
                return None
            failing, count = count, min(count * 2, last)
        while count - failing > 1 and not self._late:
            middle = (count + failing) // 2
            if self._passes(sets[middle]):
                count = middle
            else:
                failing = middle
        self._note_the_clock()
        return sets[count]

    def _without_the_needless(
        self, keep: frozenset[str], ranking: Sequence[Blamed]
    ) -> frozenset[str]:
        """Give back what it passes without: the lesser half at once, then one by one, the least
        to blame first. In half of the time that is left: the next attempt may need the rest."""
        now = time.monotonic()
        self.deadline = now + (self.deadline - now) * _GIVING_BACK_SHARE
        order = {b.node: place for place, b in enumerate(ranking)}
        cores = frozenset(sorted(keep, key=order.__getitem__)[: max(1, len(keep) // 2)])
        if len(keep) > 2 and not self._late and self._passes(cores):
            keep = cores
        for node in sorted(keep, key=order.__getitem__, reverse=True):
            if len(keep) == 1 or self._late:
                break
            if self._passes(keep - {node}):
                keep -= {node}
        self._note_the_clock()
        return keep

    def _passes(self, keep: frozenset[str]) -> bool:
        judged = self.repairer.judged(keep)
        passed = self.limits.passed(judged)
        if keep not in self.tried:
            self.tried.add(keep)
            step = RepairStep(len(keep), judged.scaled_error, passed)
            self.steps.append(step)
            self.repairer.told(step)
        return passed

    @property
    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _look_at_the_clock(self) -> None:
        if self._late:
            raise _BudgetEnded

    def _note_the_clock(self) -> None:
        if self._late:
            self.outcome = "The budget ended before it was tried with fewer."


def _first(ranking: Sequence[Blamed], count: int) -> frozenset[str]:
    chosen = ranking[:count]
    return frozenset(name for b in chosen for name in (b.node, *b.partners))


def _kept_words(kept: Sequence[Blamed], convertible: int, more: str) -> str:
    # Neighbours that one tensor is to blame for share a reason.
    groups: dict[str, list[Blamed]] = {}
    for b in kept[:_NAMED]:
        groups.setdefault(b.reason.tensor or b.node, []).append(b)
    named = ", ".join(
        f"{' and '.join(b.node for b in group)} ({group[0].reason})" for group in groups.values()
    )
    others = f", and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    return f"{len(kept)} of {convertible} layers kept in fp32: {named}{others}." + (
        f" {more}" if more else ""
    )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
