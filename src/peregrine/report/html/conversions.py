"""How each converted graph was made, and what a repair did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peregrine.report import figures, words
from peregrine.report.conversions import MadeGraph
from peregrine.report.html.key import Key, name
from peregrine.report.html.ladder import precision_colour
from peregrine.report.html.markup import Markup, Node, badge, details, el, join, table
from peregrine.results import CandidateResult, Conversion, Repair


def graphs(found: Sequence[MadeGraph], keys: Mapping[str, Key]) -> Markup:
    """A part a graph: who made it from what, the ways of choosing ranges that were tried, what
    was converted and what was not."""
    if not found:
        return join(None)
    return el("div", [_graph(one, keys) for one in found], class_="graphs")


def _graph(found: MadeGraph, keys: Mapping[str, Key]) -> Markup:
    made = found.made
    facts: dict[str, Node] = {
        "made by": made.by,
        "calibrated on": made.calibration,
        "converted": words.counts(made.converted),
        "left as they were": words.counts(made.left),
        "took": words.conversion_time(made),
        "read by": [el("div", name(row.id, keys.get(row.id))) for row in found.rows],
        "notes": " ".join(made.notes),
    }
    lines = [(el("dt", key), el("dd", value)) for key, value in facts.items() if value]
    hue = f"--c:var({precision_colour(made.precision)})"
    title = el("h3", el("span", str(made.precision), class_="mark"), " ", el("code", made.graph))
    return el(
        "article",
        title,
        el("p", words.RANDOM, ".", class_="random") if made.random_calibration else None,
        el("dl", lines),
        _tried(made),
        _kept(made),
        class_="graph",
        style=hue,
    )


def _tried(made: Conversion) -> Markup:
    if not made.tried:
        return join(None)
    body: list[list[Node]] = [
        [trial.calibrator, figures.error(trial.scaled_error), figures.share(trial.agreement),
         badge("chosen") if trial.calibrator == made.calibrator else ""]
        for trial in made.tried
    ]  # fmt: skip
    head = ("calibrator", "scaled error", "agrees with fp32", "")
    return table(head, body, label=f"Calibrators tried for {made.graph}", sortable=False)


def _kept(made: Conversion) -> Markup:
    if not made.kept:
        return join(None)
    body: list[list[Node]] = [
        [el("code", layer.node), el("td", layer.operator), el("td", layer.reason),
         figures.error(layer.error)]
        for layer in made.kept
    ]  # fmt: skip
    head = ("kept in fp32", "operator", "because", "its own error")
    return table(head, body, label=f"Layers kept in {made.graph}", numeric_from=3, sortable=False)


def repairs(rows: Sequence[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """Each attempt to make a failing row right: what it kept step by step, and what came of it."""
    tried = [(c, c.repair) for c in rows if c.repair is not None]
    if not tried:
        return join(None)
    return join((el("h3", "Repairs"), [_repair(c, repair, keys) for c, repair in tried]))


def _repair(c: CandidateResult, repair: Repair, keys: Mapping[str, Key]) -> Markup:
    took = f"{figures.seconds(repair.seconds)} of at most {figures.seconds(repair.budget_s)}"
    facts = {"of": repair.of, "because": repair.because, "outcome": repair.outcome, "took": took}
    lines = [(el("dt", key), el("dd", value)) for key, value in facts.items() if value]
    steps: list[list[Node]] = [
        [f"{step.kept}", figures.error(step.scaled_error),
         badge("ok" if step.passed else "failed")]
        for step in repair.steps
    ]  # fmt: skip
    head = ("layers kept", "scaled error", "")
    folded = details(
        figures.count(len(steps), "step"),
        table(head, steps, label=f"Steps of the repair of {repair.of}", sortable=False),
    )
    return el(
        "div",
        el("p", name(c.id, keys.get(c.id)), ": ", el("b", "; ".join(words.repaired(c)))),
        el("dl", lines),
        folded if steps else None,
        class_="repair",
    )
