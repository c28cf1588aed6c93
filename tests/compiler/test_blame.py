"""The step that is wrong is named, and only that."""

from __future__ import annotations

import pytest
import torch

from compiler.test_lifetimes import blocks, build
from compiler.test_lower import fire
from peregrine.backends.native import NativeBackend
from peregrine.compiler.blame import InTorch, blame
from peregrine.compiler.build import rebuild
from peregrine.compiler.devices import describe
from peregrine.compiler.runtime import Executable
from peregrine.model.load import load
from peregrine.types import Candidate, Precision, Profile, Target


def feeds(executable: Executable, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(buffer.shape, generator=generator) * 0.3
        for name, buffer in executable.inputs.items()
    }


@pytest.mark.parametrize("text", [blocks(), fire()], ids=["residual blocks", "a concatenation"])
def test_nobody_is_blamed_where_all_are_right(text):
    _, lowered = build(text)
    executable, reference = (Executable(lowered.plan, lowered.weights, "cpu") for _ in range(2))
    found = list(blame(executable, reference, [feeds(executable, 1)]))
    assert [one.step for one in found] == list(lowered.plan.steps)
    assert max(one.alone for one in found) < 1e-6
    assert all(one.in_graph is None for one in found)


@pytest.mark.parametrize("wrong", range(6))
def test_the_step_that_is_wrong_is_named_and_none_that_reads_it(wrong, monkeypatch):
    _, lowered = build(blocks())
    executable, reference = (Executable(lowered.plan, lowered.weights, "cpu") for _ in range(2))
    right = executable._calls[wrong]
    output = lowered.plan.steps[wrong].outputs[0]

    def spoiled(environment):
        right(environment)
        executable.read(output).mul_(1.5)

    executable._calls[wrong] = spoiled
    found = list(blame(executable, reference, [feeds(executable, 2)]))
    assert [index for index, one in enumerate(found) if one.alone > 1e-3] == [wrong]
    assert found[wrong].alone == pytest.approx(0.5, rel=1e-3)


def test_another_plan_is_no_reference():
    plans = [build(text)[1] for text in (blocks(), fire())]
    executables = [Executable(p.plan, p.weights, "cpu") for p in plans]
    with pytest.raises(ValueError, match="other steps"):
        list(blame(*executables, [feeds(executables[0], 1)]))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_every_step_of_a_network_is_right_alone_and_in_a_graph(device, tmp_path):
    model = load("squeezenet1_1", tmp_path / "model")
    precision = Precision.FP16 if device != "cpu" else Precision.FP32
    candidate = Candidate("native", precision=precision)
    target = Target(device, Profile.fixed(model.sizes(2)))
    with NativeBackend().compile(model, candidate, target) as session:
        executable = session.executable
        lowered = rebuild(model, executable.plan, InTorch(describe(device)))
        reference = Executable(lowered.plan, lowered.weights, device)
        sets = [feeds(executable, seed) for seed in range(3)]
        found = list(blame(executable, reference, sets))
    assert len(found) > 20
    assert max(one.alone for one in found) < 4e-3
    if device != "cpu":
        assert max(one.in_graph for one in found) < 1e-4
