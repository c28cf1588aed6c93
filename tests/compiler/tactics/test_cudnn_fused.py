"""cuDNN as torch reaches it."""

from __future__ import annotations

import pytest
import torch

from compiler.tactics.operations import (
    H200,
    IDENTITY,
    TOLERANCE,
    activation,
    conv,
    error_of,
    linear,
    random_convs,
)
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.tactics.cudnn_fused import CudnnFused

_TACTIC = CudnnFused()
_SAME = Window((3, 3), pads=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (linear((4, 8), 8), "peregrine.Linear"),
        (conv((1, 8, 9, 9), 8, _SAME, dtype="float64"), "16 or 32 bits"),
        (conv((1, 8, 9, 9), 8, _SAME, dtype="float16", output_dtype="float32"), "one dtype"),
        (conv((1, 8, 9, 9), 8, _SAME, slice_of=16), "whole channels-last"),
        (conv((1, 8, 9, 9), 8, Window((3, 3), pads=(0, 0, 1, 1))), "both sides"),
    ],
)
def test_what_it_does_not_take_has_a_reason(operation, reason):
    support = _TACTIC.supports(operation, H200)
    assert not support
    assert reason in support.reason


def test_it_needs_a_gpu():
    assert "NVIDIA GPU" in _TACTIC.supports(conv((1, 8, 9, 9), 8, _SAME), Device("cpu")).reason


def test_cudnn_fuses_relu_only():
    relu = _TACTIC.configs(conv((1, 8, 9, 9), 8, _SAME), H200)
    assert [config["epilogue"] for config in relu] == ["fused", "separate"]
    for kind in (IDENTITY, activation(ActivationKind.SILU)):
        configs = _TACTIC.configs(conv((1, 8, 9, 9), 8, _SAME, activation=kind), H200)
        assert [config["epilogue"] for config in configs] == ["separate"]


def test_a_copy_costs_less_than_two_passes():
    operation = conv((64, 64, 56, 56), 64, _SAME, dtype="float16")
    fused, separate = (_TACTIC.predict(operation, config, H200)
                       for config in _TACTIC.configs(operation, H200))  # fmt: skip
    assert fused < separate


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_random_convolutions_against_float64(dtype):
    operations = random_convs(21, 6, dtype)
    operations += [
        conv((2, 64, 13, 11), 64, _SAME, dtype=dtype, group=group, activation=activation(kind))
        for group in (1, 4, 64)
        for kind in (ActivationKind.CLIP, ActivationKind.HARD_SWISH)
    ]
    for operation in operations:
        if not _TACTIC.supports(operation, H200):
            continue
        for config in _TACTIC.configs(operation, H200):
            error = error_of(_TACTIC, operation, config, "cuda:0")
            assert error <= 3 * TOLERANCE[dtype], (operation, config, error)


@pytest.mark.gpu
def test_settings_of_torch_are_what_they_were():
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.conv.fp32_precision)
    operation = conv((2, 8, 9, 9), 8, _SAME)
    error_of(_TACTIC, operation, _TACTIC.configs(operation, H200)[0], "cuda:0")
    assert before == (cudnn.benchmark, cudnn.conv.fp32_precision)
