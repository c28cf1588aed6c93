"""A study as one HTML file: its tables, its figures, what could not run and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from peregrine.report import figures, words
from peregrine.report.html.document import document
from peregrine.report.html.key import colour
from peregrine.report.html.markup import Markup, Node, details, el, join, table
from peregrine.report.html.plot import (
    DASHES,
    Axis,
    Scale,
    Series,
    line_chart,
    track,
    track_axis,
    track_grid,
)
from peregrine.suite import published
from peregrine.suite.charts import Bar, Chart, Curve, charts, curves, measured, top
from peregrine.suite.study import Entry, Study
from peregrine.suite.tables import (
    PUBLISHED,
    Cell,
    Line,
    Table,
    backend_of,
    paper_tables,
    resnet50_table,
    title_of,
)
from peregrine.suite.workflows import kind_of
from peregrine.types import Precision


def page(study: Study) -> str:
    """The page of a study, in the style of a race's report."""
    title = f"{figures.count(len(study.networks), 'network')} by runtime and device"
    if study.suite == "paper":
        workflows = figures.count(len(study.workflows), "workflow")
        title = f"{figures.count(len(study.networks), 'network')} by {workflows}"
    machines = [words.machine(machine) for machine in study.machines]
    body = [
        el("header", el("div", el("span", "Peregrine", class_="brand"), " ", title, class_="who"),
           el("div", " / ".join(machines), class_="dim"), class_="top"),
        el("main", _lead(study), _warnings(study), _sections(study), _absent(study),
           _setting(study)),
        el("footer", f"Peregrine {study.versions.get('peregrine-inference', '')} · "
           f"{study.finished}"),
    ]  # fmt: skip
    return document(f"{title}: Peregrine suite", body)


def _section(title: str, *content: Node, id: str | None = None) -> Markup:
    return el("section", el("h2", title), *content, id=id)


def _lead(study: Study) -> Markup:
    source = published.paper().source if study.suite == "paper" else published.resnet50().source
    cards = " and ".join(dict.fromkeys(study.card(device) for device in study.devices))
    limit = study.asks[0].limit_memory_mb
    held = f" Held to {figures.memory(limit)}, to stand for a smaller card." if limit else ""
    return _section(
        cards,
        el("p", f"Repeats {source.title} ({source.authors}). Its figures stand beside ours in "
           f"grey: they are of another machine, {source.card}, with "
           + ", ".join(f"{name} {version}" for name, version in source.versions.items()) + "."),
        el("p", f"Ours are medians, each with its 95% interval, of rows whose outputs were "
           f"compared with the reference's before they were timed.{held}"),
        _contents(study),
    )  # fmt: skip


def _contents(study: Study) -> Node:
    """Where the tables of each precision begin, where there are several."""
    devices = study.devices if study.suite == "paper" else study.devices[:1]
    links: dict[str, str] = {}
    for precision in study.precisions:
        for device in devices:
            words = f"{precision}, {study.card(device)}" if len(devices) > 1 else precision
            links[_anchor(precision, device)] = words
    if len(links) < 2:
        return None
    listed = [[", " if at else "", el("a", words, href=f"#{to}")]
              for at, (to, words) in enumerate(links.items())]  # fmt: skip
    return el("p", "Each with tables of its own: ", listed, ".")


def _anchor(precision: Precision, device: str) -> str:
    return f"{precision}-{kind_of(device)}"


def _warnings(study: Study) -> Markup:
    if not study.warnings:
        return join(None)
    lines = el("ul", [el("li", text) for text in study.warnings])
    return el("section", el("h2", "Not whole"), lines, class_="warnings")


def _sections(study: Study) -> list[Node]:
    if study.suite == "resnet50":
        return [
            _table(
                resnet50_table(study, network, precision, batch),
                _anchor(precision, study.devices[0]) if not number else None,
            )
            for precision in study.precisions
            for number, (network, batch) in enumerate(product(study.networks, study.batches))
        ]
    return [_paper(study, p, device) for p in study.precisions for device in study.devices]


