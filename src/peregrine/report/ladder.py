"""The precision ladder: what each lower precision of a workflow gains in speed and costs in
accuracy. The terminal, the page, the picture and the README draw the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peregrine.model.graphs import REPAIRED
from peregrine.report import figures
from peregrine.report.standings import Row, Standings
from peregrine.report.words import of_items
from peregrine.results import CandidateResult, Guard, Report, Status, Verdict
from peregrine.types import Precision

_ORDER = (
    Precision.FP32,
    Precision.TF32,
    Precision.BF16,
    Precision.FP16,
    Precision.FP8,
    Precision.INT8,
)
_NEVER_RAN = frozenset({Status.UNAVAILABLE, Status.UNSUPPORTED})


@dataclass(frozen=True, slots=True)
class Rung:
    """One precision (and converted graph) of a workflow: its best row."""

    result: CandidateResult
    row: Row | None
    """Its place in the standings; None where it was not measured."""
    over_own: float | None
    """How many times as fast as the same workflow's fp32; None where either is missing, or the
    two were measured at different batches or boundaries. So for the next two."""
    over_best: float | None
    """As the race's fastest valid fp32 row."""
    over_default: float | None
    """As ONNX Runtime's CPU provider in fp32 with default options."""

    @property
    def name(self) -> str:
        """`int8 u8s8`, `fp16`."""
        c = self.result
        return f"{c.precision} {c.graph}" if c.graph not in ("", c.precision) else str(c.precision)

    @property
    def guard(self) -> Guard | None:
        return self.result.validation.guard if self.result.validation else None


@dataclass(frozen=True, slots=True)
class Workflow:
    name: str
    """`onnxruntime[CPUExecutionProvider]`."""
    rungs: tuple[Rung, ...]
    """From fp32 down, a repaired graph below the one it repairs."""

    @property
    def lowered(self) -> bool:
        """Whether it ran in anything but fp32."""
        return any(rung.result.precision is not Precision.FP32 for rung in self.rungs)


@dataclass(frozen=True, slots=True)
class Ladder:
    workflows: tuple[Workflow, ...]
    """Best first."""
    best: Row | None
    """The race's fastest valid fp32 row."""
    default: Row | None
    """ONNX Runtime's fp32 default on the CPU, where it was measured and valid."""

    @property
    def rungs(self) -> tuple[Rung, ...]:
        return tuple(rung for workflow in self.workflows for rung in workflow.rungs)

    @property
    def guarded(self) -> bool:
        """Whether any row's accuracy was judged on labels or by a metric."""
        return any(rung.guard for rung in self.rungs)

    @property
    def measure(self) -> str:
        """`top-1`, or the user's metric; empty without a guard."""
        return next((rung.guard.measure for rung in self.rungs if rung.guard), "")

    @property
    def unit(self) -> str:
        """What a drop counts: `points` of a share, else the metric's own unit."""
        guard = next((rung.guard for rung in self.rungs if rung.guard), None)
        return "points" if guard is not None and guard.unit == "%" else guard.unit if guard else ""

    @property
    def max_drop(self) -> float | None:
        drops = (rung.guard.max_drop for rung in self.rungs if rung.guard)
        return next((drop for drop in drops if drop is not None), None)

    def measured_against(self) -> Row | None:
        """What the plot's speed-ups are against: ONNX Runtime's default, else the best fp32."""
        return self.default or self.best


def ladder(report: Report, placed: Standings) -> Ladder | None:
    """The ladder of a race; None where it had only one precision.

    Workflows that ran in fp32 alone are on it too: they are what the others are compared with.
    Workflows of which nothing came as far as validation are left to the list of what may not win.
    """
    ran = [c for c in report.candidates if c.status not in _NEVER_RAN]
    if len({c.precision for c in ran}) < 2:
        return None
    rows = {row.result.id: row for row in placed.rows}
    order = [row.result for row in placed.rows]
    order += [c for c in placed.out if c.id not in rows]
    groups: dict[str, list[CandidateResult]] = {}
    for result in order:  # the best first, so that groups and the choice within them follow it
        groups.setdefault(_workflow(result), []).append(result)
    valid = [row for row in placed.rows if _valid_fp32(row)]
    best = max(valid, key=lambda row: row.speed, default=None)
    default = next((row for row in valid if _is_default(row.result)), None)
    made = []
    for name, members in groups.items():
        if not any(c.measurements or c.validation for c in members):
            continue
        chosen: dict[tuple[Precision, str], CandidateResult] = {}
        for result in members:
            chosen.setdefault((result.precision, result.graph), result)
        own = rows.get(chosen[Precision.FP32, ""].id) if (Precision.FP32, "") in chosen else None
        own = own if own is not None and _valid_fp32(own) else None
        rungs = [
            _rung(result, rows, own, best, default, placed.goal)
            for _, result in sorted(chosen.items(), key=lambda item: _step(*item[0]))
        ]
        made.append(Workflow(name, tuple(rungs)))
    return Ladder(tuple(made), best, default)


def _rung(
    result: CandidateResult,
    rows: Mapping[str, Row],
    own: Row | None,
    best: Row | None,
    default: Row | None,
    goal: str,
) -> Rung:
    row = rows.get(result.id)
    return Rung(result, row, *(_ratio(row, base, goal) for base in (own, best, default)))


def _ratio(row: Row | None, base: Row | None, goal: str) -> float | None:
    if row is None or base is None:
        return None
    mine, other = row.headline, base.headline
    alike = (mine.batch, mine.boundary) == (other.batch, other.boundary)
    return row.speed / base.speed if alike or goal == "throughput" else None


