"""What the tactic that walks down images takes, and how it cuts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import activation, conv, image, tensors
from peregrine.compiler.operators import Activation, ActivationKind, Window
from peregrine.compiler.tactics.triton_depthwise_walk import TritonDepthwiseWalk

_SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
_SHAPE = (64, 32, 28, 28)


def _depthwise(shape=_SHAPE, window=_SAME, dtype="float16", **options):
    return conv(shape, shape[1], window, dtype=dtype, group=shape[1], **options)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (conv(_SHAPE, 64, _SAME, dtype="float16"), "one filter a channel"),
        (_depthwise(dtype="float64"), "not float64"),
        (_depthwise(residual=True), "adds nothing"),
        (_depthwise(window=Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))), "dilated"),
        (_depthwise(window=Window((2, 2), (3, 3))), "leave out rows"),
        (_depthwise(window=Window((3, 3), (1, 1), (3, 0, 3, 0))), "as high as its window"),
        (_depthwise((64, 33, 28, 28)), "no multiples of 2"),
        (_depthwise(slice_of=35), "no multiples of 2"),
        (_depthwise((1, 32, 7, 7)), "too few pixels"),
        (replace(_depthwise(), constants=frozenset({2})), "input 1 is no constant"),
    ],
)
def test_convolutions_it_does_not_take_have_a_reason(operation, reason):
    support = TritonDepthwiseWalk().supports(operation, cases.H200)
    assert not support
    assert reason in support.reason


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [
        (32, 112, 3, 1),
        (96, 112, 3, 2),
        (144, 56, 3, 1),
        (144, 56, 5, 2),
        (384, 14, 3, 1),
        (672, 14, 5, 1),
        (960, 7, 3, 1),
        (1152, 7, 5, 1),
    ],
)
def test_configurations_are_few_distinct_and_predicted(channels, size, kernel, stride):
    pad = kernel // 2
    window = Window((kernel, kernel), (stride, stride), (pad, pad, pad, pad))
    operation = _depthwise((256, channels, size, size), window)
    assert TritonDepthwiseWalk().supports(operation, cases.H200)
    cases.check_configs(TritonDepthwiseWalk(), operation)


def test_vectors_divide_channels_and_steps():
    """144 channels in a slice whose rows begin at multiples of 4 elements only."""
    x = image("float16", (256, 144, 56, 56), 148)
    operation = cases.with_input(_depthwise((256, 144, 56, 56)), x)
    for config in TritonDepthwiseWalk().configs(operation, cases.H200):
        assert 4 % config["vector"] == 0


@pytest.mark.parametrize(
    ("kind", "dtype", "first"),
    [
        (activation(ActivationKind.RELU), "float16", True),
        (Activation(ActivationKind.CLIP, 0.0, 6.0), "float16", True),
        (Activation(ActivationKind.CLIP, -1e30, 6.0), "float16", False),
        (Activation(ActivationKind.CLIP, 0.0, 0.1), "float16", False),
        (Activation(ActivationKind.CLIP, 0.0, 6.0), "bfloat16", False),
        (activation(ActivationKind.SILU), "float16", False),
    ],
)
def test_sums_are_rounded_first_only_where_that_changes_nothing(kind, dtype, first):
    operation = _depthwise(dtype=dtype, activation=kind)
    tactic = TritonDepthwiseWalk()
    config = tactic.configs(operation, cases.H200)[0]
    x, w, b, _ = tensors(replace(operation, inputs=(*operation.inputs[:3], None)))
    arguments = tactic.kernel(operation, config, [x, w, b, x]).arguments
    assert arguments["ROUND_FIRST"] is first


def test_packed_weights():
    operation = _depthwise()
    inputs = tensors(operation)
    config = TritonDepthwiseWalk().configs(operation, cases.H200)[0]
    _, taps, bias = TritonDepthwiseWalk().pack(operation, config, inputs)[:3]
    assert taps.shape == (9, 32)
    assert taps[5].equal(inputs[1][:, 0, 1, 2])
    assert bias.dtype is torch.float32
