"""The short phrases that stand for a row's state: badge, place, placement, machine, model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from peregrine.model.graphs import REPAIRED
from peregrine.objective import on_gpu
from peregrine.report import figures
from peregrine.report.standings import Row
from peregrine.results import (
    CandidateResult,
    Comparison,
    Concurrency,
    Conversion,
    Guard,
    MachineRecord,
    ModelRecord,
    Report,
    Status,
)
from peregrine.select import CONCESSION
from peregrine.types import Placement

RANDOM = "Calibrated on random numbers, as asked for: says nothing about accuracy on real data"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str) -> str:
    """Text that may hold what a crashing runtime printed, without the power to move a cursor."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _ESCAPES.sub("", text))


def badge(result: CandidateResult) -> str:
    """The status, or what is worse than it."""
    if result.status is Status.OK and result.disqualified:
        return "disqualified"
    if result.status is Status.OK and not result.measurements:
        return "not measured"
    return str(result.status)


def place(row: Row, report: Report) -> str:
    """`1`, `2`, `1=` for a tie, a dash for a row that may not win."""
    if row.rank is None:
        return figures.MISSING
    winner = report.winner
    if winner and winner.tie_with and (row.tied or row.result.id == winner.id):
        return "1="
    return str(row.rank)


def reason(result: CandidateResult) -> str:
    """Why a row may not win."""
    if result.disqualified:
        return result.disqualified
    if result.reason:
        return result.reason
    guard = result.validation.guard if result.validation else None
    if result.status is Status.UNDECIDED:
        return _undecided(guard)
    if result.status is Status.OK:
        return "It ran and was judged right, but no speed was measured."
    return "No reason was recorded; see its log."


def of_items(guard: Guard | None, number: int) -> str:
    """`about 840 more images`."""
    images = guard is not None and guard.measure == "top-1"
    return f"about {number:,} more {'images' if images else 'items'}"


def asides(result: CandidateResult) -> list[str]:
    """What must be said beside a row's figures: that they rest on random numbers, that its
    precision brings nothing here, what a repair did."""
    said = []
    if result.conversion is not None and result.conversion.random_calibration:
        said.append(RANDOM)
    if result.useless:
        said.append(f"no use here: {result.useless}")
    return [*said, *repaired(result)]


def repaired(result: CandidateResult) -> list[str]:
    """`repaired: 2 layers kept in fp32, 1.04 times the time of the unrepaired graph`, or why
    not; empty where no repair was tried."""
    repair = result.repair
    if repair is None:
        return []
    kept = result.conversion.kept if result.conversion is not None else ()
    if not result.graph.endswith(REPAIRED):
        return [f"not repaired: {repair.outcome}"]
    text = f"repaired: {figures.count(len(kept), 'layer')} kept in fp32" if kept else "repaired"
    if repair.cost is not None:
        text += f", {figures.times(repair.cost)} the time of the unrepaired graph"
    return [text]


def engine(result: CandidateResult) -> str:
    """`engine from the cache: built in 18.1 s on 2026-11-20, loaded in 0.7 s (26×)`; or why a
    kept one was not taken; empty where there was none."""
    origin = result.engine
    if origin is None:
        return ""
    if not origin.cached:
        return f"engine built anew: {origin.missed}"
    text = (
        f"engine from the cache: built in {figures.seconds(result.build_s)} on "
        f"{origin.built.partition('T')[0]}, loaded in {figures.seconds(origin.load_s)}"
    )
    if result.build_s and origin.load_s:
        text += f" ({figures.times(result.build_s / origin.load_s)})"
    return text


def randomly_calibrated(report: Report) -> str:
    """The sentence that every rendering shows loudly; empty where there is no cause."""
    rows = [c.id for c in report.candidates if c.conversion and c.conversion.random_calibration]
    return f"{RANDOM}: {', '.join(rows)}." if rows else ""


