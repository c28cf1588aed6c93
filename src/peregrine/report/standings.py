"""Who stands where: the order and the figures that the table, the page and the picture share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from peregrine.harness.statistics import bootstrap_ci_of_median, latency_ms
from peregrine.objective import memory_mb
from peregrine.results import (
    Boundary,
    CandidateResult,
    Comparison,
    Measurement,
    Report,
    Status,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate that was measured."""

    result: CandidateResult
    rank: int | None
    """From 1; None where it may not win, as where its accuracy is undecided."""
    tied: bool
    """Level with the winner in the final."""
    headline: Measurement
    """What it is ranked by, at the race's batch and boundary, else its nearest; a finalist's
    latencies are those of the final."""
    trial: Measurement
    """The same from its own run, before the final."""
    best: Measurement
    """Its highest throughput."""
    speed: float
    """Items a second by the measure that ranks; a finalist's is the winner's over its ratio."""
    speedup: float | None
    """How many times as fast as the baseline; None where the two were not measured alike.
    A finalist's is the winner's over its ratio in the final, which noise between the single
    runs cannot bend."""
    final: Comparison | None


@dataclass(frozen=True, slots=True)
class Standings:
    goal: str
    """latency, throughput or memory."""
    batch: int
    boundary: Boundary
    rows: tuple[Row, ...]
    """Measured rows, best first; then the undecided ones, then those that may not win."""
    out: tuple[CandidateResult, ...]
    """Every candidate that may not win, measured or not; the most telling first."""
    baseline: CandidateResult | None
    """PyTorch eager fp32 where it ran, else the slowest row: what `speedup` is against."""

    @property
    def out_alike(self) -> tuple[tuple[CandidateResult, ...], ...]:
        """`out`, with those that never ran for one and the same reason taken together: a missing
        runtime is said once, not once a precision."""
        groups: dict[tuple[str, ...], list[CandidateResult]] = {}
        for c in self.out:
            ran = c.measurements or c.conversion or c.repair or not c.reason
            groups.setdefault((c.id,) if ran else (c.status, c.reason, c.fix), []).append(c)
        return tuple(tuple(group) for group in groups.values())

    @property
    def baseline_name(self) -> str:
        if self.baseline is None:
            return ""
        return "PyTorch eager" if _is_eager(self.baseline) else f"the slowest, {self.baseline.id}"


def standings(report: Report) -> Standings:
    """Rank a report's rows by its winner, its final, then its objective."""
    word = re.match(r"\w+", report.objective.lower())
    goal = word[0] if word and word[0] in {"throughput", "memory"} else "latency"
    measured = [c for c in report.candidates if c.measurements]
    boundary = _boundary(report, measured)
    batch = _batch(report, measured, boundary)
    final = {f.candidate: f for f in finals(report)}
    raced_at = {r.candidate: r.batch for r in report.final_rounds}

    def trial(c: CandidateResult) -> Measurement:
        at = raced_at.get(c.id)
        if goal == "throughput" and at is None:
            return best_throughput(c, boundary)
        return nearest(c, at or batch, boundary)

    trials = {c.id: trial(c) for c in measured}
    heads = {c.id: in_the_final(report, trials[c.id], c.id) for c in measured}
    winner = report.winner.id if report.winner else ""
    speeds = _speeds(goal, heads, final, winner)
    baseline = _baseline(measured, speeds)
    ties = set(report.winner.tie_with) if report.winner else set()

    def order(c: CandidateResult) -> tuple[int, float]:
        if c.id == winner:
            return 0, 0.0
        if not c.can_win:
            return 4 if c.status is Status.UNDECIDED else 5, _cost(goal, c, heads[c.id])
        if c.id in final:
            return 1 if c.id in ties else 2, final[c.id].ratio
        return 3, _cost(goal, c, heads[c.id])

    rows = [
        Row(
            result=c,
            rank=rank if c.can_win or c.id == winner else None,
            tied=c.id in ties,
            headline=heads[c.id],
            trial=trials[c.id],
            best=best_throughput(c, boundary),
            speed=speeds[c.id],
            speedup=_speedup(c.id, baseline.id if baseline else "", heads, speeds, goal),
            final=final.get(c.id),
        )
        for rank, c in enumerate(sorted(measured, key=order), 1)
    ]
    barred = (c for c in report.candidates if not c.can_win and c.id != winner)
    out = sorted(barred, key=_gravity)
    return Standings(goal, batch, boundary, tuple(rows), tuple(out), baseline)


