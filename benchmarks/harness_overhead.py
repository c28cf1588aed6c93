"""What the harness adds to a session's latency, against a bare loop around ONNX Runtime.

A convolutional network of about 5 ms is run in two ways: a bare loop of
`InferenceSession.run` between two readings of the clock, and `clock.sample` on `session.run`
of Peregrine's own ONNX Runtime backend, as the race does it. Both call one and the same
InferenceSession, since two would fight for the cores with their thread pools. The two take
turns in short rounds whose order alternates, so that a neighbour's load falls on both. The figure
is the median over rounds of the ratio of the two medians: rounds in which a neighbour hit only one
of them are thrown far off, and a mean would follow them.

    python benchmarks/harness_overhead.py --json overhead.json

The verdict is "under 1%" or "over 1%" where the whole 95% interval of the ratio is, and "too
noisy to tell" where it holds 1.01. Exits with 1 when it is over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peregrine.backends.onnxruntime import OnnxRuntimeBackend, OrtSession
from peregrine.harness.clock import sample, timer_cost_ms, warm_up
from peregrine.harness.statistics import bootstrap_ci_of_median
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Profile, Target, TensorSpec

ALLOWED = 0.01
TARGET_MS = 5.0
_CHANNELS, _SIDE = 64, 28


def conv_model(directory: Path, layers: int) -> Model:
    """A chain of 3x3 convolutions with ReLU on a 28x28 image of 64 channels."""
    shape = (1, _CHANNELS, _SIDE, _SIDE)
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    previous = "x"
    for layer in range(layers):
        values = rng.normal(0, (2 / (9 * _CHANNELS)) ** 0.5, (_CHANNELS, _CHANNELS, 3, 3))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [previous, f"w{layer}"], [f"c{layer}"], pads=[1] * 4),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        previous = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(previous, TensorProto.FLOAT, shape)],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), directory / "model.onnx")
    return Model(
        name=f"chain of {layers} convolutions",
        directory=directory,
        inputs=(TensorSpec("x", "float32", shape),),
        outputs=(TensorSpec(previous, "float32", shape),),
        onnx="model.onnx",
    )


def open_session(directory: Path, layers: int, threads: int) -> OrtSession:
    model = conv_model(directory, layers)
    target = Target(profile=Profile(), threads=threads)
    return OnnxRuntimeBackend().compile(
        model, Candidate("onnxruntime", "CPUExecutionProvider"), target
    )


def bare_loop(runtime: Any, names: Sequence[str], feeds: dict[str, Array], runs: int) -> float:
    """Median ms of a plain loop, as one writes it by hand."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        runtime.run(names, feeds)
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken) / 1e6


def harness_loop(session: OrtSession, feeds: dict[str, Array], runs: int) -> float:
    """Median ms as the race measures it."""
    return statistics.median(sample(partial(session.run, feeds), min_runs=runs, min_s=0))


def sized_session(directory: Path, threads: int) -> tuple[OrtSession, dict[str, Array]]:
    """A session of about 5 ms where nothing else runs, warm, and its feeds."""
    feeds = {"x": np.random.default_rng(1).random((1, _CHANNELS, _SIDE, _SIDE), np.float32)}
    layers = 8
    with open_session(directory, layers, threads) as trial:
        quickest = min(sample(partial(trial.run, feeds)))
    session = open_session(directory, max(1, round(layers * TARGET_MS / quickest)), threads)
    warm_up(partial(session.run, feeds))
    return session, feeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--runs", type=int, default=7, help="inferences a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    bare: list[float] = []
    harness: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        session, feeds = sized_session(Path(scratch), arguments.threads)
        names = [spec.name for spec in session.outputs]
        for number in range(arguments.rounds):
            turns = [
                (bare, partial(bare_loop, session._runtime, names, feeds, arguments.runs)),
                (harness, partial(harness_loop, session, feeds, arguments.runs)),
            ]
            for into, turn in turns if number % 2 else reversed(turns):
                into.append(turn())
    ratios = [h / b for h, b in zip(harness, bare, strict=True)]
    ratio, (low, high) = statistics.median(ratios), bootstrap_ci_of_median(ratios)
    added_us = statistics.median(1e3 * (h - b) for h, b in zip(harness, bare, strict=True))
    limit = 1 + ALLOWED
    verdict = "under 1%" if high < limit else "over 1%" if low > limit else "too noisy to tell"
    found = {
        "bare_ms": statistics.median(bare),
        "harness_ms": statistics.median(harness),
        "ratio": ratio,
        "ci95": [low, high],
        "added_us": added_us,
        "timer_us": 1e3 * timer_cost_ms(),
        "rounds": arguments.rounds,
        "runs": arguments.runs,
        "threads": arguments.threads,
        "allowed": ALLOWED,
        "verdict": verdict,
    }
    print(f"bare loop  {found['bare_ms']:.3f} ms (median of {arguments.rounds} rounds)")
    print(f"harness    {found['harness_ms']:.3f} ms, {added_us:+.1f} us")
    print(f"ratio      {ratio:.4f}, 95% interval {low:.4f} to {high:.4f} ({verdict})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if low > limit else 0


if __name__ == "__main__":
    sys.exit(main())
