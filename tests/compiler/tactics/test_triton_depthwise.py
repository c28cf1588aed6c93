"""What the tactics of depthwise convolutions take, and how they cut them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import conv, tensors
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.triton_depthwise import TritonDepthwise
from peregrine.compiler.tactics.triton_depthwise_pointwise import TritonDepthwisePointwise

_SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
_FUSED = cases.depthwise_pointwise((1, 16, 8, 8), 24, _SAME)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (_FUSED, "peregrine.Conv"),
        (conv((1, 16, 8, 8), 16, _SAME, dtype="float16"), "one filter a channel"),
        (conv((1, 16, 8, 8), 32, _SAME, dtype="float16", group=16), "one filter a channel"),
        (conv((1, 16, 8, 8), 16, _SAME, dtype="float64", group=16), "not float64"),
        (conv((1, 16, 20, 20), 16, Window((9, 9)), dtype="float16", group=16), "49 elements"),
    ],
)
def test_convolutions_it_does_not_take_have_a_reason(operation, reason):
    support = TritonDepthwise().supports(operation, cases.H200)
    assert not support
    assert reason in support.reason


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (conv((1, 16, 8, 8), 16, _SAME, dtype="float16", group=16), "DepthwisePointwise"),
        (cases.depthwise_pointwise((1, 16, 8, 8), 24, _SAME, dtype="float32"), "not float32"),
        (replace(_FUSED, constants=frozenset({1, 2, 4})), "input 3 is no constant"),
    ],
)
def test_pairs_it_does_not_take_have_a_reason(operation, reason):
    support = TritonDepthwisePointwise().supports(operation, cases.H200)
    assert not support
    assert reason in support.reason


@pytest.mark.parametrize("images", [1, 256])
@pytest.mark.parametrize(
    ("channels", "size", "outputs", "stride"),
    [(3, 20, 5, 1), (32, 112, 16, 1), (96, 112, 24, 2), (384, 14, 64, 1), (960, 7, 320, 1)],
)
def test_configurations_are_few_distinct_and_predicted(images, channels, size, outputs, stride):
    window = replace(_SAME, strides=(stride, stride))
    shape = (images, channels, size, size)
    alone = conv(shape, channels, window, dtype="float16", group=channels)
    pair = cases.depthwise_pointwise(shape, outputs, window)
    assert TritonDepthwise().supports(alone, cases.H200)
    assert TritonDepthwisePointwise().supports(pair, cases.H200)
    cases.check_configs(TritonDepthwise(), alone)
    cases.check_configs(TritonDepthwisePointwise(), pair)


def test_few_pixels_are_split_over_hidden_channels():
    operation = cases.depthwise_pointwise((1, 960, 7, 7), 320, _SAME)
    tactic = TritonDepthwisePointwise()
    config = tactic.configs(operation, cases.H200)[0]
    assert config["splits"] > 1
    assert tactic.workspace(operation, config, cases.H200) > 0
    assert tactic.state(operation, config, cases.H200) > 0
    one = {**config, "splits": 1}
    assert tactic.workspace(operation, one, cases.H200) == 0
    assert tactic.state(operation, one, cases.H200) == 0


def test_packed_weights():
    inputs = tensors(_FUSED)
    config = TritonDepthwisePointwise().configs(_FUSED, cases.H200)[0]
    _, taps, _, columns, bias, _ = TritonDepthwisePointwise().pack(_FUSED, config, inputs)
    assert taps.shape == (9, 16)
    assert taps[5].equal(inputs[1][:, 0, 1, 2])
    assert columns[:, :24].equal(inputs[3][:, :, 0, 0].t())
    assert not columns[:, 24:].any()
    assert bias.dtype is torch.float32