def finals(report: Report) -> tuple[Comparison, ...]:
    """The finalists in their order, the winner first as its own measure; empty without a final."""
    winner = report.winner
    if winner is None:
        return ()
    others = [c for c in winner.finals if c.candidate != winner.id]
    own = [s for r in report.final_rounds if r.candidate == winner.id for s in r.samples_ms]
    if not others or not own:
        return ()
    return Comparison(winner.id, 1.0, (1.0, 1.0), False, median(own)), *others


def in_the_final(report: Report, trial: Measurement, id: str) -> Measurement:
    """A measurement with the latencies of the final in place of the trial's.

    A finalist is shown by the samples that ranked it: its own trial may have met a noisier
    minute than its rivals' did. Rows that were not in the final keep their trial's.
    """
    samples = tuple(s for r in report.final_rounds if r.candidate == id for s in r.samples_ms)
    if len(samples) < 2:
        return trial
    return dataclasses.replace(
        trial,
        latency_ms=latency_ms(samples),
        ci95_ms=bootstrap_ci_of_median(samples),
        samples_ms=samples,
    )


def at_boundary(result: CandidateResult, boundary: Boundary) -> list[Measurement]:
    """Its measurements at this boundary by batch, or at the other where it has none."""
    found = [m for m in result.measurements if m.boundary is boundary]
    return sorted(found or result.measurements, key=lambda m: m.batch)


def best_throughput(result: CandidateResult, boundary: Boundary) -> Measurement:
    return max(at_boundary(result, boundary), key=lambda m: m.throughput_per_s)


def nearest(result: CandidateResult, batch: int, boundary: Boundary) -> Measurement:
    return min(at_boundary(result, boundary), key=lambda m: abs(m.batch - batch))


_GRAVITY = (
    Status.INVALID,
    Status.UNDECIDED,
    Status.OK,  # disqualified
    Status.FAILED,
    Status.OOM,
    Status.TIMEOUT,
    Status.UNSUPPORTED,
    Status.UNAVAILABLE,
)


def _gravity(c: CandidateResult) -> int:
    return _GRAVITY.index(c.status)


def _is_eager(c: CandidateResult) -> bool:
    plain = c.backend == "pytorch" and c.variant in {"", "eager"} and not c.options
    return plain and c.precision == "fp32"


def _boundary(report: Report, measured: Iterable[CandidateResult]) -> Boundary:
    if report.final_rounds:
        return report.final_rounds[0].boundary
    hosts = any(m.boundary is Boundary.HOST for c in measured for m in c.measurements)
    return Boundary.HOST if hosts else Boundary.DEVICE


def _batch(report: Report, measured: Iterable[CandidateResult], boundary: Boundary) -> int:
    if report.winner:
        return report.winner.batch
    return min((m.batch for c in measured for m in at_boundary(c, boundary)), default=1)


def _speeds(
    goal: str, heads: Mapping[str, Measurement], final: Mapping[str, Comparison], winner: str
) -> dict[str, float]:
    """Items a second by the measure that ranks; a finalist's follows from the winner's."""
    speeds = {
        id: m.throughput_per_s if goal == "throughput" else 1e3 * m.batch / m.latency_ms.p50
        for id, m in heads.items()
    }
    for id, found in final.items():
        if id in speeds and winner in speeds:
            speeds[id] = speeds[winner] / found.ratio
    return speeds


def _baseline(
    measured: list[CandidateResult], speeds: Mapping[str, float]
) -> CandidateResult | None:
    valid = [c for c in measured if c.status is Status.OK]
    eager = [c for c in valid if _is_eager(c)]
    if eager:
        return eager[0]
    return min(valid, key=lambda c: speeds[c.id], default=None)


def _cost(goal: str, c: CandidateResult, headline: Measurement) -> float:
    if goal == "throughput":
        return -headline.throughput_per_s
    if goal == "memory":
        taken = memory_mb(c)
        return float("inf") if taken is None else taken
    return headline.latency_ms.p50


def _speedup(
    mine: str, base: str, heads: Mapping[str, Measurement], speeds: Mapping[str, float], goal: str
) -> float | None:
    if not base:
        return None
    alike = (heads[mine].batch, heads[mine].boundary) == (heads[base].batch, heads[base].boundary)
    return speeds[mine] / speeds[base] if alike or goal == "throughput" else None
