"""The mark, colour and dash that stand for a candidate in every chart of the page."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass

from peregrine.report.html.markup import Markup, breakable, el
from peregrine.report.html.plot import DASHES
from peregrine.report.standings import Standings

KNOWN = (
    "pytorch",
    "torch_compile",
    "torch_tensorrt",
    "tensorrt",
    "onnxruntime",
    "openvino",
    "native",
)


@dataclass(frozen=True, slots=True)
class Key:
    mark: str
    """Its rank, or a letter where it has none."""
    colour: str
    """A CSS variable: one a backend."""
    dash: str
    """Tells candidates of one backend apart."""


def colour(backend: str) -> str:
    return f"--{backend.replace('_', '-')}" if backend in KNOWN else "--other"


def keys(placed: Standings) -> dict[str, Key]:
    """Candidate id -> key, for every row that was measured."""
    letters = iter(string.ascii_lowercase * 9)
    seen: Counter[str] = Counter()
    found: dict[str, Key] = {}
    for row in placed.rows:
        hue = colour(row.result.backend)
        mark = str(row.rank) if row.rank else next(letters)
        found[row.result.id] = Key(mark, hue, DASHES[seen[hue] % len(DASHES)])
        seen[hue] += 1
    return found


def name(candidate: str, key: Key | None) -> Markup:
    """A candidate's id after its mark."""
    if key is None:
        return el("span", breakable(candidate), class_="name")
    mark = el("span", key.mark, class_="mark", style=f"--c:var({key.colour})")
    return el("span", mark, " ", breakable(candidate), class_="name")
