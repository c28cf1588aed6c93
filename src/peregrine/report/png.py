"""The headline as a picture, for a README: who is fastest, and what batches do; and the precision
ladder as another."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.errors import OptionError
from peregrine.report import figures, words
from peregrine.report.ladder import Ladder, Rung, drawable, judgement, ladder
from peregrine.report.standings import Row, Standings, at_boundary, standings
from peregrine.report.store import write_bytes
from peregrine.results import Report, Status
from peregrine.types import Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page's colours on a light ground, a hue a backend.
COLOURS = {
    "pytorch": "#cf4a14",
    "torch_compile": "#a62a8c",
    "torch_tensorrt": "#846600",
    "tensorrt": "#47790c",
    "onnxruntime": "#2160c9",
    "openvino": "#0b7d86",
    "native": "#6940cf",
}
OTHER = "#5c6470"
_PRECISIONS = {
    Precision.FP32: "#4a5362",
    Precision.TF32: "#8a6d00",
    Precision.BF16: "#0b7d86",
    Precision.FP16: "#2160c9",
    Precision.FP8: "#a62a8c",
    Precision.INT8: "#c2410c",
}
_ALARM = "#a3222b"
INK, DIM, GRID = "#1b1e24", "#5d6470", "#e4e2dd"
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
    placed = standings(report)
    figure = canvas(12.5, 1.9 + 0.46 * max(5, len(placed.rows)))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    styles = _styles(placed)
    if placed.rows:
        _ranking(left, placed)
        _throughput(right, placed, styles)
    else:
        for axes in (left, right):
            axes.axis("off")
        left.text(0, 0.5, "No candidate was measured.", color=DIM, parse_math=False)
    _save(figure, report, path)


def write_ladder_png(report: Report, path: Path) -> bool:
    """Write the picture of the precision ladder: speed-up against drop with its interval, or
    against the scaled error where nothing tells a drop. False, and nothing written, where the
    race has no ladder to draw.

    Raises:
        OptionError: matplotlib is not installed.
        RunDirectoryError: the directory cannot be written.
    """
    found = ladder(report, standings(report))
    drawn = drawable(found) if found is not None else []
    if found is None or not drawn:
        return False
    figure = canvas(9.5, 5.4)
    axes = figure.subplots()
    _scatter(axes, found, drawn)
    _save(figure, report, path)
    return True


def canvas(width: float, height: float) -> Figure:
    """An empty one, in inches; OptionError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(
            "The picture needs matplotlib.",
            why=str(error),
            fix="python -m pip install 'peregrine-inference[report]'",
        ) from error
    return Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")


def _save(figure: Figure, report: Report, path: Path) -> None:
    """Title it and write it in one step."""
    title = f"{report.model.name or 'model'}, {words.hardware(report)}"
    save(figure, title, path, alarm=words.randomly_calibrated(report) and words.RANDOM)


def save(figure: Figure, title: str, path: Path, *, alarm: str = "") -> None:
    """Title a picture, with an alarm below where there is one, and write it in one step.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    head = figure.suptitle(
        title, color=INK, fontsize=12.5, fontweight="bold", x=0.01, ha="left", parse_math=False
    )
    if alarm:
        head.set_text(f"{title}\n{alarm}")
        head.set_color(_ALARM)
    held = io.BytesIO()
    figure.savefig(held, format="png", metadata={"Software": "Peregrine"})
    write_bytes(path, held.getvalue())


def _scatter(axes: Axes, found: Ladder, drawn: Sequence[tuple[Rung, float]]) -> None:
    """A point a row under its precision's colour, hollow where its accuracy is undecided."""
    least = min((e for rung, _ in drawn if (e := _error(rung)) > 0), default=1e-9)
    named: list[tuple[float, float, str, str]] = []
    for rung, gain in drawn:
        colour, guard = _PRECISIONS[rung.result.precision], rung.guard
        if guard is not None and found.guarded:
            y, (low, high) = guard.drop, guard.ci95
        else:  # a logarithmic axis has no place for an error of zero
            y = low = high = max(_error(rung), least)
        hollow = judgement(rung.result).startswith("undecided")
        axes.errorbar(
            gain, y, yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], color=colour, capsize=3,
            linewidth=1.3, marker="o", markersize=7.5, markeredgewidth=2,
            markerfacecolor="white" if hollow else colour,
        )  # fmt: skip
        if rung.result.precision is not Precision.FP32 or rung.over_best == 1:
            text = f"{rung.result.backend} {rung.name}" + (" (undecided)" if hollow else "")
            named.append((gain, y, text, colour))
    what = "Scaled error against the reference"
    if found.guarded:
        axes.axhline(0, color=DIM, linewidth=1, linestyle=":")
        unit = f", {found.unit}" if found.unit else ""
        what = f"Drop in {found.measure}{unit} (bars: 95% interval)"
    else:
        axes.set_yscale("log")
        axes.minorticks_off()
    if found.max_drop is not None:
        axes.axhline(found.max_drop, color=_ALARM, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"max drop {figures.points(found.max_drop)}", (1, found.max_drop), ha="right",
            xycoords=("axes fraction", "data"), xytext=(-4, 4), textcoords="offset points",
            fontsize=8, color=_ALARM,
        )  # fmt: skip
    base = found.measured_against()
    dress(axes, f"{what}, against speed-up over {base.result.id if base else 'fp32'}")
    axes.set_xlim(0, 1.28 * max(gain for _, gain in drawn))  # room for the last name
    axes.grid(color=GRID)
    _names(axes, named)
    for precision, colour in _PRECISIONS.items():
        if any(rung.result.precision is precision for rung, _ in drawn):
            axes.plot([], [], "o", color=colour, label=str(precision))
    axes.legend(frameon=False, fontsize=8.5, loc="best")


