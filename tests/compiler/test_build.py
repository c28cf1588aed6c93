"""Fused operators that do not pay are taken apart, each for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from peregrine.backends.onnxruntime import OnnxRuntimeBackend
from peregrine.compiler.build import build
from peregrine.compiler.lower import Choice
from peregrine.compiler.operation import Operation
from peregrine.compiler.plan import Timed
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Profile, Target


class ByOperator:
    """Everything by PyTorch, as if each operation took what its operator is said to take."""

    device = Device("cpu")

    def __init__(self, ms: Mapping[str, float]) -> None:
        self._ms = ms

    def prepare(self, operations: Iterable[Operation]) -> None:
        list(operations)

    def choose(self, operation: Operation) -> Choice:
        ms = self._ms.get(operation.operator, 1.0)
        wide = [
            kind for kind in operation.inputs if kind and kind.shape and kind.shape[1:2] == (96,)
        ]
        if operation.operator == "peregrine.DepthwisePointwise" and wide:
            ms = 0.5
        return Choice(registry.torch_ops(), Timed(tactic="torch_ops", ms=ms))


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load("mobilenet_v2", tmp_path_factory.mktemp("mobilenet"))


def operators(model: Model, ms: Mapping[str, float]) -> Counter[str]:
    built = build(model, model.sizes(1), Precision.FP32, ByOperator(ms))
    return Counter(step.operation.operator for step in built.plan.steps)


def test_what_is_faster_fused_stays(mobilenet: Model) -> None:
    found = operators(mobilenet, {"peregrine.DepthwisePointwise": 1.9})
    assert found["peregrine.DepthwisePointwise"] == 17
    assert found["peregrine.Conv"] == 18


def test_what_is_slower_fused_is_taken_apart_and_nothing_else(mobilenet: Model) -> None:
    # One block has 96 hidden channels at half the size, two more later: these stay fused.
    found = operators(mobilenet, {"peregrine.DepthwisePointwise": 2.1})
    assert 0 < found["peregrine.DepthwisePointwise"] < 17
    apart = 17 - found["peregrine.DepthwisePointwise"]
    assert found["peregrine.Conv"] == 18 + 2 * apart


def test_taken_apart_it_computes_the_same(mobilenet: Model) -> None:
    sizes = mobilenet.sizes(1)
    feeds = random_feeds(mobilenet, 1, 5)
    slow = {"peregrine.DepthwisePointwise": 2.1, "peregrine.PoolLinear": 9.0}
    built = build(mobilenet, sizes, Precision.FP32, ByOperator(slow))
    executable = Executable(built.plan, built.weights, "cpu")
    for name, buffer in executable.inputs.items():
        buffer.copy_(torch.from_numpy(feeds[name]))
    executable.start()
    (found,) = executable.outputs()
    candidate = Candidate("onnxruntime", "CPUExecutionProvider")
    target = Target(profile=Profile.fixed(sizes))
    with OnnxRuntimeBackend().compile(mobilenet, candidate, target) as session:
        (expected,) = session.run(feeds).values()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_progress_is_told(mobilenet: Model, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    build(
        mobilenet,
        mobilenet.sizes(1),
        Precision.FP32,
        ByOperator({}),
        progress=lambda *step: told.append(step),
    )
    assert told[0][0] == 0
    assert all(done < total for done, total, _ in told)
