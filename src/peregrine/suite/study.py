"""What the races of a suite found, as one study: an entry a network and workflow."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peregrine.errors import OptionError, RunDirectoryError
from peregrine.harness.race import partial_report
from peregrine.objective import memory_mb
from peregrine.ratios import Ratio, paired_ratio
from peregrine.report import words
from peregrine.report.store import FILE as REPORT
from peregrine.report.store import read_json
from peregrine.results import Boundary, CandidateResult, MachineRecord, Report, Status, SweepEnd
from peregrine.suite.ask import Ask, RaceAsk
from peregrine.suite.run import ERROR
from peregrine.suite.workflows import OF_SUITE, W0, Workflow, kind_of
from peregrine.types import Precision

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One batch of one entry, at the device boundary unless a name says otherwise."""

    batch: int
    median_ms: float
    ci95_ms: tuple[float, float]
    mean_ms: float
    p99_ms: float
    samples: int
    throughput_per_s: float
    memory_mb: float | None
    """Peak of the worker's process: of the GPU's memory where it ran on one, else the host's."""
    host_median_ms: float | None
    """From numpy arrays to numpy arrays."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A workflow on a network. Without points it says why there are none."""

    network: str
    precision: Precision
    device: str
    workflow: str
    candidate: str = ""
    """The row that stands for it."""
    status: str = ""
    reason: str = ""
    fix: str = ""
    points: tuple[Point, ...] = ()
    ended: str = ""
    """Why there are no larger batches."""
    ended_by: SweepEnd | None = None
    """The cause of that; None where all that were asked for ran, or only words are known."""
    non_equal_percent: float | None = None
    """Elements unlike the reference's at rtol 1e-4; the next at 1e-3. Both with atol 1e-8."""
    non_equal_percent_1e3: float | None = None
    final: tuple[tuple[float, ...], ...] = ()
    """Medians in ms of W0 and of this entry, round by round of the interleaved final."""
    note: str = ""
    """Where it ran, where that is not on one device."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.precision, self.device, self.network, self.workflow

    def point(self, batch: int) -> Point | None:
        return next((p for p in self.points if p.batch == batch), None)

    @property
    def lead_speedup(self) -> Ratio | None:
        """How many times W0's speed it has at the smallest batch, by the final's paired rounds."""
        if len(self.final) != 2 or len(self.final[0]) < 2:
            return None
        base, own = self.final
        return paired_ratio(base, own)


@dataclass(frozen=True, slots=True)
class Study:
    """One suite, or several pieces of one."""

    suite: str
    networks: tuple[str, ...]
    """In print, in the order they were asked for."""
    workflows: tuple[str, ...]
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...]
    batches: tuple[int, ...]
    machines: tuple[MachineRecord, ...]
    versions: Mapping[str, str]
    entries: tuple[Entry, ...]
    asks: tuple[Ask, ...]
    warnings: tuple[str, ...] = ()
    finished: str = ""
    """When the last race ended, UTC."""

    def entry(self, network: str, workflow: str, precision: Precision, device: str) -> Entry | None:
        wanted = (precision, device, network, workflow)
        return next((e for e in self.entries if e.key == wanted), None)

    def workflows_in(self, precision: Precision, device: str) -> tuple[str, ...]:
        """Those that were asked for there, of any network."""
        asked = {e.workflow for e in self.entries if e.key[:2] == (precision, device)}
        return tuple(workflow for workflow in self.workflows if workflow in asked)

    def card(self, device: str) -> str:
        """What the figures are of: the GPU's name, or the processor's."""
        if not self.machines:
            return device
        return words.card(self.machines[-1], gpu=kind_of(device) == "cuda")


def read(paths: Sequence[Path]) -> Study:
    """The study of one suite's directory, or of several pieces together.

    Of two pieces that hold the same network, workflow and batch, the one measured later counts.

    Raises:
        RunDirectoryError: a directory holds no suite.
        OptionError: they are not of one suite, or not of one kind of machine.
    """
    asks = [Ask.load(path) for path in paths]
    if len({ask.suite for ask in asks}) > 1:
        raise OptionError(
            "Pieces of different suites do not merge.",
            why="; ".join(f"{p}: {a.suite}" for p, a in zip(paths, asks, strict=True)),
            fix="Name pieces of one suite.",
        )
    if len({ask.limit_memory_mb for ask in asks}) > 1:
        raise OptionError(
            "Pieces with different memory limits do not merge.",
            why=", ".join(_limit(ask) for ask in asks),
            fix="Give each piece the same --limit-memory.",
        )
    found: list[tuple[str, Entry]] = []
    machines: list[MachineRecord] = []
    versions: dict[str, str] = {}
    unfinished: list[tuple[str, Precision, str]] = []
    whole: set[tuple[str, Precision]] = set()
    last = ""
    for path, ask in zip(paths, asks, strict=True):
        for asked in ask.races():
            report = _report(path / asked.name)
            why = _why_not(path, ask, asked, report)
            if not why:
                whole.update((asked.name, p) for p in ask.precisions)
            else:
                lacking = [p for p in ask.precisions if not _told(report, p)]
                unfinished += [(asked.name, p, why) for p in lacking]
            if report is not None:
                machines.append(report.machine)
                versions.update(report.versions)
                last = max(last, report.finished)
            time = report.finished if report is not None else ""
            workflows = [w for w in ask.chosen if w.offers(asked.device)]
            found += [
                (time, _entry(ask, asked, precision, w, report, why))
                for precision in ask.precisions
                for w in workflows
                if w.takes(precision)
            ]
    _same_machine(machines, asks)
    found.sort(key=lambda pair: pair[0])
    return Study(
        suite=asks[0].suite,
        networks=_in_order(r.label for ask in asks for r in ask.races()),
        workflows=_workflows(asks),
        precisions=tuple(dict.fromkeys(p for ask in asks for p in ask.precisions)),
        devices=_in_order(d for ask in asks for d in ask.devices),
        batches=tuple(sorted({b for ask in asks for b in ask.batches})),
        machines=tuple({_words(m): m for m in machines}.values()),
        versions=dict(sorted(versions.items())),
        entries=tuple(_merged([entry for _, entry in found])),
        asks=tuple(asks),
        # What one piece left for later another may have run.
        warnings=_warnings([lack for lack in unfinished if lack[:2] not in whole]),
        finished=last,
    )


def _warnings(unfinished: Sequence[tuple[str, Precision, str]]) -> tuple[str, ...]:
    """A sentence for each race and reason, with the precisions that lack it."""
    lacking: dict[tuple[str, str], dict[Precision, None]] = {}
    for name, precision, why in unfinished:
        lacking.setdefault((name, why), {})[precision] = None
    return tuple(f"{name} ({', '.join(of)}): {why}" for (name, why), of in lacking.items())


def _limit(ask: Ask) -> str:
    return f"{ask.limit_memory_mb:g} MiB" if ask.limit_memory_mb else "no limit"


def _in_order(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _workflows(asks: Sequence[Ask]) -> tuple[str, ...]:
    chosen = {w.key for ask in asks for w in ask.chosen}
    return tuple(w.key for w in OF_SUITE[asks[0].suite] if w.key in chosen)


def _words(machine: MachineRecord) -> str:
    return " · ".join([machine.cpu, *machine.gpus])


def _same_machine(machines: Sequence[MachineRecord], asks: Sequence[Ask]) -> None:
    for device in _in_order(d for ask in asks for d in ask.devices):
        cards = sorted({words.card(m, gpu=kind_of(device) == "cuda") for m in machines})
        if len(cards) > 1:
            raise OptionError(
                "Pieces from different machines are no one table.",
                why=f"They are of {' and of '.join(cards)}.",
                fix="Report each machine's pieces by themselves.",
            )


def _report(directory: Path) -> Report | None:
    """A race's report; of one that was killed, what its raw rows tell."""
    if (directory / REPORT).is_file():
        return read_json(directory)
    return partial_report(directory)


