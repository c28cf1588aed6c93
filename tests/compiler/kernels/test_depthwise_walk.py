"""Depthwise convolutions whose lanes walk down the image, against float64."""

from __future__ import annotations

import random

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import IDENTITY, RELU, TOLERANCE, activation, conv, tensors
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics.triton_depthwise_walk import TritonDepthwiseWalk

_SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
_HALF = Window((3, 3), (2, 2), (1, 1, 1, 1))
_FIVE = Window((5, 5), (1, 1), (2, 2, 2, 2))
_CLIP = activation(ActivationKind.CLIP)


def _error(operation: Operation, **config: int) -> float:
    """Of one configuration, by default one that cuts neither columns nor rows evenly."""
    inputs = tensors(operation, cases.DEVICE.name)
    truth = cases.reference(operation, inputs)[0]
    config = {"columns": 4, "vector": 4, "rows": 4, "warps": 1, "pdl": False} | config
    (y,) = cases.run(TritonDepthwiseWalk(), operation, config, inputs)
    return cases.relative_error(y, truth)


@pytest.mark.parametrize(
    ("window", "dtype"),
    [
        (_SAME, "float16"),
        (_HALF, "bfloat16"),
        (_SAME, "float32"),
        (_FIVE, "float16"),
        (Window((5, 5), (2, 2), (2, 2, 2, 2)), "float16"),
        (Window((3, 3), (1, 1)), "float16"),
        (Window((3, 5), (2, 1), (0, 1, 1, 0)), "float16"),
        (Window((4, 3), (3, 2), (2, 0, 1, 2)), "bfloat16"),
        (Window((2, 2), (2, 2), (1, 1, 1, 1)), "float16"),
        (Window((1, 7), (1, 1), (0, 3, 0, 3)), "float16"),
    ],
)
def test_any_window(window, dtype):
    operation = conv((2, 24, 9, 10), 24, window, dtype=dtype, group=24, slice_of=40)
    assert _error(operation) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [_SAME, _HALF])
@pytest.mark.parametrize(
    ("columns", "vector", "rows", "warps"),
    [(1, 8, 1, 1), (2, 2, 2, 1), (3, 8, 13, 1), (5, 4, 6, 4), (7, 4, 13, 4), (7, 2, 20, 1)],
)
def test_strips_and_parts_of_any_size(window, columns, vector, rows, warps):
    operation = conv((3, 24, 13, 11), 24, window, dtype="float16", group=24, bias=False)
    found = _error(operation, columns=columns, vector=vector, rows=rows, warps=warps)
    assert found < TOLERANCE["float16"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_smaller_than_their_window(size):
    for window in (_SAME, _FIVE):
        operation = conv((5, 16, size, size), 16, window, dtype="float16", group=16)
        assert _error(operation, columns=1, rows=2) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    "kind",
    [IDENTITY, RELU, _CLIP, activation(ActivationKind.HARD_SWISH), activation(ActivationKind.SILU)],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_any_activation(kind, dtype):
    operation = conv((1, 16, 6, 8), 16, _SAME, dtype=dtype, group=16, activation=kind)
    assert _error(operation) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", [RELU, _CLIP])
def test_nan_and_infinities_go_through(kind):
    operation = conv((1, 16, 6, 8), 16, _SAME, dtype="float16", group=16, activation=kind)
    inputs = tensors(operation, cases.DEVICE.name)
    inputs[0][0, 3, 2, 2] = float("nan")
    inputs[0][0, 5, 4, 4] = float("inf")
    truth = cases.reference(operation, inputs)[0].to(torch.float16)
    config = {"columns": 4, "vector": 4, "rows": 4, "warps": 1, "pdl": False}
    (y,) = cases.run(TritonDepthwiseWalk(), operation, config, inputs)
    assert y.isnan().equal(truth.isnan())
    assert y.isnan().sum() >= 9
    assert torch.allclose(y.float(), truth.float(), atol=5e-3, rtol=5e-3, equal_nan=True)


def test_rounding_to_another_dtype():
    for dtype, output in (("float16", "float32"), ("float32", "float16")):
        operation = conv((1, 16, 6, 8), 16, _SAME, dtype=dtype, group=16, output_dtype=output)
        assert _error(operation) < TOLERANCE[output]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
def test_odd_sizes_on_a_gpu(seed):
    print("seed", seed)
    chance = random.Random(seed)
    dtype = chance.choice(["float16", "bfloat16", "float32"])
    window = chance.choice([_SAME, _HALF, _FIVE])
    channels = 2 * chance.randint(8, 150)
    images, _, height, width = cases.odd_shape(chance)
    operation = conv(
        (8 * images, channels, height, width),
        channels,
        window,
        dtype=dtype,
        group=channels,
        activation=chance.choice([IDENTITY, RELU, _CLIP]),
        slice_of=channels + 2 * chance.randint(0, 5),
    )
    assert cases.worst(TritonDepthwiseWalk(), operation, seed=seed) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [
        (32, 112, 3, 1),
        (96, 112, 3, 2),
        (144, 56, 3, 1),
        (144, 56, 3, 2),
        (192, 28, 3, 1),
        (192, 28, 3, 2),
        (384, 14, 3, 1),
        (576, 14, 3, 2),
        (960, 7, 3, 1),
        (144, 56, 5, 2),
        (240, 28, 5, 1),
        (672, 14, 5, 1),
        (672, 14, 5, 2),
        (1152, 7, 5, 1),
    ],
)
def test_layers_of_networks_on_a_gpu(channels, size, kernel, stride):
    """MobileNetV2's and EfficientNet-Lite0's, every configuration."""
    pad = kernel // 2
    window = Window((kernel, kernel), (stride, stride), (pad, pad, pad, pad))
    operation = conv(
        (64, channels, size, size),
        channels,
        window,
        dtype="float16",
        group=channels,
        activation=_CLIP,
    )
    assert cases.worst(TritonDepthwiseWalk(), operation) < TOLERANCE["float16"]
