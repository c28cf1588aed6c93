"""From an objective and the rows of a race to a winner, its margin, or a tie that is named.

Everything is compared as time per item at one boundary (the host's, from numpy to numpy,
unless the objective says otherwise): the median latency over the batch for a latency
objective, the inverse throughput for a throughput objective.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peregrine.objective import Goal as Goal
from peregrine.objective import Objective as Objective
from peregrine.objective import item_ms, memory_mb
from peregrine.ratios import Ratio, geometric_mean, paired_ratio
from peregrine.results import CandidateResult, Comparison, FinalRound, Measurement, Status, Winner

INDIFFERENCE = 0.01
"""Finals: rows whose mean ratio is nearer to 1 than this are tied, however sure the ratio is."""
SINGLE_RUN_INDIFFERENCE = 0.05
"""The same without finals: runs minutes apart differ by this much on the quietest machine."""
CONCESSION = 0.03
"""Of rows that are tied, one that seems slower by more than this is not taken for its memory or
build: under much noise a tie only says that the rounds could not tell."""
FEWEST_PROCESSES = 4
"""Fresh processes of both rows from which on the interval is over processes, not rounds: where a
process's memory lies moves its speed by 1 to 3%, in all of its rounds alike."""
MEMORY_INDIFFERENCE = 0.02
MEMORY_INDIFFERENCE_MB = 4.0
"""Peaks of resident memory nearer than either are equal: two runs of one row differ by as much."""
BUILD_INDIFFERENCE = 0.10
BUILD_INDIFFERENCE_S = 1.0
"""Build times nearer than either are equal."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row that can win, with the figures that the objective looks at."""

    result: CandidateResult
    measurement: Measurement
    item_ms: float
    memory_mb: float
    """Infinite where it was not measured."""
    build_s: float
    """Infinite where it was not measured."""
    goal: Goal

    @property
    def id(self) -> str:
        return self.result.id

    @property
    def cost(self) -> float:
        """What the objective makes small."""
        return self.memory_mb if self.goal is Goal.MEMORY else self.item_ms


def rank(results: Sequence[CandidateResult], objective: Objective) -> list[CandidateResult]:
    """The rows that can win and meet the limits, best first, by their own single runs."""
    return [entry.result for entry in _field(results, objective)]


def decide(
    finalists: Sequence[CandidateResult],
    rounds: Sequence[FinalRound],
    results: Sequence[CandidateResult],
    objective: Objective,
) -> Winner | None:
    """The winner by the finalists' interleaved rounds; None when no row can win.

    Two rows are tied when the 95% interval of their paired ratio holds 1, or the mean ratio is
    under `INDIFFERENCE`. The interval is over fresh processes where both had at least
    `FEWEST_PROCESSES`, else over rounds. Of the fastest row and those tied with it, and nominally
    at most `CONCESSION` slower, the one with less memory is taken, then less build time, then
    the faster; `reason` says so. A memory objective takes the row of least memory, and of those
    within `MEMORY_INDIFFERENCE` the fastest.

    `margin` is how much slower (for a memory objective: larger) the nearest row is that is not
    tied with the winner. It comes from the rounds, with its interval in `margin_ci95`, where a
    finalist is outside the tie; else from the single runs, without interval. It is 0 when all
    other rows are tied, and None when there are none.

    A finalist that left early (less than half of the rounds) cannot win, and is compared over
    the rounds it ran. Without two rounds of at least two finalists the single runs decide,
    with the wider `SINGLE_RUN_INDIFFERENCE`, and `reason` says that.

    Args:
        finalists: rows whose `rounds` count.
        rounds: all final rounds there are.
        results: every row of the race.
        objective: what to win at.
    """
    field = _field(results, objective)
    if not field:
        return None
    processes = {r.round: r.process for r in rounds}
    times = _times_of_rounds(finalists, rounds, field, objective)
    judge = _Judge(field, times, processes)
    if objective.goal is Goal.MEMORY:
        least = min(judge.contenders, key=lambda e: e.memory_mb)
        tied = [e for e in judge.contenders if _near(e.memory_mb, least.memory_mb)]
        winner, by = min(tied, key=lambda e: (judge.time(e), e.build_s)), "the faster is taken"
        ties = [e for e in tied if e is not winner]
        verdict = "takes the least memory"
    else:
        fastest = min(judge.contenders, key=judge.time)
        tied = [e for e in judge.contenders if e is fastest or judge.tied(e, fastest)]
        near = [e for e in tied if judge.time(e) <= judge.time(fastest) * (1 + CONCESSION)]
        winner, by = _preferred(near, judge)
        ties = [e for e in judge.contenders if e is not winner and judge.tied(e, winner)]
        verdict = "is the fastest"
    margin, interval = _margin(winner, ties, judge, objective)
    names = [winner.id, *(e.id for e in ties)]
    reason = f"{_listed(names)} are tied; {by}" if ties else f"{winner.id} {verdict}"
    return Winner(
        id=winner.id,
        objective=str(objective),
        margin=margin,
        tie_with=tuple(e.id for e in ties),
        reason=f"{reason} ({judge.basis}).",
        batch=winner.measurement.batch,
        margin_ci95=interval,
        finals=judge.comparisons(winner, rounds),
    )


