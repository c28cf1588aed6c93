"""Kernels of trials leave the device; those that serve, and their CUDA graphs, stay. What spills
much is not tried at all: the driver never gives its memory back."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl

from compiler.tactics.operations import conv
from peregrine.compiler.autotune import Trial
from peregrine.compiler.devices import describe
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _triton
from peregrine.compiler.tactics.triton_conv import TritonConv


@pytest.mark.gpu
def test_what_only_trials_launched_is_unloaded_and_comes_back() -> None:
    import torch

    device, tactic = describe("cuda:0"), TritonConv()
    operation = conv((3, 17, 9, 11), 24, Window((3, 3), (1, 1), (1, 1, 1, 1)), dtype="float16")
    serving, tried = list(tactic.configs(operation, device))[:2]
    trial = Trial(operation, device, 0)
    served = trial.bind(tactic, serving)
    assert trial.error(served) <= trial.tolerance
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        served()
    with _triton.trying(), _triton.launched() as kernels:
        assert trial.error(trial.bind(tactic, tried)) <= trial.tolerance
        served()
    lost, kept = kernels[0].compiled, kernels[-1].compiled
    _triton.unload()
    assert lost.module is None
    assert kept.module is not None
    for output in trial._outputs:
        output.fill_(float("nan"))
    graph.replay()
    assert trial.difference() <= trial.tolerance
    assert trial.error(trial.bind(tactic, tried)) <= trial.tolerance


@triton.jit
def _transposed(x, y, size: tl.constexpr):
    """Holds size * size numbers at once, and sums them up in another order than they came."""
    at = tl.arange(0, size)
    first = tl.load(x + at[:, None] * size + at[None, :])
    held = first
    for _ in range(4):
        held = tl.trans(held) * 0.5 + tl.cumsum(held, 1) * first
    tl.store(y + at[:, None] * size + at[None, :], held + tl.trans(first))


@pytest.mark.gpu
def test_what_spills_much_is_not_tried() -> None:
    import torch

    x = torch.randn(64 * 64, device="cuda:0")
    few, many = (
        _triton.Kernel(_transposed, (1,), {"x": x, "y": torch.empty_like(x), "size": size}, 1)
        for size in (16, 64)
    )
    before = torch.cuda.mem_get_info()[0]
    with _triton.trying():
        _triton.launches([few])()
        with pytest.raises(RuntimeError, match="spills"):
            _triton.launches([many])
    assert before - torch.cuda.mem_get_info()[0] < 64 << 20
    _triton.launches([few])()  # who asks for one by itself has it
