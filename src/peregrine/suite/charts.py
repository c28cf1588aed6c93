"""What figures 2 to 6 of the paper show, as data: bars a network, or lines over the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peregrine.suite import published
from peregrine.suite.study import Entry, Point, Study
from peregrine.types import Precision


@dataclass(frozen=True, slots=True)
class Bar:
    network: str
    workflow: str
    value: float | None
    """None where nothing was measured."""
    low: float | None = None
    high: float | None = None
    """95% interval of the median."""
    note: str = ""
    """The batch, or why there is no bar."""


@dataclass(frozen=True, slots=True)
class Curve:
    workflow: str
    points: tuple[tuple[int, float], ...]
    note: str = ""
    """Why there are none."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure of the paper: of all networks as bars, or of one as curves."""

    id: str
    """`figure-2` to `figure-6`."""
    title: str
    unit: str
    said: str
    """What the paper says of its own."""
    bars: tuple[Bar, ...] = ()
    network: str = ""
    curves: tuple[Curve, ...] = ()


_OF_ONE = {"figure-4": ("resnet152", -1), "figure-5": ("resnet34", 0), "figure-6": ("resnet50", 1)}
"""Figure -> the paper's network for it, and which of those measured stands in for it."""


def charts(study: Study, precision: Precision, device: str) -> tuple[Chart, ...]:
    """Figures 2 to 6 for one precision on one device."""
    said = published.paper().said
    smallest = study.batches[0]
    memory = "GPU memory" if device.startswith("cuda") else "Memory"
    card = f"{precision}, {study.card(device)}"
    two = Chart(
        "figure-2", f"Figure 2. Inference time at batch {smallest} ({card})", "ms",
        said["figure-2"], _bars(study, precision, device, lambda e: _time(e, smallest)),
    )  # fmt: skip
    three = Chart(
        "figure-3", f"Figure 3. Maximum throughput of any batch ({card})", "items/s",
        said["figure-3"], _bars(study, precision, device, _throughput),
    )  # fmt: skip
    found = [two, three]
    for id in _OF_ONE:
        network = _network(study, id)
        what = f"{'Throughput' if id == 'figure-4' else memory} of {network} over the batch"
        found.append(
            Chart(
                id, f"Figure {id[-1]}. {what} ({card})",
                "items/s" if id == "figure-4" else "MiB",
                said[id], (), network, curves(study, network, precision, device, id),
            )
        )  # fmt: skip
    return tuple(found)


def curves(
    study: Study, network: str, precision: Precision, device: str, id: str
) -> tuple[Curve, ...]:
    """A line a workflow for one network: throughput for figure 4, memory for 5 and 6."""

    def value(point: Point) -> float | None:
        return point.throughput_per_s if id == "figure-4" else point.memory_mb

    found = []
    for workflow in study.workflows_in(precision, device):
        entry = study.entry(network, workflow, precision, device)
        points = entry.points if entry else ()
        line = tuple((p.batch, at) for p in points if (at := value(p)) is not None)
        reason = entry.reason if entry else "not asked for"
        found.append(Curve(workflow, line, "" if line else reason or "not measured"))
    return tuple(found)


def _network(study: Study, id: str) -> str:
    """The paper's network for a figure, or another where that was not asked for."""
    wanted, stand_in = _OF_ONE[id]
    if wanted in study.networks:
        return wanted
    return study.networks[min(stand_in, len(study.networks) - 1)]


def _bars(
    study: Study, precision: Precision, device: str, bar: Callable[[Entry], Bar]
) -> tuple[Bar, ...]:
    found = []
    for network in study.networks:
        for workflow in study.workflows_in(precision, device):
            entry = study.entry(network, workflow, precision, device)
            if entry is None or not entry.points:
                reason = entry.reason if entry else "not asked for"
                found.append(Bar(network, workflow, None, note=reason or "not measured"))
            else:
                found.append(bar(entry))
    return tuple(found)


def _time(entry: Entry, batch: int) -> Bar:
    point = entry.point(batch)
    if point is None:
        return Bar(entry.network, entry.workflow, None, note=f"not measured at batch {batch}")
    low, high = point.ci95_ms
    return Bar(entry.network, entry.workflow, point.median_ms, low, high, f"batch {batch}")


def _throughput(entry: Entry) -> Bar:
    best = max(entry.points, key=lambda p: p.throughput_per_s)
    low, high = (best.throughput_per_s * best.median_ms / end for end in reversed(best.ci95_ms))
    note = f"batch {best.batch}"
    return Bar(entry.network, entry.workflow, best.throughput_per_s, low, high, note)


def measured(chart: Chart) -> bool:
    """Whether there is anything to draw."""
    return any(b.value is not None for b in chart.bars) or any(c.points for c in chart.curves)


def top(values: Sequence[float]) -> float:
    """The end of an axis that begins at zero."""
    return 1.06 * max(values)
