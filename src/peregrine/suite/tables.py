"""The tables of the two studies, ours over the published one, as words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peregrine.report import figures
from peregrine.results import SweepEnd
from peregrine.suite import published
from peregrine.suite.study import Entry, Point, Study
from peregrine.suite.workflows import OF_SUITE, W0, kind_of
from peregrine.types import Precision

OURS, PUBLISHED = "ours", "published"


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    value: float | None = None
    note: str = ""
    """Why there is no figure, or how it came about."""
    small: tuple[str, ...] = ()
    """What stands below the figure in small print: its spread, where it was reached."""


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    whose: str
    """`ours` or `published`."""
    card: str
    cells: tuple[Cell, ...]
    colour: str = ""
    """The backend whose colour it has; empty for none."""


@dataclass(frozen=True, slots=True)
class Table:
    id: str
    title: str
    lead: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


_GONE = figures.MISSING


def title_of(workflow: str, suite: str = "paper") -> str:
    """`W1 Torch-TensorRT`."""
    found = next(w for w in OF_SUITE[suite] if w.key == workflow)
    return f"{found.key} {found.title}"


def backend_of(workflow: str, suite: str = "paper") -> str:
    return next(w for w in OF_SUITE[suite] if w.key == workflow).backend


def paper_tables(study: Study, precision: Precision, device: str) -> tuple[Table, ...]:
    """Tables I, III and IV for one precision on one device."""
    known = published.paper()
    name = f"{precision}, {study.card(device)}"
    changed = "the device" if precision is Precision.FP32 else f"{precision} on the device"
    one = _table(
        study, precision, device, "table-1",
        f"Table I. Maximum batch size ({name})",
        "The largest power of two that ran and gave right outputs"
        + (" within the memory limit." if study.asks[0].limit_memory_mb else "."),
        _largest, known.largest_batch, lambda v: f"{v:g}",
    )  # fmt: skip
    three = _table(
        study, precision, device, "table-3",
        f"Table III. Percentage of non-equal elements in output tensors ({name})",
        "numpy.isclose with rtol 1e-3 and atol 1e-8. Ours are against PyTorch in fp32 on the CPU "
        f"and random inputs, the worst of all; W0's own line is what {changed} alone changes.",
        _non_equal, known.non_equal_percent, lambda v: f"{v:.6f}".rstrip("0").rstrip(".") + "%",
    )  # fmt: skip
    return one, three, _speedups(study, precision, device)


def _table(
    study: Study,
    precision: Precision,
    device: str,
    id: str,
    title: str,
    lead: str,
    cell: Callable[[Entry], Cell],
    known: Mapping[str, Mapping[str, float]],
    show: Callable[[float], str],
) -> Table:
    lines = []
    for workflow in study.workflows_in(precision, device):
        ours = [
            _cell(study.entry(network, workflow, precision, device), cell)
            for network in study.networks
        ]
        label, colour = title_of(workflow), backend_of(workflow)
        lines.append(Line(label, OURS, study.card(device), tuple(ours), colour))
        if workflow in known and not set(known[workflow]).isdisjoint(study.networks):
            theirs = tuple(_published(known[workflow].get(n), show) for n in study.networks)
            lines.append(Line(label, PUBLISHED, published.paper().source.card, theirs, colour))
    return Table(_id(id, precision, device), title, lead, study.networks, tuple(lines))


def _id(id: str, precision: Precision, device: str) -> str:
    """A table's name among those of all precisions and devices."""
    return f"{id}-{precision}-{kind_of(device)}"


def _cell(entry: Entry | None, cell: Callable[[Entry], Cell]) -> Cell:
    if entry is None:
        return Cell(_GONE, note="not asked for")
    return cell(entry) if entry.points else _gone(entry)


def _gone(entry: Entry) -> Cell:
    """No figure, and in a word why: a row that was wrong is not one that was not run."""
    small = () if entry.points else (entry.status,)
    return Cell(_GONE, note=entry.reason or entry.ended or entry.status, small=small)


def _published(value: float | None, show: Callable[[float], str]) -> Cell:
    return Cell(_GONE, note="not published") if value is None else Cell(show(value), value)


def _largest(entry: Entry) -> Cell:
    batch = entry.points[-1].batch
    small = () if entry.ended_by in (None, SweepEnd.LAST) else (str(entry.ended_by),)
    return Cell(str(batch), batch, entry.ended, small)


