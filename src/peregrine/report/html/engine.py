"""An explained engine as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peregrine.compiler.explain import ExplainedPlan, ExplainedStep, Explanation
from peregrine.report import figures
from peregrine.report.engine import (
    MIB,
    Unit,
    device_words,
    memory_rows,
    runner_up,
    size,
    summary,
    title,
)
from peregrine.report.html.document import document
from peregrine.report.html.markup import Markup, Node, breakable, details, el, join, table
from peregrine.report.html.plot import BOX, Axis, Scale, svg, track, track_axis, track_grid
from peregrine.report.store import write_text

_HUES = ("--native", "--onnxruntime", "--pytorch", "--tensorrt", "--torch-compile", "--openvino",
         "--torch-tensorrt")  # fmt: skip
"""The page's colours, for the tactics that take longest; all others share one."""
_LONGEST = 12


def write_engine_html(explained: Explanation, path: Path) -> None:
    """Write the page to `path`, replacing what is there in one step.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    write_text(path, engine_page(explained))


def engine_page(explained: Explanation) -> str:
    """The page, as `document` makes one."""
    name = explained.plans[0].name or "model"
    hues = _hues(explained)
    several = len(explained.plans) > 1
    body: list[Node] = [
        el(
            "header",
            el("div", el("span", "Peregrine", class_="brand"), " ", name, class_="who"),
            el("div", device_words(explained), class_="dim"),
            class_="top",
        ),
        el(
            "main",
            [_plan(plan, hues, several) for plan in explained.plans],
            _section("Tuned for", "", _facts(explained)),
        ),
        el("footer", "Peregrine engine"),
    ]
    return document(f"{name}: Peregrine engine", body)


def _plan(plan: ExplainedPlan, hues: Mapping[str, str], several: bool) -> Markup:
    at = f" at {', '.join(f'{n}={s}' for n, s in plan.dims.items())}" if several else ""
    timed = plan.untimed < len(plan.steps)
    lead = (
        "Each step was timed alone, so that their sum is not the time of an inference. The "
        "roofline is the time that the arithmetic or the memory of the device needs at the least."
    )
    parts = [_outcome(plan)]
    if timed:
        parts += [
            _section(f"Time by step{at}", lead, _columns(plan, hues), _legend(plan, hues),
                     el("h3", "The longest steps"), _longest(plan, hues)),
            _section(f"Time by tactic{at}", "", _tactics(plan, hues)),
        ]  # fmt: skip
    parts += [
        _section(f"Memory{at}", "Activations share one block. Each box is one of them, as wide as "
                 "the steps that need it; the line is what is alive.", _arena(plan),
                 _memory_table(plan)),
        _section(f"Steps{at}", "", _steps(plan, hues), _tried(plan)),
    ]  # fmt: skip
    return join(parts)


def _section(heading: str, lead: str, *content: Node) -> Markup:
    words = el("p", lead, class_="lead") if lead else None
    return el("section", el("h2", heading), words, *content)


def _hues(explained: Explanation) -> dict[str, str]:
    """Tactic -> its colour, the same in every plan."""
    spent: dict[str, float] = {}
    for plan in explained.plans:
        for name, _, ms in plan.tactics:
            spent[name] = spent.get(name, 0.0) + ms
    names = sorted(spent, key=lambda name: (-spent[name], name))
    return {n: _HUES[i] if i < len(_HUES) else "--other" for i, n in enumerate(names)}


def _outcome(plan: ExplainedPlan) -> Markup:
    memory, timed, unit = plan.memory, plan.untimed < len(plan.steps), Unit.of(plan)
    nodes = sum(len(step.sources) for step in plan.steps)
    tiles = [
        (f"{len(plan.steps):,}", "steps", f"from {figures.count(nodes, 'node')}" if nodes else ""),
        (size(memory.arena), "for activations",
         f"{figures.times(memory.arena / memory.lower_bound)} of the lower bound"
         if memory.lower_bound else ""),
        (size(memory.weights), "of weights", f"{size(memory.workspace)} of workspace"),
    ]  # fmt: skip
    if timed:
        tiles = [
            (unit.words(plan.total_ms), "all steps", "each timed alone"),
            (figures.share(plan.achieved), "of the roofline",
             f"{unit.words(plan.roofline_ms)} at the least"),
            *tiles,
        ]  # fmt: skip
    return el(
        "section",
        el("div", "Engine", class_="eyebrow"),
        el("h1", breakable(title(plan))),
        [el("p", line) for line in summary(plan)],
        [el("p", note, class_="dim") for note in plan.notes],
        el("div", [
            el("div", el("strong", figure), el("span", what), el("small", more), class_="tile")
            for figure, what, more in tiles
        ], class_="tiles"),
        class_="verdict",
    )  # fmt: skip


# Charts


def _columns(plan: ExplainedPlan, hues: Mapping[str, str]) -> Markup:
    """A column a step, as high as its time, with its roofline in it."""
    unit = Unit.of(plan)
    most = max(step.ms or 0.0 for step in plan.steps) * unit.per_ms
    y = Axis(f"time, {unit.name}", Scale(0.0, 1.05 * most))
    wide = BOX / len(plan.steps)
    drawn: list[Node] = []
    for step in plan.steps:
        if step.ms is None:
            continue
        left, high = wide * (step.number - 1), y.scale(step.ms * unit.per_ms)
        least = BOX - y.scale(min(step.roofline_ms, step.ms) * unit.per_ms)
        tip = f"{step.number}. {_label(step)}: {_figures(step, unit)}"
        drawn.append(
            el("g", el("title", tip),
               _rect(left, 0, wide, BOX, "cell"),
               _rect(left + wide * 0.1, BOX - high, wide * 0.8, high, "bar"),
               el("path", d=f"M{left:.1f} {least:.1f}h{wide:.2f}", class_="floor"),
               class_="column", data_tip=tip, style=_colour(hues[step.tactic]))
        )  # fmt: skip
    x = Axis("step", Scale(0.5, len(plan.steps) + 0.5))
    ticks = [tick for tick in x.scale.ticks(8) if tick == int(tick)]
    label = "Measured time of each step, and its roofline"
    return _chart(Axis(x.title, x.scale, ticks), y, drawn, label)


def _arena(plan: ExplainedPlan) -> Markup:
    """Blocks of the arena over steps and offsets, what is alive, and the bound."""
    if not plan.spans:
        return el("p", "No activation lies in the arena.", class_="dim")
    unit, name = (MIB, "MiB") if plan.memory.arena >= MIB else (1024, "KiB")
    y = Axis(f"offset, {name}", Scale(0.0, 1.06 * plan.memory.arena / unit))
    wide = BOX / len(plan.steps)
    drawn: list[Node] = []
    for span in plan.spans:
        low, high = y.scale(span.offset / unit), y.scale((span.offset + span.bytes) / unit)
        steps = f"step {span.first + 1} to {span.last + 1}"
        tip = f"{span.name}: {size(span.bytes)} at {size(span.offset)}, {steps}"
        width = wide * (span.last + 1 - span.first)
        box = _rect(wide * span.first, BOX - high, width, high - low, "block")
        drawn.append(
            el("g", el("title", tip), box, data_tip=tip, style=_colour("--native"), class_="column")
        )
    line = "".join(
        f"{'L' if i else 'M'}{wide * i:.1f} {BOX - y.scale(now / unit):.1f}h{wide:.2f}"
        for i, now in enumerate(plan.alive)
    )
    drawn.append(el("path", d=line, class_="alive"))
    drawn += [
        el("path", d=f"M0 {BOX - y.scale(at / unit):.1f}H1000", class_="one")
        for at in (plan.memory.arena, plan.memory.lower_bound)
    ]
    x = Axis("step", Scale(0.5, len(plan.steps) + 0.5))
    ticks = [tick for tick in x.scale.ticks(8) if tick == int(tick)]
    return _chart(Axis(x.title, x.scale, ticks), y, drawn, "The arena over the steps")


def _chart(x: Axis, y: Axis, drawn: Node, label: str) -> Markup:
    grid = [el("path", d=f"M0 {BOX - y.scale(v):.1f}H1000", class_="grid") for v in y.marks]
    plot = el(
        "div",
        svg(grid, drawn, label=label),
        [_mark(y.label(v), "ytick", "bottom", y.scale(v)) for v in y.marks],
        [_mark(x.label(v), "xtick", "left", x.scale(v)) for v in x.marks],
        class_="plot",
    )
    return el("figure", el("div", y.title, class_="ytitle"), plot,
              el("div", x.title, class_="xtitle"), class_="chart")  # fmt: skip


def _mark(text: str, class_: str, side: str, at: float) -> Markup:
    return el("span", text, class_=class_, style=f"{side}:{at / 10:.2f}%")


def _rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return el("rect", x=f"{x:.2f}", y=f"{y:.2f}", width=f"{max(width, 0.2):.2f}",
              height=f"{max(height, 0.2):.2f}", class_=class_)  # fmt: skip


def _legend(plan: ExplainedPlan, hues: Mapping[str, str]) -> Markup:
    used = [name for name, _, ms in plan.tactics if ms]
    items = [el("li", el("span", class_="spot"), name, style=_colour(hues[name])) for name in used]
    floor = el("svg", el("path", d="M1 5H27", class_="floor"), viewBox="0 0 28 10", width="28",
               height="10", aria_hidden="true")  # fmt: skip
    return el("ul", items, el("li", floor, "roofline"), class_="legend")


def _longest(plan: ExplainedPlan, hues: Mapping[str, str]) -> Markup:
    """The steps that take longest: measured, and the roofline as a mark on the bar."""
    steps = [step for step in plan.longest(_LONGEST) if step.ms is not None]
    unit = Unit.of(plan)
    most = (steps[0].ms or 0.0) * unit.per_ms
    axis = Axis(f"time, {unit.name}; the mark is the roofline", Scale(0.0, 1.02 * most))
    drawn = []
    for step in steps:
        at, least = (axis.scale((ms or 0.0) * unit.per_ms) for ms in (step.ms, step.roofline_ms))
        strip = track(
            track_grid(axis), _rect(0, 220, at, 560, "bar"),
            el("path", d=f"M{least:.1f} 80V920", class_="floor"),
            class_="strip", height=20, label=f"{_label(step)}: {_figures(step, unit)}",
        )  # fmt: skip
        head = el(
            "div",
            el("span", f"{step.number}. ", breakable(_label(step)), class_="name"),
            el("span", el("b", unit.words(step.ms)),
               f" {figures.share(step.share)} of all, {figures.share(step.achieved)} achieved,"
               f" {step.tactic}", class_="value"),
            class_="head",
        )  # fmt: skip
        drawn.append(el("div", head, strip, class_="row", style=_colour(hues[step.tactic])))
    return el("div", drawn, track_axis(axis), class_="rows")


def _tactics(plan: ExplainedPlan, hues: Mapping[str, str]) -> Markup:
    unit = Unit.of(plan)
    axis = Axis("share of the steps' time, %", Scale(0.0, 100.0), unit="%")
    drawn = []
    for name, count, ms in plan.tactics:
        share = ms / plan.total_ms if plan.total_ms else 0.0
        strip = track(
            track_grid(axis), _rect(0, 220, axis.scale(100 * share), 560, "bar"),
            class_="strip", height=20, label=f"{name}: {figures.share(share)}",
        )  # fmt: skip
        value = el("span", el("b", figures.share(share)), f" {unit.words(ms)} in "
                   f"{figures.count(count, 'step')}", class_="value")  # fmt: skip
        head = el("div", el("span", name, class_="name"), value, class_="head")
        drawn.append(el("div", head, strip, class_="row", style=_colour(hues[name])))
    return el("div", drawn, track_axis(axis), class_="rows")


def _colour(hue: str) -> str:
    return f"--c:var({hue})"


# Tables


def _steps(plan: ExplainedPlan, hues: Mapping[str, str]) -> Markup:
    unit = Unit.of(plan)
    head = ("step", _left("tactic"), "#", unit.name, "share", f"roofline {unit.name}", "bound by",
            "achieved", _left("runner-up"), "error")  # fmt: skip
    body: list[Sequence[Node]] = []
    for step in plan.steps:
        named = ", ".join(step.sources) or step.name
        spot = el("span", class_="spot", style=_colour(hues[step.tactic]))
        body.append([
            join((_operator(step), " ", step.sizes, el("div", breakable(named), class_="aside"))),
            el("td", spot, step.tactic, el("div", step.config, class_="aside"), class_="tactic"),
            f"{step.number}", unit.number(step.ms), figures.share(step.share),
            unit.number(step.roofline_ms), step.bound or figures.MISSING,
            figures.share(step.achieved), el("td", runner_up(step, unit)),
            figures.error(step.error),
        ])  # fmt: skip
    return table(head, body, label="Steps")


def _tried(plan: ExplainedPlan) -> Markup | None:
    """Every tactic that was tried at each step, and why some were not let in."""
    unit = Unit.of(plan)
    head = ("step", _left("tactic"), _left("configuration"), unit.name,
            f"predicted {unit.name}", "error", _left("refused because"))  # fmt: skip
    body: list[Sequence[Node]] = [
        [
            f"{step.number}. {_label(step)}", el("td", one.tactic),
            el("td", " ".join(f"{k}={v}" for k, v in one.config.items())),
            unit.number(one.ms), unit.number(one.predicted_ms), figures.error(one.error),
            el("td", one.refused),
        ]
        for step in plan.steps
        for one in step.others
    ]  # fmt: skip
    if not body:
        return None
    return details(f"The {len(body):,} others that were tried", table(head, body, label="Tried"))


def _memory_table(plan: ExplainedPlan) -> Markup:
    body = [(what, much, el("td", words)) for what, much, words in memory_rows(plan.memory)]
    return table(("memory", "size", _left("")), body, label="Memory", sortable=False)


def _facts(explained: Explanation) -> Markup:
    device = explained.device
    facts = {name: value for name, value in explained.fingerprint.items() if value}
    if device.is_cuda:
        facts |= {
            "measured peak, float16": f"{figures.number(device.flops / 1e12)} TFLOP/s",
            "measured bandwidth": f"{figures.number(device.bandwidth / 1e12)} TB/s",
        }
    facts["engine"] = str(explained.directory)
    return el("dl", [(el("dt", name), el("dd", value)) for name, value in facts.items()])


def _left(heading: str) -> Markup:
    return el("th", heading, scope="col")


def _operator(step: ExplainedStep) -> Markup:
    return el("b", step.operator.removeprefix("ai.onnx."))


def _label(step: ExplainedStep) -> str:
    return f"{step.operator.removeprefix('ai.onnx.')} {step.sizes}"


def _figures(step: ExplainedStep, unit: Unit) -> str:
    return (
        f"{unit.words(step.ms)} by {step.tactic}, roofline {unit.words(step.roofline_ms)} "
        f"({figures.share(step.achieved)} achieved)"
    )