def conversion_time(made: Conversion) -> str:
    """`12.3 s`, `from the cache (12.3 s when it was made)`."""
    took = figures.seconds(made.seconds)
    return f"from the cache ({took} when it was made)" if made.cached else took


def counts(operators: Mapping[str, int]) -> str:
    """`Conv 49, Gemm 1`, the most first."""
    ordered = sorted(operators.items(), key=lambda item: -item[1])
    return ", ".join(f"{operator} {number:,}" for operator, number in ordered)


def placement(placed: Placement | None) -> str:
    """`CPU 84`, `CUDA 101 + CPU 12, 4 copies, fell back`."""
    if placed is None:
        return figures.MISSING
    nodes = sorted(placed.nodes.items(), key=lambda item: -item[1])
    parts = [" + ".join(f"{_short(name)} {number}" for name, number in nodes) or placed.device]
    if placed.copies:
        parts.append(figures.count(placed.copies, "copy", "copies"))
    if placed.graph_breaks:
        parts.append(figures.count(placed.graph_breaks, "graph break"))
    if placed.fell_back:
        parts.append("fell back")
    return ", ".join(parts)


def hardware(report: Report) -> str:
    """The GPU where rows ran on one, else the processor; by name alone."""
    return card(report.machine, gpu=any(on_gpu(row) for row in report.candidates))


def card(record: MachineRecord, *, gpu: bool) -> str:
    """The name of the processor, or of the `gpu` where there is one."""
    return record.gpus[0].partition(" (")[0] if gpu and record.gpus else record.cpu


def machine(record: MachineRecord) -> str:
    parts = [
        record.cpu,
        f"{figures.count(record.physical_cores, 'core')}",
        figures.memory(record.memory_mb),
        *record.gpus,
        record.os,
    ]
    return " · ".join(part for part in parts if part)


def model(record: ModelRecord) -> str:
    """What went in, beside its name."""
    size = f"{record.parameters / 1e6:,.2f} M parameters" if record.parameters else ""
    return " · ".join(part for part in (size, *map(str, record.inputs)) if part)


def level(found: Comparison) -> str:
    """What a finalist that is tied with the winner is called, empty for the others: `tie`, or
    `not told apart` where it looked slower but the rounds were too few or too noisy to say so."""
    if not found.tie:
        return ""
    return "tie" if found.ratio <= 1 + CONCESSION else "not told apart"


def scaling(report: Report, found: Concurrency) -> float | None:
    """Its throughput over that of one session of the same candidate; None without that."""
    one = (c for c in report.concurrency if c.candidate == found.candidate and c.sessions == 1)
    base = next((c.throughput_per_s for c in one), 0.0)
    return found.throughput_per_s / base if base and found.throughput_per_s else None


def sharing(report: Report) -> str:
    """How sessions share the machine."""
    if any(c.threads is not None for c in report.concurrency):
        return "The race's threads are shared out among them."
    return "Each has a stream of its own on the GPU."


def shown(path: str) -> str:
    """A path as it is best typed: relative where it lies below the current directory."""
    if path and Path(path).is_relative_to(Path.cwd()):
        return str(Path(path).relative_to(Path.cwd()))
    return path


def objective(report: Report, batch: int, boundary: str) -> str:
    """What the race was for, and where its rows are ranked."""
    parts = [report.objective]
    if report.objective.startswith("throughput"):
        parts.append("each row at its best batch")
    elif "at batch" not in report.objective:
        parts.append(f"batch {batch}")
    if "boundary" not in report.objective:
        parts.append(f"{boundary} boundary")
    return ", ".join(part for part in parts if part)


def _undecided(guard: Guard | None) -> str:
    if guard is not None and guard.reason:
        return guard.reason
    text = "Undecided: the data cannot tell whether its accuracy is good enough"
    if guard is None or not guard.more_items:
        return f"{text}."
    return f"{text}; {of_items(guard, guard.more_items)} would decide."


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider") or provider