def _why_not(path: Path, ask: Ask, asked: RaceAsk, report: Report | None) -> str:
    """Why a race of the suite in `path` is not whole; empty where it is."""
    if report is not None and report.complete:
        return ""
    directory = path / asked.name
    try:
        told = json.loads((directory / ERROR).read_bytes())
    except FileNotFoundError:
        if report is not None:
            return "interrupted"
        earlier = [
            name for p in ask.precisions if (path / (name := asked.of_one_precision(p))).is_dir()
        ]
        if not earlier:
            return "not run yet"
        return f"not run yet; {', '.join(earlier)} is of a version that ran each precision alone"
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{directory / ERROR} cannot be read.",
            why=str(error),
            fix="Delete it; the suite runs that race again.",
        ) from error
    return str(told["what"])


def _told(report: Report | None, precision: Precision) -> bool:
    """Whether a race that is not whole has said something of a precision: it has rows of it, or
    no backend could run, and each row says why."""
    rows = report.candidates if report is not None else ()
    raced = [row for row in rows if not row.absent]
    return any(row.precision is precision for row in raced) or bool(rows and not raced)


def _entry(
    ask: Ask,
    asked: RaceAsk,
    precision: Precision,
    workflow: Workflow,
    report: Report | None,
    why: str,
) -> Entry:
    empty = Entry(asked.label, precision, asked.device, workflow.key)
    row = workflow.row(report, asked.device, precision) if report is not None else None
    if report is None or row is None:
        reason = f"{workflow.title} has no {precision} row on {kind_of(asked.device)}."
        return dataclasses.replace(empty, status="absent", reason=why or reason)
    valid = row.status is Status.OK
    points, limited = _points(row, ask) if valid else ((), "")
    judged = row.validation
    placed = row.placement
    return dataclasses.replace(
        empty,
        candidate=row.id,
        status=str(row.status),
        reason=row.reason or limited if not points else "",
        fix=(row.fix or _fix(row, ask, asked)) if not points else "",
        points=points,
        ended=limited or row.sweep_stopped or (f"the last batch asked for, {ask.batches[-1]}"),
        ended_by=SweepEnd.MEMORY if limited else row.sweep_ended_by,
        non_equal_percent=judged.non_equal_percent if judged and valid else None,
        non_equal_percent_1e3=judged.non_equal_percent_1e3 if judged and valid else None,
        final=_final(report, asked, precision, row),
        note=placed.detail if placed is not None and placed.fell_back else "",
    )


