"""The precision ladder: speed against accuracy, as a plot and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peregrine.report import figures, words
from peregrine.report.html.key import Key
from peregrine.report.html.markup import Markup, Node, badge, breakable, el, join, table
from peregrine.report.html.plot import Axis, Point, Rule, Scale, scatter
from peregrine.report.ladder import Column, Ladder, Rung, columns, drawable, judgement
from peregrine.types import Precision

_SMALLEST = 1e-9
"""Where an error of exactly zero is drawn on a logarithmic axis, at the least."""


def precision_colour(precision: Precision) -> str:
    """The CSS variable of a precision: a colour of its own in every chart of the ladder."""
    return f"--{precision}"


def lead(found: Ladder) -> str:
    """What the plot shows, in words."""
    base = found.measured_against()
    against = ""
    if base is not None:
        against = f" Speed-up is against {base.result.id}"
        against += ", ONNX Runtime's default." if found.default else ", the fastest fp32 row."
    less = f"loses less {found.measure}" if found.guarded else "is nearer to the reference"
    return f"What a lower precision gains and costs: right is faster, lower {less}.{against}"


def plot(found: Ladder, keys: Mapping[str, Key]) -> Markup:
    """Speed-up against drop with its interval, a point a row; against the scaled error where no
    labels or metric tell a drop."""
    order = list(keys)  # the legend's is the ranking's
    shown = sorted(drawable(found), key=lambda pair: order.index(pair[0].result.id))
    if not shown:
        return join(None)
    x = Axis("speed-up", Scale(0.0, 1.07 * max(gain for _, gain in shown)), unit=figures.TIMES)
    if found.guarded:
        points, y, rules = _drops(found, shown, keys)
    else:
        points, y = _errors(shown, keys)
        rules = []
    label = "Speed-up against accuracy, for every row of the ladder"
    drawn = {rung.result.id for rung, _ in shown}
    missing = [r.result.id for r in found.rungs if r.result.validation and not r.row]
    missing = [id for id in missing if id not in drawn]
    note = f"Not drawn, for a failing row is not timed: {', '.join(missing)}." if missing else ""
    return join(
        (
            scatter(points, x, y, rules, label=label),
            el("p", note, class_="dim small") if note else None,
        )
    )


def _point(
    rung: Rung, keys: Mapping[str, Key], x: float, y: float, low: float, high: float, said: str
) -> Point:
    result = rung.result
    state = judgement(result).partition(":")[0]
    return Point(
        key=keys[result.id].mark,
        name=result.id,
        colour=precision_colour(result.precision),
        at=(x, y),
        interval=(low, high),
        kind=state if state in {"ok", "undecided"} else "failed",
        tip=f"{result.id}: {figures.times(x)}, {said}, {judgement(result)}",
    )


def _drops(
    found: Ladder, shown: Sequence[tuple[Rung, float]], keys: Mapping[str, Key]
) -> tuple[list[Point], Axis, list[Rule]]:
    unit = f" {found.unit}" if found.unit else ""
    points = []
    for rung, gain in shown:
        guard = rung.guard
        assert guard is not None
        said = (
            f"drop {figures.points(guard.drop)}{unit}, 95% {figures.points_interval(*guard.ci95)}"
        )
        points.append(_point(rung, keys, gain, guard.drop, *guard.ci95, said))
    rules = [Rule(0.0, "", "one")]
    if found.max_drop is not None:
        rules.append(Rule(found.max_drop, f"max drop {figures.points(found.max_drop)}", "maxdrop"))
    reach = [v for p in points for v in (*p.interval, p.at[1])] + [rule.at for rule in rules]
    pad = 0.07 * (max(reach) - min(reach)) or 0.5
    title = f"drop in {found.measure}{f', {found.unit}' if found.unit else ''} (bars: 95% interval)"
    return points, Axis(title, Scale(min(reach) - pad, max(reach) + pad)), rules


def _errors(
    shown: Sequence[tuple[Rung, float]], keys: Mapping[str, Key]
) -> tuple[list[Point], Axis]:
    errors = {
        rung.result.id: rung.result.validation.scaled_error if rung.result.validation else 0.0
        for rung, _ in shown
    }
    # The reference's own workflow has no error at all; a logarithm needs one.
    above = [value for value in errors.values() if value > 0]
    least = max(_SMALLEST, min(above, default=_SMALLEST))
    points = []
    for rung, gain in shown:
        real = errors[rung.result.id]
        value = max(least, real) if real == real else least  # NaN is not timed, hence not drawn
        said = f"scaled error {figures.error(real)}"
        points.append(_point(rung, keys, gain, value, value, value, said))
    scale = Scale(least / 2, 2 * max(p.at[1] for p in points), log=True)
    return points, Axis("scaled error against the reference (logarithmic)", scale)


def rungs(found: Ladder, goal: str, keys: Mapping[str, Key]) -> Markup:
    """A line a precision, workflow by workflow, with what must be said of it below."""
    shown = columns(found, found.rungs, goal)
    wide = 1 + len(shown)
    place = {rung.result.id: number for number, rung in enumerate(found.rungs)}
    body: list[list[Node]] = []
    plain_ = [workflow for workflow in found.workflows if not workflow.lowered]
    for workflow in found.workflows:
        if workflow.lowered:
            body.append(_heading(workflow.name, wide))
            for rung in workflow.rungs:
                body += _lines(rung, rung.name, shown, place[rung.result.id], keys)
    if plain_:  # what the others are compared with, in short
        body.append(_heading("in fp32 alone", wide))
        for workflow in plain_:
            for rung in workflow.rungs:
                body += _lines(rung, workflow.name, shown, place[rung.result.id], keys)
    words_ = {"precision", *(column.title for column in shown if column.left)}
    titles = ["precision", *(column.title for column in shown)]
    head = [
        el("th", title, scope="col", class_=None if title in words_ else "num") for title in titles
    ]
    note = (
        "own fp32, best fp32, ORT fp32: how many times as fast as the workflow's own fp32 row, as "
        "the fastest fp32 row and as ONNX Runtime's fp32 default on the CPU. "
        "error: scaled, against the reference."
    )
    return join(
        (
            table(head, body, label="Precision ladder", sortable=False),
            el("p", note, class_="dim small"),
        )
    )


def _heading(title: str, wide: int) -> list[Node]:
    inner = el("div", breakable(title), class_="name")
    return [el("th", inner, scope="rowgroup", colspan=wide, class_="workflow")]


def _lines(
    rung: Rung, label: str, shown: Sequence[Column], number: int, keys: Mapping[str, Key]
) -> list[list[Node]]:
    """A rung's figures, and below them what must be said of it."""
    said = _said(rung)
    lines = [_figures(rung, label, shown, number, keys, "open" if said else "")]
    if said:
        lines.append([el("td", said, colspan=1 + len(shown), class_="under")])
    return lines


def _figures(
    rung: Rung,
    label: str,
    shown: Sequence[Column],
    number: int,
    keys: Mapping[str, Key],
    kind: str,
) -> list[Node]:
    """The cells of a line, of class `kind`."""
    result = rung.result
    key = keys.get(result.id)
    hue = f"--c:var({precision_colour(result.precision)})"
    mark = el("span", key.mark if key else figures.MISSING, class_="mark")
    cells: list[Node] = [
        el("td", mark, " ", el("b", breakable(label)), class_=f"rung {kind}".strip(), style=hue)
    ]
    for column in shown:
        if column.title == "verdict":
            state = judgement(result).partition(":")[0]
            cells.append(el("td", badge(state), class_=kind or None))
        else:
            cells.append(el("td", column.cells[number], class_=f"num {kind}".strip()))
    return cells


def _said(rung: Rung) -> list[Node]:
    result = rung.result
    lines: list[Node] = [
        el("div", text, class_="random" if text == words.RANDOM else None)
        for text in words.asides(result)
    ]
    if rung.row is None or not result.can_win:
        lines.insert(0, el("div", words.reason(result)))
    elif ":" in judgement(result):
        lines.insert(0, el("div", judgement(result)))
    return lines
