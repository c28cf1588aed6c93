"""The headline as a picture, for a README: who is fastest, and what batches do."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.errors import OptionError
from peregrine.report import figures
from peregrine.report.standings import Row, Standings, at_boundary, standings
from peregrine.report.store import write_bytes
from peregrine.results import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The page's colours on a light ground, a hue a backend.
_COLOURS = {
    "pytorch": "#cf4a14",
    "torch_compile": "#a62a8c",
    "torch_tensorrt": "#846600",
    "tensorrt": "#47790c",
    "onnxruntime": "#2160c9",
    "openvino": "#0b7d86",
    "native": "#6940cf",
}
_OTHER = "#5c6470"
_INK, _DIM, _GRID = "#1b1e24", "#5d6470", "#e4e2dd"
_LINES = ("-", "--", ":", "-.")


def available() -> bool:
    """Whether matplotlib can be imported."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def write_png(report: Report, path: Path) -> None:
    """Write the picture to `path`, replacing what is there in one step.

    Raises:
        OptionError: matplotlib is not installed.
        RunDirectoryError: the directory cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(
            "The picture needs matplotlib.",
            why=str(error),
            fix="python -m pip install 'peregrine-inference[report]'",
        ) from error
    placed = standings(report)
    height = 1.9 + 0.46 * max(5, len(placed.rows))
    figure = Figure(figsize=(12.5, height), dpi=160, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    styles = _styles(placed)
    if placed.rows:
        _ranking(left, placed)
        _throughput(right, placed, styles)
    else:
        for axes in (left, right):
            axes.axis("off")
        left.text(0, 0.5, "No candidate was measured.", color=_DIM, parse_math=False)
    figure.suptitle(
        f"{report.model.name or 'model'}, {report.machine.cpu}", color=_INK, fontsize=12.5,
        fontweight="bold", x=0.01, ha="left", parse_math=False,
    )  # fmt: skip
    held = io.BytesIO()
    figure.savefig(held, format="png", metadata={"Software": "Peregrine"})
    write_bytes(path, held.getvalue())


def _styles(placed: Standings) -> dict[str, str]:
    """Candidate id -> line style: tells candidates of one backend apart."""
    seen: dict[str, int] = {}
    styles = {}
    for row in placed.rows:
        number = seen.get(row.result.backend, 0)
        seen[row.result.backend] = number + 1
        styles[row.result.id] = _LINES[number % len(_LINES)]
    return styles


def _colour(row: Row) -> str:
    return _COLOURS.get(row.result.backend, _OTHER)


def _ranking(axes: Axes, placed: Standings) -> None:
    """Bars from zero, the fastest at the top, each under its name."""
    most = max(row.headline.ci95_ms[1] for row in placed.rows)
    for place, row in enumerate(placed.rows):
        p50, (low, high) = row.headline.latency_ms.p50, row.headline.ci95_ms
        alpha = 0.9 if row.rank else 0.4
        axes.barh(place, p50, height=0.36, color=_colour(row), alpha=alpha)
        error = [[max(0.0, p50 - low)], [max(0.0, high - p50)]]
        axes.errorbar(p50, place, xerr=error, color=_INK, capsize=3, linewidth=1)
        label = f"{figures.number(p50)} ms"
        label += f"  {figures.times(row.speedup)}" if row.speedup else ""
        axes.text(
            max(p50, high) + most * 0.012, place, label, va="center", fontsize=8.5, color=_INK
        )
        title = f"{row.rank or figures.MISSING}  {row.result.id}"
        title += "" if row.rank else "  (may not win)"
        axes.text(
            0, place - 0.24, title, va="bottom", fontsize=8.5, family="monospace",
            color=_INK if row.rank else _DIM, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(0, most * 1.2)
    axes.set_ylim(len(placed.rows) - 0.5, -0.75)
    axes.set_yticks([])
    batches = {row.headline.batch for row in placed.rows}
    at = f"batch {batches.pop()}" if len(batches) == 1 else "each row's best batch"
    _dress(axes, f"Median latency, ms, at {at} (bars: 95% interval)")
    axes.grid(axis="x", color=_GRID)


def _throughput(axes: Axes, placed: Standings, styles: Mapping[str, str]) -> None:
    batches: set[int] = set()
    for row in placed.rows:
        found = at_boundary(row.result, placed.boundary)
        batches.update(m.batch for m in found)
        axes.plot(
            [m.batch for m in found], [m.throughput_per_s for m in found], color=_colour(row),
            linestyle=styles[row.result.id], marker="o", markersize=3.5, linewidth=1.7,
            alpha=0.95 if row.rank else 0.45,
        )  # fmt: skip
    _end_ranks(axes, placed)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _dress(axes, "Throughput, items per second, against batch (numbers: rank)")
    axes.grid(color=_GRID)


def _end_ranks(axes: Axes, placed: Standings) -> None:
    """Each line's rank at its end, pushed apart where they would lie on each other."""
    ends = [(at_boundary(row.result, placed.boundary)[-1], row) for row in placed.rows if row.rank]
    gap = 0.035 * max((end.throughput_per_s for end, _ in ends), default=0.0)
    floor = 0.0
    for end, row in sorted(ends, key=lambda pair: pair[0].throughput_per_s):
        floor = max(end.throughput_per_s, floor + gap)
        axes.annotate(
            str(row.rank), (end.batch, floor), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=_colour(row),
        )  # fmt: skip


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=_DIM)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_DIM, labelsize=8.5, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