def _fix(row: CandidateResult, ask: Ask, asked: RaceAsk) -> str:
    """What to try where validation caught a row: on a GPU there is a precision between."""
    if row.status is not Status.INVALID or row.precision is not Precision.FP32:
        return ""
    if kind_of(asked.device) != "cuda" or Precision.TF32 in ask.precisions:
        return ""
    return "A runtime that computes fp32 in TF32 has its rows there: --precision fp32,tf32."


def _points(row: CandidateResult, ask: Ask) -> tuple[tuple[Point, ...], str]:
    """The measured batches that keep to the memory limit, and why larger ones do not count."""
    points: list[Point] = []
    for m in row.measurements:
        if m.boundary is not Boundary.DEVICE:
            continue
        memory, limit = memory_mb(row, m), ask.limit_memory_mb
        if limit is not None and memory is not None and memory > limit:
            return tuple(points), f"memory: batch {m.batch} takes {memory:.0f} of {limit:.0f} MiB"
        host = row.measurement(m.batch, Boundary.HOST)
        points.append(
            Point(
                batch=m.batch,
                median_ms=m.latency_ms.p50,
                ci95_ms=m.ci95_ms,
                mean_ms=m.latency_ms.mean,
                p99_ms=m.latency_ms.p99,
                samples=len(m.samples_ms),
                throughput_per_s=m.throughput_per_s,
                memory_mb=memory,
                host_median_ms=host.latency_ms.p50 if host else None,
            )
        )
    return tuple(points), ""


def _final(
    report: Report, asked: RaceAsk, precision: Precision, row: CandidateResult
) -> tuple[tuple[float, ...], ...]:
    """The rounds of the final that this row and W0's of the same precision both took part in."""
    base = W0.row(report, asked.device, precision)
    if base is None or base.id == row.id:
        return ()
    medians: dict[str, dict[int, float]] = {base.id: {}, row.id: {}}
    for turn in report.final_rounds:
        if turn.candidate in medians:
            medians[turn.candidate][turn.round] = statistics.median(turn.samples_ms)
    both = sorted(medians[base.id].keys() & medians[row.id].keys())
    if not both:
        return ()
    return tuple(tuple(medians[name][number] for number in both) for name in (base.id, row.id))


def _merged(entries: Sequence[Entry]) -> list[Entry]:
    """Entries of the same key as one, the later one's figures over the earlier one's."""
    merged: dict[tuple[str, str, str, str], Entry] = {}
    for entry in entries:
        before = merged.get(entry.key)
        if before is None or not before.points:
            merged[entry.key] = entry
        elif entry.points:
            points = {p.batch: p for p in (*before.points, *entry.points)}
            largest = max((before, entry), key=lambda e: e.points[-1].batch)
            merged[entry.key] = dataclasses.replace(
                entry,
                points=tuple(points[batch] for batch in sorted(points)),
                ended=largest.ended,
                ended_by=largest.ended_by,
                final=entry.final
                if entry.points[0].batch <= before.points[0].batch
                else before.final,
            )
    return list(merged.values())
