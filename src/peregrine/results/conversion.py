"""How a graph of lower precision was made, and repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peregrine.types import Precision


@dataclass(frozen=True, slots=True)
class CalibratorTrial:
    """One way of choosing ranges, judged on the calibration data."""

    calibrator: str
    """minmax, entropy or percentile."""
    scaled_error: float
    """Mean over items of ||quantised - fp32|| / ||fp32||, the worst output."""
    agreement: float | None = None
    """Share of items with the fp32 graph's class; None where the model is no classifier."""


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A node that a repair left in higher precision."""

    node: str
    operator: str
    reason: str
    """E.g. `outliers: one channel of its input reaches 120 times the others' range`."""
    error: float | None = None
    """Scaled error that converting this node alone brings to its own output, on real inputs."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """How the graph that a row ran was made from the user's."""

    graph: str
    precision: Precision
    by: str
    """Library and version that did the arithmetic, e.g. `onnxruntime.quantization 1.31.1`."""
    seconds: float
    """To make it; of the run that made it, where it came from the cache."""
    cached: bool = False
    calibration: str = ""
    """What the ranges come from: `40 of 160 photos in photos/`; empty where none are needed."""
    random_calibration: bool = False
    """The ranges come from random numbers, as asked for by name: no measure of accuracy."""
    calibrator: str = ""
    tried: tuple[CalibratorTrial, ...] = ()
    converted: Mapping[str, int] = field(default_factory=dict)
    """Operator type -> nodes that compute in the lower precision."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Operator type -> nodes with weights that stayed as they were."""
    kept: tuple[KeptLayer, ...] = ()
    """What a repair left in higher precision."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairStep:
    kept: int
    """Nodes left in higher precision."""
    scaled_error: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Repair:
    """An attempt to make a failing row right by leaving some layers in higher precision."""

    of: str
    """The row that failed."""
    because: str
    """Its reason."""
    steps: tuple[RepairStep, ...]
    seconds: float
    budget_s: float
    outcome: str
    """A sentence: what was kept, or why nothing helps."""
    cost: float | None = None
    """Time of the repaired graph over the failing one's, taken in turns."""