def _names(axes: Axes, named: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside points, moved up or down where one would lie on another."""
    size, step = 8.0, 11.0
    taken: list[tuple[float, float, float]] = []
    for x, y, text, colour in sorted(named):
        left, up = (float(v) * 72 / axes.figure.dpi for v in axes.transData.transform((x, y)))
        right = left + 0.58 * size * len(text)
        moves = [5.0 + sign * step * n for n in range(6) for sign in (1, -1)]
        free = (
            move for move in moves
            if all(right < a or left > b or abs(up + move - at) >= step for a, b, at in taken)
        )  # fmt: skip
        move = next(free, moves[0])
        taken.append((left, right, up + move))
        axes.annotate(
            words.plain(text), (x, y), xytext=(8, move), textcoords="offset points", fontsize=size,
            color=colour, parse_math=False,
        )  # fmt: skip


def _error(rung: Rung) -> float:
    return rung.result.validation.scaled_error if rung.result.validation else 0.0


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
    return COLOURS.get(row.result.backend, OTHER)


def _ranking(axes: Axes, placed: Standings) -> None:
    """Bars from zero, the fastest at the top, each under its name."""
    most = max(row.headline.ci95_ms[1] for row in placed.rows)
    for place, row in enumerate(placed.rows):
        p50, (low, high) = row.headline.latency_ms.p50, row.headline.ci95_ms
        alpha = 0.9 if row.rank else 0.4
        axes.barh(place, p50, height=0.36, color=_colour(row), alpha=alpha)
        error = [[max(0.0, p50 - low)], [max(0.0, high - p50)]]
        axes.errorbar(p50, place, xerr=error, color=INK, capsize=3, linewidth=1)
        label = f"{figures.number(p50)} ms"
        label += f"  {figures.times(row.speedup)}" if row.speedup else ""
        axes.text(max(p50, high) + most * 0.012, place, label, va="center", fontsize=8.5, color=INK)
        title = f"{row.rank or figures.MISSING}  {row.result.id}"
        undecided = row.result.status is Status.UNDECIDED
        title += "" if row.rank else "  (undecided)" if undecided else "  (may not win)"
        axes.text(
            0, place - 0.24, title, va="bottom", fontsize=8.5, family="monospace",
            color=INK if row.rank else DIM, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(0, most * 1.2)
    axes.set_ylim(len(placed.rows) - 0.5, -0.75)
    axes.set_yticks([])
    batches = {row.headline.batch for row in placed.rows}
    at = f"batch {batches.pop()}" if len(batches) == 1 else "each row's best batch"
    dress(axes, f"Median latency, ms, at {at} (bars: 95% interval)")
    axes.grid(axis="x", color=GRID)


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
    dress(axes, "Throughput, items per second, against batch (numbers: rank)")
    axes.grid(color=GRID)


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


def dress(axes: Axes, title: str) -> None:
    axes.set_title(words.plain(title), loc="left", fontsize=9.5, color=DIM, parse_math=False)
    axes.set_axisbelow(True)
    axes.tick_params(colors=DIM, labelsize=8.5, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
