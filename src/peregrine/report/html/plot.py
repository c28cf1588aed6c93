"""Charts as inline SVG that needs no script, scales to any width, and takes its colours from CSS.

Geometry lives in a 0..1000 box that stretches; strokes do not stretch with it, and words are
HTML beside it, so that they keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from peregrine.report import figures
from peregrine.report.html.markup import Markup, Node, el, join

BOX = 1000.0
DASHES = ("", "7 4", "2 4", "12 4 2 4", "12 4 2 4 2 4")


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to 0..1000 along one axis."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return BOX * (at - low) / (high - low) if high > low else BOX / 2

    def ticks(self, about: int = 5) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, about)


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / max(1, about)
    if raw <= 0:
        return [low]
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks: tuple[tuple[float, ...], ...] = (
        (1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8),
    )  # fmt: skip
    found: list[float] = []
    for choice in marks:
        found = [m * 10.0**d for d in decades for m in choice if low <= m * 10.0**d <= high]
        if len(found) >= 4:
            break
    return found


@dataclass(frozen=True, slots=True)
class Series:
    """One candidate's line. `key` is the short mark that stands for it everywhere."""

    key: str
    name: str
    colour: str
    """A CSS variable's name."""
    dash: str
    points: tuple[tuple[float, float], ...]
    tips: tuple[str, ...] = ()
    """A sentence a point; points without one have no dot."""
    key_at: tuple[float, float] | None = None
    """Where its key stands; None: at its right end."""


@dataclass(frozen=True, slots=True)
class Axis:
    title: str
    scale: Scale
    ticks: Sequence[float] = field(default=())
    unit: str = ""

    @property
    def marks(self) -> Sequence[float]:
        return self.ticks or self.scale.ticks()

    def label(self, value: float) -> str:
        return f"{_plain_number(value)}{self.unit}"


def _plain_number(value: float) -> str:
    return f"{value:,.10g}" if value < 1e6 else figures.number(value)