def _paper(study: Study, precision: Precision, device: str) -> list[Node]:
    one, three, four = paper_tables(study, precision, device)
    fig2, fig3, fig4, fig5, fig6 = charts(study, precision, device)

    def lines(network: str, id: str, unit: str) -> Markup:
        return _lines(curves(study, network, precision, device, id), unit, network)

    every = [
        [
            el("h3", name),
            el("div", lines(name, "figure-4", "items/s"), lines(name, "figure-5", "MiB"),
               class_="pair"),
        ]
        for name in study.networks
    ]  # fmt: skip
    return [
        _table(one, _anchor(precision, device)), _table(three), _table(four),
        _chart(fig2), _chart(fig3), _chart(fig4),
        el("div", _chart(fig5), _chart(fig6), class_="pair"),
        _section(
            f"Every network ({precision}, {study.card(device)})",
            details("Throughput and memory over the batch", *every),
        ),
    ]  # fmt: skip


def _table(shown: Table, id: str | None = None) -> Markup:
    rows = [
        [_head(line), *(_cell(cell, line.whose) for cell in line.cells)] for line in shown.lines
    ]
    built = table(("", *shown.columns), rows, label=shown.title, sortable=False)
    return _section(shown.title, el("p", shown.lead, class_="lead"), built, id=id)


def _head(line: Line) -> Markup:
    """A line's name over the card that its figures are of."""
    mark, rest = None, line.label
    if line.colour:
        key, _, rest = line.label.partition(" ")
        mark = [el("span", key, class_="mark", style=f"--c:var({colour(line.colour)})"), " "]
    whose = f"published, {line.card}" if line.whose == PUBLISHED else line.card
    return el("th", mark, rest, el("div", whose, class_="dim small"), scope="row")


def _cell(cell: Cell, whose: str) -> Markup:
    """A figure; the reason for a missing one is in its tip and in a section of its own."""
    if whose == PUBLISHED:
        return el("td", cell.text, class_="num dim", title=cell.note or None)
    small = [el("div", text, class_="dim small") for text in cell.small]
    shown = el("b", cell.text) if cell.value is not None else cell.text
    return el("td", shown, small, class_="num", title=cell.note or None)


def _chart(chart: Chart) -> Markup:
    said = el("p", f"The paper, of its own figure: {chart.said}", class_="lead")
    if not measured(chart):
        return _section(chart.title, said, el("p", "Nothing was measured.", class_="dim"))
    drawn = _bars(chart) if chart.bars else _lines(chart.curves, chart.unit, chart.network)
    return _section(chart.title, said, drawn)


def _bars(chart: Chart) -> Markup:
    """A group a network, a bar a workflow, all on one scale from zero."""
    ends = [bar.high or bar.value or 0.0 for bar in chart.bars]
    axis = Axis(f"{chart.unit}; the mark at a bar's end is the 95% interval of the median",
                Scale(0.0, top(ends)))  # fmt: skip
    groups = []
    for network in dict.fromkeys(bar.network for bar in chart.bars):
        strips = [_strip(bar, axis, chart.unit) for bar in chart.bars if bar.network == network]
        groups.append(el("div", el("h3", network), strips, track_axis(axis), class_="graph"))
    return el("div", groups, class_="graphs")


def _strip(bar: Bar, axis: Axis, unit: str) -> Markup:
    backend = backend_of(bar.workflow)
    name = el("span", el("span", bar.workflow, class_="mark", style=f"--c:var({colour(backend)})"),
              " ", title_of(bar.workflow).partition(" ")[2], class_="small")  # fmt: skip
    if bar.value is None:
        said = el("span", "not measured", class_="value", title=bar.note)
        return el("div", el("div", name, said, class_="head"), class_="row unranked")
    low, high = bar.low or bar.value, bar.high or bar.value
    x0, x, x1 = axis.scale(low), axis.scale(bar.value), axis.scale(high)
    value = f"{figures.number(bar.value)} {unit}"
    strip = track(
        track_grid(axis),
        el("rect", x=0, y=180, width=f"{x:.1f}", height=640, class_="bar"),
        el("path", d=f"M{x0:.1f} 500H{x1:.1f}M{x0:.1f} 120V880M{x1:.1f} 120V880", class_="ci"),
        class_="strip", height=16, label=f"{bar.network}, {bar.workflow}: {value}",
    )  # fmt: skip
    said = el("span", el("b", value), f" {bar.note}", class_="value")
    head = el("div", name, said, class_="head")
    return el("div", head, strip, class_="row", style=f"--c:var({colour(backend)})")