def _non_equal(entry: Entry) -> Cell:
    value = entry.non_equal_percent_1e3
    return Cell("0%" if value == 0 else f"{figures.number(value)}%", value)


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as W0 at the same batch."""

    ratio: float
    low: float
    high: float
    workflow: str
    batch: int


def best_speedup(study: Study, network: str, precision: Precision, device: str) -> Speedup | None:
    """The largest over all workflows and batches, of medians; its interval is the widest that
    the 95% intervals of the two medians allow."""
    base = study.entry(network, W0.key, precision, device)
    found = []
    for workflow in study.workflows:
        entry = study.entry(network, workflow, precision, device)
        if workflow == W0.key or entry is None or base is None:
            continue
        found += [
            _ratio(point, other, workflow)
            for point in entry.points
            if (other := base.point(point.batch)) is not None
        ]
    return max(found, key=lambda s: s.ratio, default=None)


def _ratio(own: Point, base: Point, workflow: str) -> Speedup:
    return Speedup(
        base.median_ms / own.median_ms,
        base.ci95_ms[0] / own.ci95_ms[1],
        base.ci95_ms[1] / own.ci95_ms[0],
        workflow,
        own.batch,
    )


def _speedups(study: Study, precision: Precision, device: str) -> Table:
    known = published.paper()
    best = []
    for network in study.networks:
        found = best_speedup(study, network, precision, device)
        if found is None:
            best.append(Cell(_GONE, note="needs W0 and another workflow at the same batch"))
        else:
            spread = figures.interval(found.low, found.high)
            small = (spread, f"{found.workflow}, batch {found.batch}")
            best.append(Cell(figures.times(found.ratio), found.ratio, small=small))
    card = study.card(device)
    lines = [Line("Best workflow, any batch", OURS, card, tuple(best))]
    for workflow in study.workflows_in(precision, device):
        if workflow == W0.key:
            continue
        cells = tuple(
            _cell(study.entry(network, workflow, precision, device), _lead)
            for network in study.networks
        )
        label = f"{title_of(workflow)}, smallest batch"
        lines.append(Line(label, OURS, card, cells, backend_of(workflow)))
    if not set(known.speedup).isdisjoint(study.networks):
        theirs = tuple(_published(known.speedup.get(n), figures.times) for n in study.networks)
        lines.insert(1, Line("Best workflow", PUBLISHED, known.source.card, theirs))
    lead = (
        f"Time of PyTorch (W0) in {precision} over the workflow's, at the device boundary. The "
        "best of any batch is of two medians taken minutes apart; at the smallest batch, by "
        "interleaved rounds of the final, with their 95% interval."
    )
    return Table(
        _id("table-4", precision, device),
        f"Table IV. Maximum speed-up ({precision}, {card})", lead,
        study.networks, tuple(lines),
    )  # fmt: skip


def _lead(entry: Entry) -> Cell:
    ratio = entry.lead_speedup
    if ratio is None:
        return Cell(_GONE, note="it and W0 were not in one final; was memory short for both?")
    small = (figures.interval(ratio.low, ratio.high),)
    return Cell(figures.times(ratio.mean), ratio.mean, f"{ratio.pairs} interleaved rounds", small)


_ROWS = (("cpu", "CPU"), ("cuda", "CUDA"), ("tensorrt", "TensorRT"))
_COLUMNS = (("pytorch", "PyTorch"), ("onnxruntime", "ONNX Runtime"), ("tensorrt", "TensorRT"))
_CELLS = {
    ("cpu", "pytorch"): ("cpu", "W0"),
    ("cpu", "onnxruntime"): ("cpu", "onnxruntime-cpu"),
    ("cuda", "pytorch"): ("cuda", "W0"),
    ("cuda", "onnxruntime"): ("cuda", "onnxruntime-cuda"),
    ("tensorrt", "pytorch"): ("cuda", "torch-tensorrt"),
    ("tensorrt", "onnxruntime"): ("cuda", "onnxruntime-tensorrt"),
    ("tensorrt", "tensorrt"): ("cuda", "W2"),
}
"""Row and column of the table -> kind of device and workflow."""


def resnet50_table(study: Study, network: str, precision: Precision, batch: int) -> Table:
    """Median milliseconds at one batch on each device by each runtime."""
    known = published.resnet50()
    lines = []
    for row, label in _ROWS:
        kind = "cpu" if row == "cpu" else "cuda"
        devices = [d for d in study.devices if d.startswith(kind)]
        cells = []
        for column, _ in _COLUMNS:
            _, workflow = _CELLS.get((row, column), ("", ""))
            if not workflow:
                cells.append(Cell(_GONE, note="no such workflow"))
                continue
            entries = [e for d in devices if (e := study.entry(network, workflow, precision, d))]
            cells.append(_ms(entries[0], batch) if entries else Cell(_GONE, note=f"not on {kind}"))
        card = study.card(devices[0]) if devices else f"no {label} here"
        lines.append(Line(label, OURS, card, tuple(cells)))
        theirs = known.average_ms[row]
        shown = tuple(_published(theirs.get(c), lambda v: f"{v:g} ms") for c, _ in _COLUMNS)
        if network == "resnet50" and batch == 1:
            lines.append(Line(label, PUBLISHED, known.source.card, shown))
    lead = (
        f"Milliseconds of one inference of batch {batch}: ours are medians at the device boundary "
        "with their 95% intervals, the published ones averages in a precision "
        "that is not named. TensorRT by PyTorch is torch2trt in the published table, "
        "Torch-TensorRT here where torch2trt is absent."
    )
    columns = tuple(title for _, title in _COLUMNS)
    title = f"Inference time of {network} ({precision}, batch {batch})"
    return Table(f"table-{network}-{precision}-{batch}", title, lead, columns, tuple(lines))


def _ms(entry: Entry, batch: int) -> Cell:
    point = entry.point(batch)
    if point is None:
        return _gone(entry)
    small = (f"{figures.interval(*point.ci95_ms)} ms", f"{point.samples} runs", entry.candidate)
    return Cell(f"{figures.number(point.median_ms)} ms", point.median_ms, small=small)
