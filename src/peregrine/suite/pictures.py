"""Figures 2 to 6 as PNG, in the colours of the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.report import figures
from peregrine.report.png import COLOURS, DIM, GRID, INK, OTHER, canvas, dress, save
from peregrine.suite.charts import Chart, measured, top
from peregrine.suite.tables import backend_of, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_picture(chart: Chart, path: Path) -> None:
    """Draw one figure.

    Raises:
        OptionError: matplotlib is not installed.
        RunDirectoryError: the directory cannot be written.
    """
    figure = canvas(10.5, 4.6)
    axes = figure.subplots()
    if not measured(chart):
        axes.axis("off")
        axes.text(0, 0.5, "Nothing was measured.", color=DIM, parse_math=False)
    elif chart.bars:
        _bars(axes, chart)
    else:
        _curves(axes, chart)
    save(figure, chart.title, path)


def _colour(workflow: str) -> str:
    return COLOURS.get(backend_of(workflow), OTHER)


def _bars(axes: Axes, chart: Chart) -> None:
    """A group a network; what was not measured leaves its place empty."""
    networks = list(dict.fromkeys(bar.network for bar in chart.bars))
    workflows = list(dict.fromkeys(bar.workflow for bar in chart.bars))
    width = 0.84 / len(workflows)
    for number, workflow in enumerate(workflows):
        drawn = [b for b in chart.bars if b.workflow == workflow and b.value is not None]
        for bar in drawn:
            value = bar.value or 0.0
            low, high = bar.low or value, bar.high or value
            at = networks.index(bar.network) + (number - (len(workflows) - 1) / 2) * width
            axes.bar(at, value, width * 0.92, color=_colour(workflow), alpha=0.9)
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(at, value, yerr=error, color=INK, capsize=2, linewidth=0.9)
            axes.annotate(
                figures.number(value), (at, high), xytext=(0, 3), textcoords="offset points",
                ha="center", fontsize=6.5, color=DIM, rotation=90,
            )  # fmt: skip
        label = title_of(workflow) + ("" if drawn else " (not measured)")
        axes.plot([], [], "s", color=_colour(workflow), label=label)
    axes.set_xticks(range(len(networks)), networks)
    axes.set_ylim(0, 1.15 * max(b.high or b.value or 0.0 for b in chart.bars))
    dress(axes, f"{chart.unit} (bars: 95% interval of the median)")
    axes.grid(axis="y", color=GRID)
    _legend(axes)


def _curves(axes: Axes, chart: Chart) -> None:
    batches: set[int] = set()
    highest = []
    for curve in chart.curves:
        label = title_of(curve.workflow) + ("" if curve.points else " (not measured)")
        values = [value for _, value in curve.points]
        axes.plot(
            [batch for batch, _ in curve.points], values, color=_colour(curve.workflow),
            marker="o", markersize=4, linewidth=1.8, label=label,
        )  # fmt: skip
        batches.update(batch for batch, _ in curve.points)
        highest += values
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    axes.minorticks_off()
    axes.set_ylim(0, top(highest))
    dress(axes, f"{chart.unit}, against batch")
    axes.grid(color=GRID)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below, where it lies on nothing."""
    axes.legend(
        frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=4
    )
