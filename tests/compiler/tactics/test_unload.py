"""Kernels of trials leave the device; those that serve, and their CUDA graphs, stay."""

from __future__ import annotations

import pytest

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