def path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def svg(*children: Node, class_: str = "", label: str = "") -> Markup:
    return el(
        "svg", *children, class_=class_ or None, viewBox="0 0 1000 1000",
        preserveAspectRatio="none", role="img" if label else None, aria_label=label or None,
        aria_hidden=None if label else "true",
    )  # fmt: skip


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, label: str) -> Markup:
    """Lines over x and y with their keys at their ends and a legend below."""
    grid = [el("path", d=f"M0 {BOX - y.scale(v):.1f}H1000", class_="grid") for v in y.marks]
    lines: list[Node] = []
    for one in series:
        at = [(x.scale(px), BOX - y.scale(py)) for px, py in one.points]
        dots = [
            [
                el("path", d=f"M{px:.1f} {py:.1f}h.01", class_="dot"),
                el("path", el("title", tip), d=f"M{px:.1f} {py:.1f}h.01", class_="hit",
                   data_tip=tip),
            ]
            for (px, py), tip in zip(at, one.tips, strict=False)
        ]  # fmt: skip
        line = el("path", d=path(at), class_="line", stroke_dasharray=one.dash or None)
        lines.append(el("g", line, dots, class_="series", data_key=one.key, style=_colour(one)))
    plot = el(
        "div",
        svg(grid, lines, label=label),
        [_mark(y.label(v), "ytick", "bottom", y.scale(v)) for v in y.marks],
        [_mark(x.label(v), "xtick", "left", x.scale(v)) for v in x.marks],
        _end_keys([s for s in series if s.key_at is None], y.scale),
        [_inner_key(s, s.key_at, x.scale, y.scale) for s in series if s.key_at],
        class_="plot",
    )
    return el(
        "figure", el("div", y.title, class_="ytitle"), plot, el("div", x.title, class_="xtitle"),
        legend(series), class_="chart",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate in a scatter plot."""

    key: str
    name: str
    colour: str
    """A CSS variable's name."""
    at: tuple[float, float]
    interval: tuple[float, float]
    """Of y; both ends y itself where there is none."""
    kind: str
    """ok, undecided (hollow) or failed (a cross)."""
    tip: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A level line across a plot."""

    at: float
    words: str
    """Empty for none."""
    class_: str


def scatter(
    points: Sequence[Point], x: Axis, y: Axis, rules: Sequence[Rule] = (), *, label: str
) -> Markup:
    """A point a candidate with the interval of its y, its key beside it and a legend below."""
    grid = [el("path", d=f"M0 {BOX - y.scale(v):.1f}H1000", class_="grid") for v in y.marks]
    grid += [el("path", d=f"M{x.scale(v):.1f} 0V1000", class_="grid") for v in x.marks]
    lines = [
        el("path", d=f"M0 {BOX - y.scale(rule.at):.1f}H1000", class_=rule.class_) for rule in rules
    ]
    whiskers = []
    for one in points:
        at = x.scale(one.at[0])
        low, high = (BOX - y.scale(end) for end in one.interval)
        if low > high:
            caps = "".join(f"M{at - 4:.1f} {end:.1f}h8" for end in (low, high))
            whiskers.append(
                el("path", d=f"M{at:.1f} {low:.1f}V{high:.1f}{caps}", class_="whisker series",
                   data_key=one.key, style=f"--c:var({one.colour})")
            )  # fmt: skip
    places = _key_places([(x.scale(p.at[0]), y.scale(p.at[1])) for p in points])
    plot = el(
        "div",
        svg(grid, lines, whiskers, label=label),
        [_mark(y.label(v), "ytick", "bottom", y.scale(v)) for v in y.marks],
        [_mark(x.label(v), "xtick", "left", x.scale(v)) for v in x.marks],
        [
            el("span", rule.words, class_=f"rule {rule.class_}",
               style=f"bottom:{y.scale(rule.at) / 10:.2f}%")
            for rule in rules if rule.words
        ],
        [_spot(p, x.scale(p.at[0]), y.scale(p.at[1])) for p in points],
        [
            el("span", p.key, class_="spotkey series", data_key=p.key,
               style=f"left:{left / 10:.2f}%;bottom:{up / 10:.2f}%;--c:var({p.colour})")
            for p, (left, up) in zip(points, places, strict=True)
        ],
        class_="plot",
    )  # fmt: skip
    items = [
        el("li", el("span", class_=f"spot {p.kind}"), el("b", p.key), " ", p.name,
           data_key=p.key, style=f"--c:var({p.colour})")
        for p in points
    ]  # fmt: skip
    return el(
        "figure", el("div", y.title, class_="ytitle"), plot, el("div", x.title, class_="xtitle"),
        el("ul", items, class_="legend"), class_="chart scatter",
    )  # fmt: skip


def _spot(point: Point, left: float, up: float) -> Markup:
    return el(
        "span", class_=f"spot series {point.kind}", data_key=point.key, data_tip=point.tip,
        title=point.tip,
        style=f"left:{left / 10:.2f}%;bottom:{up / 10:.2f}%;--c:var({point.colour})",
    )  # fmt: skip


_KEY_BOX = (30.0, 52.0)
"""About the size of a key in the plot's 0..1000 box, at the page's full width."""


def _key_places(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A place for each point's key: beside it, or the nearest where it lies on nothing."""
    wide, high = _KEY_BOX
    taken = list(spots)
    found = []
    for left, up in spots:
        near = [(left + wide * dx, up + high * dy) for dy, dx in _TRIES]
        free = [
            (a, b) for a, b in near
            if all(abs(a - c) >= wide * 0.7 or abs(b - d) >= high * 0.8 for c, d in taken)
        ]  # fmt: skip
        found.append((free or near)[0])
        taken.append(found[-1])
    return found


_TRIES = [(dy, dx) for dy in (0.0, 1.0, -1.0, 2.0, -2.0, 3.0) for dx in (0.75, -0.75, 0.0)]
"""Where a key may stand, in keys up and to the right of its point, the nearest first."""


def _mark(text: str, class_: str, side: str, at: float) -> Markup:
    return el("span", text, class_=class_, style=f"{side}:{at / 10:.2f}%")


def _colour(series: Series) -> str:
    return f"--c:var({series.colour})"


def _end_keys(series: Sequence[Series], scale: Scale) -> list[Markup]:
    """Each line's key at its right end, pushed apart where they would lie on each other."""
    gap = min(52.0, BOX / max(1, len(series)))
    ends = [(scale(one.points[-1][1]), one) for one in series if one.points]
    placed: list[tuple[float, Series]] = []
    floor = -math.inf
    for at, one in sorted(ends, key=lambda end: end[0]):
        floor = max(at, floor + gap)
        placed.append((floor, one))
    over = max(0.0, (placed[-1][0] if placed else 0.0) - BOX)
    return [
        el("span", one.key, class_="endkey", data_key=one.key,
           style=f"bottom:{(at - over) / 10:.2f}%;{_colour(one)}")
        for at, one in placed
    ]  # fmt: skip


def _inner_key(series: Series, at: tuple[float, float], x: Scale, y: Scale) -> Markup:
    place = f"left:{x(at[0]) / 10:.2f}%;bottom:{y(at[1]) / 10:.2f}%;{_colour(series)}"
    return el("span", series.key, class_="inkey", data_key=series.key, style=place)


def legend(series: Sequence[Series]) -> Markup:
    items = [
        el(
            "li",
            el("svg", el("path", d="M1 5H27", class_="line", stroke_dasharray=s.dash or None),
               viewBox="0 0 28 10", width="28", height="10", aria_hidden="true"),
            el("b", s.key), " ", s.name,
            data_key=s.key, style=_colour(s),
        )
        for s in series
    ]  # fmt: skip
    return el("ul", items, class_="legend")


def track(*children: Node, class_: str, height: int, label: str) -> Markup:
    """One row of a chart: a strip that shares its x axis with the strips above and below."""
    drawn = svg(*children, class_=class_, label=label)
    return el("div", drawn, class_="track", style=f"height:{height}px")


def track_axis(axis: Axis) -> Markup:
    """The labels below a column of tracks."""
    marks = [_mark(axis.label(v), "xtick", "left", axis.scale(v)) for v in axis.marks]
    return join((el("div", marks, class_="axis"), el("div", axis.title, class_="xtitle")))


def track_grid(axis: Axis) -> list[Markup]:
    return [el("path", d=f"M{axis.scale(v):.1f} 0V1000", class_="grid") for v in axis.marks]
