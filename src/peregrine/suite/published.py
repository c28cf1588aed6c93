"""The figures of the studies that the suites repeat, as `data/published.toml` holds them."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Who published it, and what it was measured on."""

    title: str
    authors: str
    card: str
    machine: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.title} ({self.authors}), on {self.card}"


@dataclass(frozen=True, slots=True)
class Paper:
    """Tables I, III and IV. Each maps a workflow to its figures by network."""

    source: Source
    networks: tuple[str, ...]
    largest_batch: Mapping[str, Mapping[str, float]]
    non_equal_percent: Mapping[str, Mapping[str, float]]
    speedup: Mapping[str, float]
    """Over PyTorch, of the best workflow, by network."""
    said: Mapping[str, str] = field(default_factory=dict)
    """What the text says of a figure that it gives no numbers of."""


@dataclass(frozen=True, slots=True)
class ResNet50:
    source: Source
    average_ms: Mapping[str, Mapping[str, float]]
    """Row of the table -> column -> milliseconds at batch 1."""


@functools.cache
def paper() -> Paper:
    """The study of eight networks and four workflows."""
    record = _record("paper")
    networks = tuple(record["networks"])

    def by_network(figures: list[float]) -> dict[str, float]:
        return dict(zip(networks, figures, strict=True))

    return Paper(
        source=_source(record),
        networks=networks,
        largest_batch={w: by_network(v) for w, v in record["largest_batch"].items()},
        non_equal_percent={w: by_network(v) for w, v in record["non_equal_percent"].items()},
        speedup=by_network(record["speedup"]["best"]),
        said=record["said"],
    )


@functools.cache
def resnet50() -> ResNet50:
    """The table of one network on three runtimes."""
    record = _record("resnet50")
    return ResNet50(_source(record), record["average_ms"])


def _record(name: str) -> dict[str, Any]:
    text = files("peregrine").joinpath("data/published.toml").read_text("utf-8")
    record: dict[str, Any] = tomllib.loads(text)[name]
    return record


def _source(record: Mapping[str, Any]) -> Source:
    words = {key: record[key] for key in ("title", "authors", "card", "machine")}
    return Source(**words, versions=record["versions"])
