"""What a converter is asked for and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.conversion.calibration import Calibration
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import CalibratorTrial

if TYPE_CHECKING:
    import onnx

GRAPH_FILE, IR_FILE = "model.onnx", "model.xml"


@dataclass(frozen=True, slots=True)
class Job:
    """One graph to convert."""

    model: Model
    """As the user gave it."""
    prepared: onnx.ModelProto
    """Its graph, cleaned (`conversion.prepare`): every node has a name of its own. Converters
    must not change it in place."""
    graph: Graph
    out: Path
    """Where to write `model.onnx`, or OpenVINO's `model.xml` and `model.bin`."""
    calibration: Calibration | None = None
    """There wherever `graph.calibrated`."""
    keep: frozenset[str] = frozenset()
    """Names of nodes of `prepared` to leave in fp32."""
    calibrator: str = ""
    """minmax, entropy or percentile; empty to try all and choose."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a converter says of the file it wrote."""

    by: str
    """Library and version."""
    file: str = GRAPH_FILE
    calibrator: str = ""
    tried: tuple[CalibratorTrial, ...] = ()
    converted: dict[str, int] = field(default_factory=dict)
    """Operator type -> nodes that compute in the lower precision."""
    left: dict[str, int] = field(default_factory=dict)
    """Operator type -> nodes with weights that stayed as they were."""
    notes: tuple[str, ...] = ()
