"""What the tests of conversions share: calibration data of random numbers, and a way to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from conformance import scaled_error
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import Job
from peregrine.conversion.prepare import prepare
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Feeds
from small_models import SMALL


def small(name: str, directory: Path) -> Model:
    return SMALL[name]().load(directory / name)


def calibration(model: Model, directory: Path, rows: int = 32) -> Calibration:
    """Random inputs that no test judges by."""
    data = directory / "calibration"
    data.mkdir(parents=True, exist_ok=True)
    feeds = [random_feeds(model, 4, 1000 + i) for i in range(rows // 4)]
    return Calibration.write(data, model, feeds, "random inputs", random=True)


def job(model: Model, graph: Graph, directory: Path, **given: Any) -> Job:
    if graph.calibrated and "calibration" not in given:
        given["calibration"] = calibration(model, directory)
    return Job(model, prepare(model), graph, directory / f"{model.name}-{graph}", **given)


def run(
    graph: onnx.ModelProto | Path, feeds: Feeds, *, optimized: bool = False
) -> list[np.ndarray]:
    """All outputs, by ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    what = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = ort.InferenceSession(what, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def worst_error(
    model: Model, graph: onnx.ModelProto | Path, *, optimized: bool = False, batch: int = 3
) -> float:
    """The largest scaled error of an output against the graph as it came, on fresh inputs."""
    feeds = random_feeds(model, batch, 1)
    pairs = zip(run(model.onnx_path, feeds), run(graph, feeds, optimized=optimized), strict=True)
    errors = [scaled_error(found, expected) for expected, found in pairs]
    assert all(np.isfinite(errors))
    return max(errors)
