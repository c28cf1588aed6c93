"""HTML by construction: text is escaped because only `Markup` is not."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from peregrine.report.words import plain


class Markup(str):
    """Text that is HTML already. Only this module and its callers' literals make it."""

    __slots__ = ()


Node: TypeAlias = "str | Markup | Iterable[Node] | None"

_VOID = frozenset({"br", "meta", "wbr"})


def el(tag: str, *children: Node, **attributes: str | float | bool | None) -> Markup:
    """An element. `class_` is class, `data_tip` is data-tip; None and False are left out."""
    head = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        head += f" {key}" if value is True else f' {key}="{html.escape(plain(str(value)))}"'
    if tag in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(children)}</{tag}>")


def join(nodes: Node) -> Markup:
    """Nodes one after the other; plain strings are escaped."""
    if nodes is None:
        return Markup("")
    if isinstance(nodes, Markup):
        return nodes
    if isinstance(nodes, str):
        return Markup(html.escape(plain(nodes)))
    return Markup("".join(join(node) for node in nodes))


def breakable(identifier: str) -> Markup:
    """A long name that may break after its brackets and spaces, and nowhere ugly."""
    parts = identifier.replace("]", "]\0").replace("[", "\0[").replace("=", "=\0").split("\0")
    return Markup("<wbr>".join(join(part) for part in parts))


def table(
    head: Iterable[Node],
    rows: Iterable[Iterable[Node]],
    *,
    label: str,
    numeric_from: int = 1,
    sortable: bool = True,
) -> Markup:
    """A table in a box that scrolls by itself on a narrow screen. The first cell of a row heads it.

    Columns from `numeric_from` on are aligned to the right; a cell may be an element of its own
    (`td`, or `th` in the head) where it must differ.
    """
    titles = list(head)
    body = []
    for row in rows:
        cells = []
        for number, cell in enumerate(row):
            if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
                cells.append(cell)
                continue
            tag, side = ("th", "row") if number == 0 else ("td", None)
            align = "num" if number >= numeric_from else None
            cells.append(el(tag, cell, class_=align, scope=side))
        body.append(el("tr", *cells))
    heads = [
        title
        if isinstance(title, Markup) and title.startswith("<th")
        else el("th", title, scope="col", class_="num" if number >= numeric_from else None)
        for number, title in enumerate(titles)
    ]
    kind = "sortable" if sortable else None
    inner = el("table", el("thead", el("tr", heads)), el("tbody", body), class_=kind)
    return el("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)


def badge(state: str) -> Markup:
    """A status as a coloured word with a mark, so that colour is not all that tells."""
    marks = {"ok": "✓", "chosen": "✓", "winner": "★", "tied": "=", "undecided": "?"}
    return el(
        "span",
        marks.get(state, "✕" if state in {"invalid", "failed"} else "!"),
        " ",
        state,
        class_=f"badge {state.replace(' ', '-')}",
    )


def details(summary: Node, *body: Node, open_: bool = False) -> Markup:
    return el("details", el("summary", summary), *body, open_=open_)


def copyable(*lines: str) -> Markup:
    """Lines of code with a button that copies them, where JavaScript runs."""
    return el("div", el("pre", el("code", "\n".join(lines))), class_="code")
