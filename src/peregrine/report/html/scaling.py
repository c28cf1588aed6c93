"""What batches do: throughput and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peregrine.objective import on_gpu
from peregrine.report import figures
from peregrine.report.html.key import Key
from peregrine.report.html.markup import Markup, el
from peregrine.report.html.plot import Axis, Scale, Series, line_chart
from peregrine.report.standings import Standings, at_boundary
from peregrine.results import Measurement


def throughput(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    return _against_batch(
        placed, keys, lambda m: m.throughput_per_s, "items per second",
        lambda v: f"{figures.number(v)} items/s",
    )  # fmt: skip


def memory(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    on_device = any(on_gpu(row.result) for row in placed.rows)
    return _against_batch(
        placed, keys, lambda m: m.peak_mb if m.device is None else m.device_peak_mb,
        f"peak memory of the worker{' on its GPU' if on_device else ''}, MiB", figures.memory,
    )  # fmt: skip


def _against_batch(
    placed: Standings,
    keys: Mapping[str, Key],
    value: Callable[[Measurement], float | None],
    title: str,
    show: Callable[[float], str],
) -> Markup:
    series = []
    for row in placed.rows:
        key = keys[row.result.id]
        points, tips = [], []
        for m in at_boundary(row.result, placed.boundary):
            if (at := value(m)) is not None:
                points.append((float(m.batch), at))
                tips.append(f"{row.result.id}, batch {m.batch}: {show(at)}")
        if points:
            series.append(
                Series(key.mark, row.result.id, key.colour, key.dash, tuple(points), tuple(tips))
            )
    if not series:
        return el("p", "This was not measured.", class_="dim")
    batches = sorted({x for one in series for x, _ in one.points})
    most = max(y for one in series for _, y in one.points)
    x = Axis("batch (logarithmic)", Scale(batches[0], batches[-1], log=True), batches)
    y = Axis(title, Scale(0.0, most * 1.06))
    return line_chart(series, x, y, label=f"{title} against batch, for every candidate")
