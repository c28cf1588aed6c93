"""Depthwise convolutions, alone and with a 1x1 convolution, against float64."""

from __future__ import annotations

import random

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import IDENTITY, RELU, TOLERANCE, activation, conv, tensors
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics.triton_depthwise import TritonDepthwise
from peregrine.compiler.tactics.triton_depthwise_pointwise import TritonDepthwisePointwise

_SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
_HALF = Window((3, 3), (2, 2), (1, 1, 1, 1))
_FIVE = Window((5, 5), (1, 1), (2, 2, 2, 2))
_CLIP = activation(ActivationKind.CLIP)


@pytest.mark.parametrize(
    ("window", "residual", "dtype"),
    [
        (_SAME, False, "float16"),
        (_HALF, False, "float16"),
        (_SAME, True, "bfloat16"),
        (Window((5, 5), (2, 2), (2, 2, 2, 2)), False, "float16"),
        (Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), False, "float32"),
        (Window((3, 5), (2, 1), (0, 1, 1, 0)), True, "float16"),
    ],
)
def test_any_window(window, residual, dtype):
    operation = conv(
        (2, 20, 6, 7), 20, window, dtype=dtype, group=20, residual=residual, slice_of=28
    )
    assert cases.worst(TritonDepthwise(), operation, most=3) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [_SAME, _HALF])
def test_programs_that_walk_down_the_rows(window):
    operation = conv((3, 20, 13, 5), 20, window, dtype="float16", group=20, bias=False)
    inputs = tensors(operation, cases.DEVICE.name)
    truth = cases.reference(operation, inputs)[0]
    base = TritonDepthwise().configs(operation, cases.DEVICE)[0]
    for rows in (1, 4, 20):
        config = {**base, "block_m": 16, "tile_w": 0, "block_c": 32, "rows": rows}
        (y,) = cases.run(TritonDepthwise(), operation, config, inputs)
        assert cases.relative_error(y, truth) < TOLERANCE["float16"]


@pytest.mark.parametrize("tile_w", [0, 4, 8])
def test_tiles_of_pixels(tile_w):
    operation = conv((2, 16, 9, 11), 16, _HALF, dtype="float16", group=16)
    inputs = tensors(operation, cases.DEVICE.name)
    truth = cases.reference(operation, inputs)[0]
    base = TritonDepthwise().configs(operation, cases.DEVICE)[0]
    config = {**base, "block_m": 16, "tile_w": tile_w, "block_c": 16, "rows": 0}
    (y,) = cases.run(TritonDepthwise(), operation, config, inputs)
    assert cases.relative_error(y, truth) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    ("shape", "outputs", "window", "residual", "dtype"),
    [
        ((1, 72, 5, 7), 40, _SAME, True, "float16"),
        ((2, 40, 7, 8), 24, _HALF, False, "bfloat16"),
        ((1, 24, 5, 6), 70, _FIVE, True, "float16"),
    ],
)
def test_with_a_1x1_convolution(shape, outputs, window, residual, dtype):
    operation = cases.depthwise_pointwise(
        shape, outputs, window, dtype=dtype, residual=residual, inner=_CLIP, slice_of=120
    )
    assert cases.worst(TritonDepthwisePointwise(), operation, most=4) < 1.5 * TOLERANCE[dtype]


def test_many_outputs_in_several_tiles():
    operation = cases.depthwise_pointwise((1, 32, 6, 6), 320, _SAME, bias=False, activation=RELU)
    assert cases.worst(TritonDepthwisePointwise(), operation, most=4) < TOLERANCE["float16"]


def test_hidden_channels_split_over_programs_leave_their_counters_zero():
    operation = cases.depthwise_pointwise((1, 150, 5, 6), 20, _SAME, residual=True)
    tactic = TritonDepthwisePointwise()
    inputs = tensors(operation, cases.DEVICE.name)
    truth = cases.reference(operation, inputs)[0]
    base = tactic.configs(operation, cases.DEVICE)[0]
    for splits in (2, 3, 5):
        config = {**base, "block_m": 16, "tile_w": 0, "block_o": 16, "block_c": 32}
        config |= {"splits": splits, "warps": 4}
        first, second = cases.run(tactic, operation, config, inputs, times=2)
        assert first.equal(second)
        assert cases.relative_error(first, truth) < TOLERANCE["float16"]


@pytest.mark.parametrize("inner", [IDENTITY, activation(ActivationKind.HARD_SWISH)])
def test_any_activation_in_the_middle(inner):
    operation = cases.depthwise_pointwise((1, 24, 6, 7), 16, _SAME, inner=inner, activation=_CLIP)
    assert cases.worst(TritonDepthwisePointwise(), operation, most=2) < TOLERANCE["float16"]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
def test_odd_sizes_on_a_gpu(seed):
    print("seed", seed)
    chance = random.Random(seed)
    dtype = chance.choice(["float16", "bfloat16"])
    window = chance.choice([_SAME, _HALF, _FIVE])
    shape = cases.odd_shape(chance)
    channels = shape[1]
    wide = channels + 8 * chance.randint(0, 2)
    operation = conv(
        shape, channels, window, dtype=dtype, group=channels, residual=seed % 2 == 0, slice_of=wide
    )
    assert cases.worst(TritonDepthwise(), operation, seed=seed) < TOLERANCE[dtype]
    outputs = chance.randint(1, channels)
    fused = cases.depthwise_pointwise(
        shape, outputs, window, dtype=dtype, residual=seed % 2 == 0, inner=_CLIP, slice_of=wide
    )
    found = cases.worst(TritonDepthwisePointwise(), fused, seed=seed)
    assert found < 1.5 * TOLERANCE[dtype]
