"""Chains of steps in parts: the same numbers in less memory, where the clock agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compiler.fused_reference import run
from compiler.passes.test_slice_batch import stem
from compiler.test_lifetimes import run_poisoned
from peregrine.compiler import slicing
from peregrine.compiler.blame import InTorch
from peregrine.compiler.build import build, rebuild
from peregrine.compiler.explain import arena_spans
from peregrine.compiler.lower import Choice, lower
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.memory import Block, alive
from peregrine.compiler.operation import Operation
from peregrine.compiler.passes.slice_batch import SliceBatch
from peregrine.compiler.plan import Place, Timed
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.types import Precision


class Clock:
    """Everything by PyTorch, as if it took this long."""

    device = Device("cpu")

    def __init__(self, ms: Callable[[Operation], float | None]) -> None:
        self._ms = ms

    def prepare(self, operations: Iterable[Operation]) -> None:
        list(operations)

    def choose(self, operation: Operation) -> Choice:
        return Choice(registry.torch_ops(), Timed(tactic="torch_ops", ms=self._ms(operation)))


def by_size(operation: Operation) -> float:
    """Bound by its images: with a part of them nothing is lost or gained."""
    images = operation.inputs[0]
    return (images.bytes + operation.outputs[0].bytes) * 1e-6 if images else 0.0


def lowered(slices: slicing.Slices, ms: Callable[[Operation], float | None] = by_size) -> Lowered:
    model = stem()
    if slices:
        SliceBatch(slices)(model)
    return lower(model, Clock(ms), dims={}, precision="fp32")


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(11)
    return {
        str(value.name): numbers.standard_normal(tuple(value.shape)).astype(np.float32)
        for value in model.graph.inputs
    }


@pytest.mark.parametrize("chain", [("c", "p"), ("c", "y"), ("p", "y")])
def test_parts_lie_in_their_wholes_and_take_less_memory(chain):
    plain, plan = lowered({}).plan, (made := lowered({chain: 3})).plan
    assert {step.operation.operator for step in plan.steps} == {
        "peregrine.Conv",
        "ai.onnx.MaxPool",
    }
    feeds = feeds_of(stem())
    (found,), (expected,) = run_poisoned(made, feeds), run(stem(), feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if chain[0] == "c":
        assert plan.memory.arena < 0.8 * plain.memory.arena
        parts = [plan.tensors[f"x/{index}"] for index in range(3)]
        assert [part.place for part in parts] == [Place.INPUT] * 3
        assert [part.offset for part in parts] == [0, 2 * 168 * 4, 4 * 168 * 4]


def test_explain_knows_how_long_a_tensor_read_in_parts_is_alive():
    plan = lowered({("p", "y"): 3}).plan
    blocks = [Block(s.name, s.bytes, s.first, s.last) for s in arena_spans(plan)]
    assert max(alive(blocks, len(plan.steps))) == plan.memory.lower_bound


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(slicing, "_SMALLEST", 0)
    monkeypatch.setattr(slicing, "ALIGNMENT", 4)
    monkeypatch.setattr(slicing, "PARTS", (3, 2))


def test_less_memory_for_no_more_time_is_taken(any_size):
    found = slicing.sliced(lowered({}), lowered, slicing.by_steps)
    assert found.plan.memory.arena < 0.8 * lowered({}).plan.memory.arena
    assert sum(step.operation.operator == "ai.onnx.MaxPool" for step in found.plan.steps) == 3


def test_less_memory_for_more_time_is_not(any_size):
    def launches(operation: Operation) -> float:
        return 1.0

    whole = lowered({}, launches)
    assert slicing.sliced(whole, lambda s: lowered(s, launches), slicing.by_steps) is whole


def test_less_time_is_taken(any_size):
    def superlinear(operation: Operation) -> float:
        return by_size(operation) ** 2

    found = slicing.sliced(
        lowered({}, superlinear), lambda s: lowered(s, superlinear), slicing.by_steps
    )
    assert sum(step.operation.operator == "ai.onnx.MaxPool" for step in found.plan.steps) == 3


def test_parts_begin_where_tensors_may(monkeypatch):
    """A part of x has 2 * 168 * 4 bytes, no multiple of 256."""
    monkeypatch.setattr(slicing, "_SMALLEST", 0)
    monkeypatch.setattr(slicing, "PARTS", (3, 2))
    whole = lowered({})
    assert slicing.sliced(whole, lowered, slicing.by_steps) is whole


def test_nothing_is_tried_where_nothing_is_timed(any_size):
    whole = lowered({}, lambda operation: None)

    def never(slices: slicing.Slices) -> Lowered:
        raise AssertionError

    assert slicing.sliced(whole, never, slicing.by_steps) is whole


@pytest.mark.slow
def test_a_network_in_parts_computes_the_same(tmp_path, any_size):
    model = load("squeezenet1_1", tmp_path / "model")
    sizes = model.sizes(6)
    feeds = random_feeds(model, 6, 3)
    outputs, arenas = [], []
    for ms in (by_size, lambda operation: None):
        made = build(model, sizes, Precision.FP32, Clock(ms), slices=True)
        executable = Executable(made.plan, made.weights, "cpu")
        for name, buffer in executable.inputs.items():
            buffer.copy_(torch.from_numpy(feeds[name]))
        executable.start()
        outputs.append(executable.outputs()[0].clone())
        arenas.append(made.plan.memory.arena)
        again = rebuild(model, made.plan, InTorch(Device("cpu"))).plan
        assert [step.outputs for step in again.steps] == [s.outputs for s in made.plan.steps]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
    assert arenas[0] < 0.8 * arenas[1]
