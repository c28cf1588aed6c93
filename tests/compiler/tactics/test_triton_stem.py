"""What the tactics of images' convolutions take, and how they cut them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import conv
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.triton_stem import Geometry, TritonConvMaxPool, TritonStem

_SEVEN = Window((7, 7), (2, 2), (3, 3, 3, 3))
_POOL = Window((3, 3), (2, 2), (1, 1, 1, 1))


def _stem(shape=(1, 3, 32, 32), channels=16, window=_SEVEN, **options) -> Operation:
    return conv(shape, channels, window, dtype="float16", **options)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (cases.pool_linear((1, 3, 4, 4), 8), "peregrine.Conv"),
        (_stem((1, 8, 32, 32)), "at most 4 channels"),
        (_stem((1, 4, 32, 32), group=4), "dense"),
        (_stem(residual=True), "adds no Z"),
        (_stem(window=Window((3, 3), dilations=(2, 2))), "dilated"),
        (_stem(window=Window((11, 11), (4, 4))), "elements"),
        (conv((1, 3, 32, 32), 16, _SEVEN, dtype="float32"), "W as float16, bfloat16"),
        (replace(_stem(), constants=frozenset({2})), "no constant"),
        (
            replace(_stem(), outputs=(TensorType.contiguous("float16", (1, 16, 16, 16)),)),
            "not innermost",
        ),
        (_stem((256, 3, 4096, 4096), 64), "2^31"),
    ],
)
def test_what_it_does_not_take_has_a_reason(operation, reason):
    support = TritonStem().supports(operation, cases.H200)
    assert not support
    assert reason in support.reason


@pytest.mark.parametrize(
    "pool", [Window((2, 2), (2, 2)), Window((3, 3), (1, 1)), Window((3, 3), (2, 2), (), (2, 2))]
)
def test_poolings_it_does_not_take(pool):
    operation = replace(
        cases.conv_max_pool(_stem(), _POOL),
        attributes={
            **_stem().attributes,
            **replace(pool, pads=(0, 0, 0, 0)).attributes("pool_"),
        },
    )
    assert "not 3x3" in TritonConvMaxPool().supports(operation, cases.H200).reason


@pytest.mark.parametrize(
    ("window", "channels", "depth"),
    [
        (_SEVEN, 3, 192),  # 4 pairs of rows, 4 + 2 (row, channel) pairs, 8 columns
        (Window((3, 3), (2, 2), (1, 1, 1, 1)), 3, 64),  # 2 pairs of rows, 8, 4 columns
        (Window((3, 3), (1, 1), (1, 1, 1, 1)), 3, 48),
        (Window((3, 3), (1, 1), (1, 1, 1, 1)), 1, 48),
    ],
)
def test_the_inner_dimension(window, channels, depth):
    assert Geometry.of(window, channels).depth == depth


@pytest.mark.parametrize("kernel", [(7, 7), (3, 3), (4, 6), (1, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_packed_weights_hold_each_weight_once(kernel, strides, channels):
    geometry = Geometry.of(Window(kernel, strides, (1, 1, 1, 1)), channels)
    weights = torch.arange(1.0, 1 + 5 * channels * kernel[0] * kernel[1])
    packed = geometry.pack(weights.reshape(5, channels, *kernel), 16)
    assert packed.shape == (geometry.depth, 16)
    assert packed[packed != 0].sort().values.equal(weights)
    assert not packed[:, 5:].any()


def test_a_weight_lies_where_the_kernel_multiplies_it():
    """Group, row of the group and channel, column, as `kernels.stem` says."""
    weights = torch.zeros(1, 3, 7, 7)
    weights[0, 2, 5, 4] = 1.0
    geometry = Geometry.of(_SEVEN, 3)
    packed = geometry.pack(weights, 16).reshape(geometry.groups, -1, geometry.width, 16)
    # Windows start a column before the convolution's, at a multiple of the stride.
    assert packed.nonzero().tolist() == [[2, 1 * 3 + 2, 1 + 4, 0]]


@pytest.mark.parametrize("images", [1, 256])
@pytest.mark.parametrize("channels", [32, 64, 96])
def test_configurations_are_few_distinct_and_predicted(images, channels):
    stem = _stem((images, 3, 224, 224), channels)
    for tactic, operation in (
        (TritonStem(), stem),
        (TritonConvMaxPool(), cases.conv_max_pool(stem, _POOL)),
    ):
        assert tactic.supports(operation, cases.H200)
        cases.check_configs(tactic, operation)


def test_one_image_fills_the_device():
    operation = _stem((1, 3, 224, 224), 64)
    best = min(
        TritonStem().configs(operation, cases.H200),
        key=lambda config: TritonStem().predict(operation, config, cases.H200),
    )
    strips = -(-112 // best["block_m"])
    assert strips * -(-112 // best["rows"]) >= cases.H200.multiprocessors
