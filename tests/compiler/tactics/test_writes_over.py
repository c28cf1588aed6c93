"""A tactic that promises to write over an input gives the same there as beside it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from compiler.kernels.test_pointwise_pair import pair
from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import IDENTITY, conv, empty, linear, relative_error, tensors
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Config, Tactic, may_write_over
from peregrine.compiler.torch_ops.fused import reference

SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
ONE = Window((1, 1))


def error_in_place(tactic: Tactic, operation: Operation, config: Config, position: int) -> float:
    """Of the worst output, the first of which lies on the input at `position`."""
    device = cases.DEVICE
    inputs = tensors(operation, device.name, 7)
    expected = reference(operation, inputs)
    constants = [t if i in operation.constants else None for i, t in enumerate(inputs)]
    packed = tactic.pack(operation, config, constants)
    bound = [
        p if i in operation.constants else t
        for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
    ]
    outputs = [empty(kind, device.name) for kind in operation.outputs]
    outputs[0] = bound[position]
    size = tactic.workspace(operation, config, device)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=device.name) if size else None
    size = tactic.state(operation, config, device)
    state = torch.zeros(size, dtype=torch.uint8, device=device.name) if size else None
    tactic.bind(operation, config, bound, outputs, workspace, state)()
    return max(relative_error(y, truth) for y, truth in zip(outputs, expected, strict=True))


RESIDUALS = {
    "1x1": conv((3, 24, 7, 5), 40, ONE, dtype="float16", residual=True),
    "3x3": conv((2, 24, 9, 7), 24, SAME, dtype="float16", residual=True),
    "split": conv((1, 160, 5, 5), 40, SAME, dtype="float16", residual=True),
    "slices": conv(
        (2, 16, 5, 6), 24, SAME, dtype="float16", residual=True, activation=IDENTITY, slice_of=72
    ),
    "linear": linear((37, 64), 48, dtype="float16", residual=True),
}


@pytest.mark.parametrize("name", ["triton_conv", "torch_ops", "cublaslt", "cudnn_fused"])
@pytest.mark.parametrize("layer", RESIDUALS)
def test_residuals_are_written_over(name, layer):
    operation, tactic = RESIDUALS[layer], registry.get(name)
    z = operation.inputs[3]
    operation = replace(operation, outputs=(z,))
    if not tactic.supports(operation, cases.DEVICE):
        pytest.skip("not of this tactic, or not here")
    configs = [tactic.serial(config) for config in tactic.configs(operation, cases.DEVICE)]
    picked = {
        str([config.get(name) for name in ("fetch", "split_k", "reduce", "ahead", "boxed_end")]): c
        for c in configs
        if 3 in may_write_over(tactic, operation, config := c)
    }
    tactic.compile(operation, list(picked.values()), cases.DEVICE)
    assert picked or name in ("cublaslt", "cudnn_fused")
    for config in picked.values():
        assert error_in_place(tactic, operation, config, 3) < 2e-3, config


def test_the_first_output_of_a_pair_is_written_over_its_residual():
    operation = pair((2, 24, 9, 7), 40, 24, residual=True)
    for name in ("triton_pointwise_pair", "torch_ops"):
        tactic = registry.get(name)
        configs = [tactic.serial(config) for config in tactic.configs(operation, cases.DEVICE)]
        for config in configs[:3]:
            assert 3 in may_write_over(tactic, operation, config)
            assert error_in_place(tactic, operation, config, 3) < 2e-3, config


def test_what_has_another_type_is_not_written_over():
    layer = RESIDUALS["1x1"]
    tactic = registry.get("triton_conv")
    config = dict(tactic.serial(tactic.configs(layer, cases.H200)[0]))
    assert may_write_over(tactic, layer, config) == {3}
    plain = conv((3, 24, 7, 5), 40, ONE, dtype="float16")
    assert not may_write_over(tactic, plain, config)
    wider = replace(layer, outputs=(replace(layer.outputs[0], dtype="float32"),))
    assert not may_write_over(tactic, wider, config)


def test_what_a_window_slides_over_is_not_written_over_by_a_kernel():
    layer = conv((2, 24, 9, 7), 24, SAME, dtype="float16", residual=True)
    for name in ("triton_conv", "cublaslt", "cudnn_fused", "cudnn_graph"):
        tactic = registry.get(name)
        assert 0 not in tactic.writes_over(layer, {"epilogue": "accumulated"})


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_a_gpu_writes_over_residuals_of_odd_sizes(seed):
    """Many programs at once, again and again: who reads what another one writes is found."""
    chance = random.Random(seed)
    n, c, o = chance.randrange(1, 20), 8 * chance.randrange(1, 20), 8 * chance.randrange(1, 30)
    size = (chance.randrange(3, 40), chance.randrange(3, 40))
    window = chance.choice([ONE, SAME])
    layer = conv((n, c, *size), o, window, dtype="float16", residual=True)
    layer = replace(layer, outputs=(layer.inputs[3],))
    for name in ("triton_conv", "cublaslt", "cudnn_fused", "torch_ops"):
        tactic = registry.get(name)
        if not tactic.supports(layer, cases.DEVICE):
            continue
        configs = [tactic.serial(config) for config in tactic.configs(layer, cases.DEVICE)][:6]
        tactic.compile(layer, configs, cases.DEVICE)
        for config in configs:
            if 3 in may_write_over(tactic, layer, config):
                worst = max(error_in_place(tactic, layer, config, 3) for _ in range(3))
                assert worst < 2e-3, (name, config)
