"""The report as one HTML file that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import shlex
from pathlib import Path

from peregrine.report import words
from peregrine.report.command import reproduce
from peregrine.report.conversions import made_graphs
from peregrine.report.html import conversions, device, facts, latency, proof, scaling, together
from peregrine.report.html import ladder as precisions
from peregrine.report.html.document import document
from peregrine.report.html.key import keys
from peregrine.report.html.markup import Markup, Node, details, el, join
from peregrine.report.ladder import ladder
from peregrine.report.standings import standings
from peregrine.report.store import write_text
from peregrine.results import Report


def write_html(report: Report, path: Path) -> None:
    """Write the page to `path`, replacing what is there in one step.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    write_text(path, page(report))


def page(report: Report) -> str:
    """The page, as `document` makes one."""
    return document(f"{report.model.name or 'model'}: Peregrine report", _body(report))


def _body(report: Report) -> list[Node]:
    placed = standings(report)
    marks = keys(placed)
    everyone = proof.in_order(report, placed)
    measured = bool(placed.rows)
    commands = {c.id: shlex.join(words_) for c in everyone if (words_ := reproduce(report, c.id))}
    at = words.objective(report, placed.batch, placed.boundary)
    sections: list[Node] = [facts.outcome(report, placed)]
    if said := words.randomly_calibrated(report):
        title = el("h2", "Random calibration")
        sections.append(el("section", title, el("p", said), class_="alarm"))
    if report.warnings or not report.complete:
        sections.append(_warnings(report))
    found = ladder(report, placed)
    climbed = join(None)
    if found is not None:
        climbed = _section(
            "Precision ladder", precisions.lead(found), precisions.plot(found, marks),
            precisions.rungs(found, placed.goal, marks),
        )  # fmt: skip
    if measured:
        sections += [
            _section(
                "Ranking", f"By {at}.",
                latency.ranking(placed, marks), facts.standings_table(report, placed, marks),
            ),
            climbed,
            _section(
                "Final", "Finalists took turns in interleaved rounds, so that noise that comes and "
                "goes meets all of them. Each dot is a round with its 95% interval, the band is "
                "the interval over all rounds.", latency.finals(report, marks),
            ),
            _section(
                "Latency distribution", f"Every sample. {at.capitalize()}.",
                latency.cumulative(placed, marks),
                el("h3", "Steadiness"), latency.spread(placed, report.final_rounds, marks),
            ),
            el(
                "div",
                _section("Throughput against batch", "", scaling.throughput(placed, marks)),
                _section("Memory against batch", "", scaling.memory(placed, marks)),
                class_="pair",
            ),
            _section(
                "Side by side", together.lead(report),
                together.plots(report, marks), together.rows(report, marks),
            ),
        ]  # fmt: skip
    if climbed and not measured:
        sections.append(climbed)
    sections += [
        _section(
            "Validation", f"Outputs against {report.reference.workflow} on "
            f"{', '.join(report.reference.inputs) or 'its inputs'}.",
            proof.validation(everyone, marks), proof.guards(everyone, marks),
            proof.labelled(everyone, marks),
        ),
        _section(
            "Conversions", "How the graphs of lower precision were made from the model's own.",
            conversions.graphs(made_graphs(report), marks), conversions.repairs(everyone, marks),
        ),
        _section("Placement", "Where the nodes really ran, as each runtime reported it.",
                 proof.placement(everyone, marks)),
    ]  # fmt: skip
    sections.append(
        _section("GPU", "What it did while rows were measured, at the batch that ranks.",
                 device.conditions(placed, marks), device.times(placed, marks),
                 device.memory(placed, marks))
    )  # fmt: skip
    if placed.out:
        sections.append(_section("May not win", "", proof.out_of_the_race(placed)))
    if measured:
        sections += [
            _section(
                "Costs", "", facts.costs(everyone, marks),
                details("All measurements", facts.measurements(placed, marks)),
            )
        ]  # fmt: skip
    sections += [
        _section("Run one row again", "", proof.reproduction(everyone, commands, marks)),
        _section("Setting", "", facts.setting(report)),
    ]
    return [
        el("header", el("div", el("span", "Peregrine", class_="brand"), " ", report.model.name,
                        class_="who"),
           el("div", words.machine(report.machine), class_="dim"), class_="top"),
        el("main", sections),
        el("footer", f"Peregrine {report.versions.get('peregrine-inference', '')} · ",
           f"report format {report.format} · {report.finished or report.started}"),
    ]  # fmt: skip


def _section(title: str, lead: str, *content: Markup) -> Markup:
    """A titled part of the page; nothing where there is nothing to show."""
    if not any(content):
        return join(None)
    return el("section", el("h2", title), el("p", lead, class_="lead") if lead else None, *content)


def _warnings(report: Report) -> Markup:
    lines = list(report.warnings)
    if not report.complete:
        lines.insert(0, "This race was interrupted: not every row is here.")
    return el("section", el("h2", "To know about"), el("ul", [el("li", x) for x in lines]),
              class_="warnings")  # fmt: skip