def break_even(
    results: Sequence[CandidateResult], objective: Objective, rounds: Sequence[FinalRound] = ()
) -> dict[str, float | None]:
    """Inferences after which a row's longer build is repaid, against the valid row that was
    built the quickest: extra build time over time saved per inference, in the final's rounds
    where both ran in it. By id.

    0 for the quickest build itself, None (never) for a row that is no faster. An inference is
    one batch for a latency objective, one item otherwise. Rows that are not valid, or whose
    build or speed at the objective is not known, are left out; limits of the objective are not
    looked at.
    """
    unlimited = dataclasses.replace(objective, max_latency_ms=None, max_memory_mb=None)
    rows: dict[str, tuple[float, float]] = {}
    for result in results:
        m = objective.measurement(result) or unlimited.measurement(result)
        if result.status is Status.OK and m is not None and result.build_s is not None:
            items = m.batch if objective.goal is Goal.LATENCY else 1
            rows[result.id] = (result.build_s, item_ms(m, objective) * items)
    if not rows:
        return {}
    field = _field(results, objective)
    judge = _Judge(field, _times_of_rounds(results, rounds, field, objective), {})
    entries = {e.id: e for e in field}
    base = min(rows, key=rows.__getitem__)
    repaid: dict[str, float | None] = {}
    for id, (build, ms) in rows.items():
        extra_ms = (build - rows[base][0]) * 1e3
        base_ms = rows[base][1]
        if id in entries and base in entries and judge.paired(entries[id], entries[base]):
            base_ms = ms / judge.slowdown(entries[id], entries[base]).mean
        if extra_ms <= 0:
            repaid[id] = 0.0
        else:
            repaid[id] = extra_ms / (base_ms - ms) if ms < base_ms else None
    return repaid


class _Judge:
    """Compares rows by the final rounds that both ran in, else by their single runs."""

    def __init__(
        self,
        field: Sequence[_Entry],
        times: Mapping[str, Mapping[int, float]],
        processes: Mapping[int, int],
    ) -> None:
        self.field = field
        self.processes = processes
        """Round -> which fresh process of each finalist ran it."""
        self.times = times
        """Finalist -> round -> time per item; empty where no two can be compared by rounds."""
        self.contenders = list(field)
        """Who may win: the finalists that stayed, or everyone where there was no final."""
        if times:
            most = max(map(len, times.values()))
            self.contenders = [e for e in field if 2 * len(times.get(e.id, ())) >= most]
        stayed = [set(times[e.id]) for e in self.contenders if e.id in times]
        self.rounds = sorted(set.intersection(*stayed)) if stayed else []
        """The rounds that all contenders ran in."""

    @property
    def basis(self) -> str:
        if self.times:
            fresh = len({self.processes.get(n, 0) for n in self.rounds})
            each = f" in {fresh} fresh processes each" if fresh > 1 else ""
            return f"{len(self.rounds)} interleaved rounds{each}, {len(self.times)} finalists"
        if len(self.field) == 1:
            return "no other row can win"
        return "by single runs: there were no interleaved rounds to compare"

    def time(self, e: _Entry) -> float:
        """Time per item of a contender."""
        if not self.times:
            return e.item_ms
        return geometric_mean([self.times[e.id][n] for n in self.rounds])

    def paired(self, e: _Entry, over: _Entry) -> bool:
        """Whether the two ran in at least two common rounds."""
        return len(self._common(e, over)) >= 2

    def _common(self, e: _Entry, over: _Entry) -> list[int]:
        return sorted(set(self.times.get(e.id, ())) & set(self.times.get(over.id, ())))

    def _independent(self, rounds: Sequence[int]) -> list[list[int]]:
        """The rounds in parts whose ratios are independent: by process where both started
        afresh often enough to tell from, else one by one."""
        by_process: dict[int, list[int]] = {}
        for number in rounds:
            by_process.setdefault(self.processes.get(number, 0), []).append(number)
        if len(by_process) >= FEWEST_PROCESSES:
            return list(by_process.values())
        return [[number] for number in rounds]

    def slowdown(self, e: _Entry, over: _Entry) -> Ratio:
        """How much slower `e` is. A single-run ratio has an interval only for latencies, from
        the intervals of both medians."""
        if self.paired(e, over):
            own, base = self.times[e.id], self.times[over.id]
            parts = self._independent(self._common(e, over))
            return paired_ratio(
                [geometric_mean([own[n] for n in part]) for part in parts],
                [geometric_mean([base[n] for n in part]) for part in parts],
            )
        mean = e.item_ms / over.item_ms
        if e.goal is Goal.THROUGHPUT:
            return Ratio(mean, mean, mean, 1)
        (low, high), (over_low, over_high) = (
            [bound / x.measurement.batch for bound in x.measurement.ci95_ms] for x in (e, over)
        )
        return Ratio(mean, low / over_high, high / over_low, 1)

    def tied(self, e: _Entry, over: _Entry) -> bool:
        margin = INDIFFERENCE if self.paired(e, over) else SINGLE_RUN_INDIFFERENCE
        return self.slowdown(e, over).within(margin)

    def comparisons(self, winner: _Entry, rounds: Sequence[FinalRound]) -> tuple[Comparison, ...]:
        """Every other finalist against the winner, nearest first."""
        found = []
        for e in self.field:
            if e is winner or not self.paired(e, winner):
                continue
            ratio = self.slowdown(e, winner)
            p50 = float(np.median([t for r in rounds if r.candidate == e.id for t in r.samples_ms]))
            tie = ratio.within(INDIFFERENCE)
            found.append(Comparison(e.id, ratio.mean, (ratio.low, ratio.high), tie, p50))
        return tuple(sorted(found, key=lambda c: c.ratio))