def _lines(lines: Sequence[Curve], unit: str, network: str) -> Markup:
    drawn = [curve for curve in lines if curve.points]
    if not drawn:
        return el("p", "Nothing was measured.", class_="dim")
    series = [
        Series(
            curve.workflow, title_of(curve.workflow).partition(" ")[2],
            colour(backend_of(curve.workflow)), DASHES[0],
            tuple((float(batch), value) for batch, value in curve.points),
            tuple(f"{curve.workflow}, batch {batch}: {figures.number(value)} {unit}"
                  for batch, value in curve.points),
        )
        for curve in drawn
    ]  # fmt: skip
    batches = sorted({float(batch) for curve in drawn for batch, _ in curve.points})
    most = top([value for curve in drawn for _, value in curve.points])
    x = Axis("batch (logarithmic)", Scale(batches[0], batches[-1], log=True), batches)
    return line_chart(
        series, x, Axis(unit, Scale(0.0, most)), label=f"{network}: {unit} against batch"
    )


def _absent(study: Study) -> Markup:
    """Everything without a figure, what has one cause once; and what ran in two places."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in study.entries:
        if not entry.points or entry.note:
            reason, fix = _why(entry)
            # Reasons with one fix differ in names and sizes alone: the first stands for them.
            key = (entry.workflow, entry.precision, entry.device, fix or reason)
            groups.setdefault(key, []).append(entry)
    if not groups:
        return join(None)
    # What is so in several precisions for the same networks is said once, too.
    alike: dict[tuple[object, ...], list[list[Entry]]] = {}
    for (workflow, _, device, cause), entries in groups.items():
        networks = tuple(entry.network for entry in entries)
        alike.setdefault((workflow, device, cause, networks), []).append(entries)
    cards = []
    for each in alike.values():
        first = each[0][0]
        reason, fix = _why(first)
        where = ", ".join([*(entries[0].precision for entries in each), first.device])
        cards.append(
            el("div", el("h3", f"{title_of(first.workflow, study.suite)} ({where})"),
               el("p", ", ".join(entry.network for entry in each[0]), class_="dim small"),
               el("p", reason), el("p", el("b", "Fix: "), fix) if fix else None, class_="graph")
        )  # fmt: skip
    return _section("What did not run, or not in one place", el("div", cards, class_="graphs"))


def _why(entry: Entry) -> tuple[str, str]:
    if entry.points:
        return f"measured; {entry.note}", ""
    return entry.reason or entry.status, entry.fix


def _setting(study: Study) -> Markup:
    asked = [
        f"Batches {', '.join(map(str, ask.batches))}; {', '.join(ask.precisions)}; "
        f"{', '.join(ask.devices)}; at least {ask.min_runs} runs a measurement or "
        f"{ask.measure_max_s:g} s of them; weights {ask.weights}, seed {ask.seed}."
        for ask in study.asks
    ]
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    stand_ins = Counter((e.workflow, e.candidate) for e in study.entries if e.points)
    stands = [
        f"{title_of(workflow, study.suite)} is {candidate} on {figures.count(number, 'network')}."
        for (workflow, candidate), number in sorted(stand_ins.items())
    ]
    return _section(
        "Setting", el("ul", [el("li", text) for text in stands]),
        [el("p", text) for text in dict.fromkeys(asked)],
        el("p", versions, class_="dim"),
    )  # fmt: skip