def _workflow(result: CandidateResult) -> str:
    return f"{result.backend}[{result.variant}]" if result.variant else result.backend


def _valid_fp32(row: Row) -> bool:
    return row.result.status is Status.OK and row.result.precision is Precision.FP32


def _is_default(c: CandidateResult) -> bool:
    return (c.backend, c.variant) == ("onnxruntime", "CPUExecutionProvider") and not c.options


def _step(precision: Precision, graph: str) -> tuple[int, str, bool]:
    return _ORDER.index(precision), graph.removesuffix(REPAIRED), graph.endswith(REPAIRED)


def drawable(found: Ladder) -> list[tuple[Rung, float]]:
    """The rungs that a plot can show, with their speed-up over `measured_against`: those that
    were measured at the same batch and, where any row has a guard, judged by it. None where
    fp32 alone would be left."""
    shown = []
    for rung in found.rungs:
        gain = rung.over_default if found.default else rung.over_best
        validation = rung.result.validation
        if gain is not None and validation and (validation.guard or not found.guarded):
            shown.append((rung, gain))
    lower = any(rung.result.precision is not Precision.FP32 for rung, _ in shown)
    return shown if lower and len(shown) > 1 else []


def accuracy(guard: Guard | None, *, brief: bool = False) -> str:
    """`76.9% → 76.2%`: the reference's, then the candidate's, on the same items; in brief the
    candidate's alone."""
    if guard is None:
        return figures.MISSING
    own = _accuracy(guard, guard.candidate)
    return own if brief else f"{_accuracy(guard, guard.reference)} \N{RIGHTWARDS ARROW} {own}"


def _accuracy(guard: Guard, value: float) -> str:
    return figures.percent(value) if guard.unit == "%" else figures.number(value)


def drop(guard: Guard | None) -> str:
    """`0.62 (-0.6 to 1.9)`."""
    if guard is None:
        return figures.MISSING
    return f"{figures.points(guard.drop)} ({figures.points_interval(*guard.ci95)})"


def judgement(result: CandidateResult) -> str:
    """`ok`, `failed`, `undecided: about 840 more images would decide`, or why it has none."""
    guard = result.validation.guard if result.validation else None
    if result.status is Status.UNDECIDED or (
        result.status is Status.OK and guard is not None and guard.verdict is Verdict.UNDECIDED
    ):
        more = guard.more_items if guard is not None else None
        return f"undecided: {of_items(guard, more)} would decide" if more else "undecided"
    if result.status is Status.INVALID:
        return "failed"
    return str(result.status)


def speed(rung: Rung, goal: str) -> str:
    """Median milliseconds, or items a second where that is what ranks."""
    if rung.row is None:
        return figures.MISSING
    if goal == "throughput":
        return figures.number(rung.row.speed)
    return figures.number(rung.row.headline.latency_ms.p50)


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cells: tuple[str, ...]
    left: bool = False
    """Words, not figures."""


def columns(
    found: Ladder, rungs: Sequence[Rung], goal: str, *, brief: bool = False
) -> list[Column]:
    """The figures of `rungs`, a cell each; what would be empty for all of them is left out.

    In brief, the verdict is one word, the reference's accuracy is left to a note, and where
    labels or a metric judge, what only agrees with the reference is not shown.
    """
    judged = [rung.result.validation for rung in rungs]
    made = [rung.result.conversion for rung in rungs]
    unit = f", {found.unit}" if found.unit else ""
    by = "" if brief else " fp32"
    every = [
        Column("items/s" if goal == "throughput" else "p50 ms",
               _cells(speed(r, goal) for r in rungs)),
        Column(f"own{by}", _cells(figures.times(r.over_own) for r in rungs)),
        Column(f"best{by}", _cells(figures.times(r.over_best) for r in rungs)),
        Column(f"ORT{by}", _cells(figures.times(r.over_default) for r in rungs)),
        Column(found.measure if brief else f"{found.measure}, ref. \N{RIGHTWARDS ARROW} row",
               _cells(accuracy(r.guard, brief=brief) for r in rungs)),
        Column("drop (95%)" if brief else f"drop{unit} (95%)",
               _cells(drop(r.guard) for r in rungs)),
        Column("verdict", _cells(_verdict(r, brief) for r in rungs), left=True),
    ]  # fmt: skip
    if not (brief and found.guarded):
        every += [
            Column("agrees",
                   _cells(figures.share(v.top1_agreement if v else None) for v in judged)),
            Column("error", _cells(figures.error(v.scaled_error if v else None) for v in judged)),
        ]  # fmt: skip
    every += [
        Column("size", _cells(figures.memory(r.result.artifact_mb or None) for r in rungs)),
        Column("convert", _cells(figures.seconds(c.seconds if c else None) for c in made)),
    ]
    return [column for column in every if set(column.cells) != {figures.MISSING}]


def _cells(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(found)


def _verdict(rung: Rung, brief: bool) -> str:
    said = judgement(rung.result)
    return said.partition(":")[0] if brief else said


def references(found: Ladder) -> str:
    """`top-1 of the reference: 75% of 80`; empty without a guard or where rows differ in it."""
    told = {
        f"{g.measure} of the reference: {_accuracy(g, g.reference)} on the same {g.items:,} "
        + ("images" if g.measure == "top-1" else "items")
        for g in (rung.guard for rung in found.rungs) if g
    }  # fmt: skip
    return told.pop() if len(told) == 1 else ""