def _entry(result: CandidateResult, objective: Objective) -> _Entry | None:
    m = objective.measurement(result) if result.can_win else None
    if m is None:
        return None
    memory = memory_mb(result, m)
    if memory is None:
        if objective.goal is Goal.MEMORY:
            return None
        memory = math.inf
    build = math.inf if result.build_s is None else result.build_s
    return _Entry(result, m, item_ms(m, objective), memory, build, objective.goal)


def _field(results: Sequence[CandidateResult], objective: Objective) -> list[_Entry]:
    """The rows that can win, best first."""
    entries = [e for r in results if (e := _entry(r, objective)) is not None]
    return sorted(entries, key=lambda e: (e.cost, e.item_ms, e.build_s))


def _times_of_rounds(
    finalists: Sequence[CandidateResult],
    rounds: Sequence[FinalRound],
    field: Sequence[_Entry],
    objective: Objective,
) -> dict[str, dict[int, float]]:
    """Milliseconds per item of each finalist in each of its rounds; empty unless those who
    stayed, two at least, have two rounds in common."""
    may = {r.id for r in finalists} & {e.id for e in field}
    took: dict[str, dict[int, float]] = {}
    for r in rounds:
        if r.candidate not in may:
            continue
        if objective.goal is Goal.THROUGHPUT:
            ms = 1e3 / max(r.throughput_per_s, 1e-12)
        else:
            ms = float(np.median(r.samples_ms)) / r.batch
        took.setdefault(r.candidate, {})[r.round] = ms
    judge = _Judge(field, took, {})
    return took if len(took) >= 2 and len(judge.rounds) >= 2 else {}


def _preferred(tied: Sequence[_Entry], judge: _Judge) -> tuple[_Entry, str]:
    """Of rows equal in speed: less memory, then less build time, then the faster; and why."""
    if len(tied) == 1:
        return tied[
            0
        ], f"{tied[0].id} is taken, nominally the fastest by more than {CONCESSION:.0%}"
    words = []
    pool = list(tied)
    least = min(e.memory_mb for e in pool)
    leaner = [e for e in pool if _near(e.memory_mb, least)]
    if len(leaner) < len(pool) and all(math.isfinite(e.memory_mb) for e in pool):
        next_least = min(e.memory_mb for e in pool if e not in leaner)
        words.append(f"less memory ({least:.0f} MB against {next_least:.0f} MB)")
        pool = leaner
    quickest = min(e.build_s for e in pool)
    alike = max(quickest * (1 + BUILD_INDIFFERENCE), quickest + BUILD_INDIFFERENCE_S)
    quicker = [e for e in pool if e.build_s <= alike]
    if len(quicker) < len(pool) and all(math.isfinite(e.build_s) for e in pool):
        next_quickest = min(e.build_s for e in pool if e not in quicker)
        words.append(f"a shorter build ({quickest:.1f} s against {next_quickest:.1f} s)")
        pool = quicker
    winner = min(pool, key=judge.time)
    if not words:
        return winner, f"{winner.id}, nominally the fastest of like memory and build, is taken"
    return winner, f"{winner.id} is taken for {' and '.join(words)}"


def _margin(
    winner: _Entry, ties: Sequence[_Entry], judge: _Judge, objective: Objective
) -> tuple[float | None, tuple[float, float] | None]:
    """`Winner.margin` and its interval; see `decide`."""
    if len(judge.field) == 1:
        return None, None
    behind = [e for e in judge.field if e is not winner and e not in ties]
    if objective.goal is Goal.MEMORY:
        more = [e.memory_mb / winner.memory_mb - 1 for e in behind]
        return max(0.0, min(more, default=0.0)), None
    ratios = [judge.slowdown(e, winner) for e in behind if judge.paired(e, winner)]
    if ratios:
        nearest = min(ratios, key=lambda r: r.mean)
        return nearest.mean - 1, (nearest.low - 1, nearest.high - 1)
    single = [e.item_ms / winner.item_ms - 1 for e in behind]
    return max(0.0, min(single, default=0.0)), None


def _near(value: float, least: float) -> bool:
    """Whether two peaks of memory are equal."""
    return value <= max(least * (1 + MEMORY_INDIFFERENCE), least + MEMORY_INDIFFERENCE_MB)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
