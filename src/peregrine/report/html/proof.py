"""How right, and where: validation, labelled images, placement, and the rows that may not win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peregrine.report import figures, ladder, words
from peregrine.report.html.key import Key, colour, name
from peregrine.report.html.markup import (
    Markup,
    Node,
    badge,
    breakable,
    copyable,
    details,
    el,
    join,
    table,
)
from peregrine.report.standings import Standings
from peregrine.results import CandidateResult, LabelledAccuracy, OutputComparison, Report


def in_order(report: Report, placed: Standings) -> list[CandidateResult]:
    """Measured rows as ranked, then the rest."""
    ranked = [row.result for row in placed.rows]
    seen = {c.id for c in ranked}
    return ranked + [c for c in placed.out if c.id not in seen]


def validation(rows: list[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """Every output of every candidate against the reference."""
    body: list[list[Node]] = []
    for c in rows:
        outputs = c.validation.outputs if c.validation else ()
        for number, output in enumerate(outputs):
            cells = _comparison(output)
            if number == 0:
                title = name(c.id, keys.get(c.id))
                cells.insert(0, el("th", title, scope="rowgroup", rowspan=len(outputs)))
            body.append(cells)
    if not body:
        return el("p", "No candidate came as far as validation.", class_="dim")
    head = ("candidate", "output", "", "scaled error", "cosine", "max |error|", "unequal 1e-4",
            "unequal 1e-3", "NaN", "Inf", "top-1 agrees")  # fmt: skip
    limits = _limits(rows)
    real = [c.id for c in rows if c.validation and c.validation.real_only]
    if real:
        note = "Judged on real inputs alone, for which they are calibrated, and not on noise: "
        limits = join((limits, el("p", note, ", ".join(real), ".", class_="dim small")))
    return join(
        (
            table(head, body, label="Validation of every output", numeric_from=3, sortable=False),
            limits,
        )
    )


def _comparison(output: OutputComparison) -> list[Node]:
    return [
        el("td", el("code", output.output)),
        el("td", badge("ok" if output.passed else "invalid"), title=output.reason or None),
        *(
            el("td", figure, class_="num")
            for figure in (
                figures.error(output.scaled_error),
                figures.cosine(output.cosine),
                figures.error(output.max_abs),
                figures.percent(output.non_equal_percent),
                figures.percent(output.non_equal_percent_1e3),
                f"{output.nan_count:,}",
                f"{output.inf_count:,}",
                figures.share(output.top1_agreement),
            )
        ),
    ]


def _limits(rows: list[CandidateResult]) -> Markup:
    found: dict[str, str] = {}
    for c in rows:
        if c.validation:
            limits = (
                f"{k.replace('_', ' ')} {figures.limit(v)}"
                for k, v in c.validation.thresholds.items()
            )
            found[str(c.precision)] = ", ".join(limits)
    words_ = "; ".join(f"{precision}: {text}" for precision, text in found.items() if text)
    return el("p", f"Thresholds: {words_}.", class_="dim") if words_ else join(None)


def labelled(rows: list[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """Top-1 on labelled images, and the images whose class changed."""
    judged = [(c, c.validation.labelled) for c in rows if c.validation and c.validation.labelled]
    if not judged:
        return join(None)
    body = [
        [name(c.id, keys.get(c.id)), f"{len(found.images):,}",
         figures.share(found.reference_top1), figures.share(found.candidate_top1),
         _changed(found)]
        for c, found in judged
    ]  # fmt: skip
    head = ("candidate", "images", "reference top-1", "candidate top-1", "class changed")
    return join((el("h3", "Labelled images"), table(head, body, label="Labelled images")))


def guards(rows: list[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """The accuracy guard: candidate and reference on the same items, and how sure that is."""
    judged = [(c, c.validation.guard) for c in rows if c.validation and c.validation.guard]
    if not judged:
        return join(None)
    body: list[list[Node]] = [
        [name(c.id, keys.get(c.id)), el("td", badge(str(found.verdict))), found.measure,
         f"{found.items:,}", ladder.accuracy(found), ladder.drop(found),
         "" if found.max_drop is None else figures.points(found.max_drop),
         f"{found.worse:,}", f"{found.better:,}",
         figures.MISSING if found.p_value is None else f"{found.p_value:.2g}"]
        for c, found in judged
    ]  # fmt: skip
    head = ("candidate", "", "measure", "items", "reference \N{RIGHTWARDS ARROW} row",
            "drop (95%)", "allowed", "worse", "better", "McNemar p")  # fmt: skip
    methods = "; ".join(sorted({found.method for _, found in judged if found.method}))
    note = "worse, better: items that the reference alone, or the row alone, has right."
    note += f" Interval: {methods}." if methods else ""
    shown = table(head, body, label="Accuracy guard", numeric_from=3)
    return join((el("h3", "Accuracy guard"), shown, el("p", note, class_="dim small")))


def _changed(found: LabelledAccuracy) -> Node:
    if not found.changed:
        return "none"
    at = {image: n for n, image in enumerate(found.images)}
    lines = [
        el("li", el("code", image), f": label {found.labels[at[image]]}, reference "
           f"{found.reference[at[image]]}, candidate {found.candidate[at[image]]}")
        for image in found.changed
    ]  # fmt: skip
    return details(figures.count(len(lines), "image"), el("ul", lines, class_="images"))


def placement(rows: list[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """Which provider, engine or device ran how many nodes, as the runtime itself said."""
    drawn: list[Node] = []
    for c in rows:
        placed = c.placement
        if placed is None:
            continue
        total = sum(placed.nodes.values()) or 1
        nodes = sorted(placed.nodes.items(), key=lambda item: -item[1])
        bars = [
            el("span", style=f"width:{100 * n / total:.2f}%", class_=f"part part{min(i, 3)}",
               title=f"{where}: {n} of {total}")
            for i, (where, n) in enumerate(nodes)
        ]  # fmt: skip
        parts = [f"{where} {n:,}" for where, n in nodes] or [placed.device]
        if placed.copies:
            parts.append(figures.count(placed.copies, "copy", "copies"))
        if placed.graph_breaks is not None:
            parts.append(figures.count(placed.graph_breaks, "graph break"))
        state = badge("fell back") if placed.fell_back else None
        notes = " ".join(x for x in (placed.detail, placed.proof and f"From: {placed.proof}.") if x)
        title = name(c.id, keys.get(c.id))
        drawn.append(
            el("div",
               el("div", title, el("span", state, class_="value"), class_="head"),
               el("div", bars, class_="parts"),
               el("p", " · ".join(parts), el("span", f" {notes}", class_="dim"), class_="note"),
               class_="row", style=f"--c:var({colour(c.backend)})")
        )  # fmt: skip
    if not drawn:
        return el("p", "No candidate came as far as running.", class_="dim")
    return el("div", drawn, class_="rows cells")


def out_of_the_race(placed: Standings) -> Markup:
    """A card for each reason why rows may not win, and what would change it."""
    return el("div", [_card(alike) for alike in placed.out_alike], class_="cards")


def _card(alike: Sequence[CandidateResult]) -> Markup:
    first = alike[0]
    logs = [el("code", log) for log in dict.fromkeys(c.log for c in alike) if log]
    return el(
        "article",
        [
            el("header", el("span", breakable(c.id), class_="name"), badge(words.badge(c)))
            for c in alike
        ],
        el("p", words.reason(first)),
        [
            el("p", text, class_="random" if text == words.RANDOM else None)
            for text in words.asides(first)
        ],
        el("p", el("b", "Fix: "), first.fix) if first.fix else None,
        el("p", "Log: ", [(log, " ") for log in logs], class_="dim") if logs else None,
        class_="card",
    )


def reproduction(
    rows: list[CandidateResult], commands: Mapping[str, str], keys: Mapping[str, Key]
) -> Markup:
    """Options, versions and the command that runs just that row again."""
    items = []
    for c in rows:
        facts = {
            "options": ", ".join(f"{k}={v}" for k, v in c.options.items()) or "none",
            "versions": ", ".join(f"{k} {v}" for k, v in c.versions.items()),
            "interpreter": c.python,
            "log": c.log,
            "finished": c.finished,
        }
        lines = [(el("dt", k), el("dd", v)) for k, v in facts.items() if v]
        command = commands.get(c.id)
        items.append(
            details(
                name(c.id, keys.get(c.id)), el("dl", lines), copyable(command) if command else None
            )
        )
    return el("div", items, class_="folds")
