"""The convolutions of images against float64: every configuration, odd sizes."""

from __future__ import annotations

import random

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import IDENTITY, RELU, TOLERANCE, activation, conv, tensors
from peregrine.compiler.operation import TensorType
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics.triton_stem import TritonConvMaxPool, TritonStem

_SEVEN = Window((7, 7), (2, 2), (3, 3, 3, 3))
_SAME = Window((3, 3), (2, 2), (1, 1, 1, 1))
_POOL = Window((3, 3), (2, 2))
_PADDED_POOL = Window((3, 3), (2, 2), (1, 1, 1, 1))


@pytest.mark.parametrize("source", ["float32", "float16", "channels last"])
def test_any_layout_and_dtype_of_the_image(source):
    operation = conv((2, 3, 9, 13), 20, _SEVEN, dtype="float16", slice_of=24)
    operation = cases.with_input(operation, _image(operation, source))
    assert cases.worst(TritonStem(), operation, most=3) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    ("channels", "window", "dtype"),
    [
        (3, Window((7, 7), (2, 2)), "float16"),
        (3, _SAME, "bfloat16"),
        (1, Window((5, 5), (1, 1), (2, 2, 2, 2)), "float16"),
        (4, Window((3, 3), (1, 1), (1, 1, 1, 1)), "float16"),
        (3, Window((3, 3), (2, 2), (0, 0, 1, 1)), "float16"),
        (2, Window((4, 6), (3, 2), (1, 2, 0, 1)), "float16"),
    ],
)
def test_any_window_and_number_of_channels(channels, window, dtype):
    operation = conv((1, channels, 9, 11), 8, window, dtype=dtype, bias=False)
    operation = cases.with_input(operation, _image(operation, "float32"))
    assert cases.worst(TritonStem(), operation, most=3) < TOLERANCE[dtype]


def test_outputs_in_several_blocks():
    operation = conv((1, 3, 9, 12), 160, _SAME, dtype="float16")
    assert cases.worst(TritonStem(), operation, most=3) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    ("pool", "up"), [(_POOL, False), (_POOL, True), (_PADDED_POOL, False), (_PADDED_POOL, True)]
)
@pytest.mark.parametrize("shape", [(2, 3, 15, 18), (1, 3, 11, 12)])
def test_a_pooling_behind_it(shape, pool, up):
    operation = cases.conv_max_pool(conv(shape, 16, _SEVEN, dtype="float16"), pool, up=up)
    operation = cases.with_input(operation, _image(operation, "float32"))
    assert cases.worst(TritonConvMaxPool(), operation, most=3) < TOLERANCE["float16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "activation", [IDENTITY, RELU, activation(ActivationKind.GELU)], ids=lambda a: str(a.kind)
)
def test_a_pooling_behind_any_activation(activation, dtype):
    convolution = conv((1, 3, 11, 13), 8, _SAME, dtype=dtype, activation=activation)
    operation = cases.conv_max_pool(convolution, _PADDED_POOL)
    assert cases.worst(TritonConvMaxPool(), operation, most=2) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [_SAME, _SEVEN])
@pytest.mark.parametrize("pooled", [False, True])
def test_nan_goes_where_its_windows_are(pooled, window):
    operation = conv((1, 3, 15, 15), 8, window, dtype="float16")
    tactic = TritonStem()
    if pooled:
        operation, tactic = cases.conv_max_pool(operation, _PADDED_POOL), TritonConvMaxPool()
    inputs = tensors(operation, cases.DEVICE.name)
    inputs[0][0, 1, 6, 7] = float("nan")
    expected = cases.reference(operation, inputs)[0].isnan()
    assert 0 < expected.sum() < expected.numel()
    for config in tactic.configs(operation, cases.DEVICE)[::2]:
        assert cases.run(tactic, operation, config, inputs)[0].isnan().equal(expected)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_odd_sizes_on_a_gpu(seed):
    print("seed", seed)
    chance = random.Random(seed)
    dtype = chance.choice(["float16", "bfloat16"])
    kernel = chance.choice([3, 5, 7])
    pads = tuple(chance.randint(0, kernel // 2) for _ in range(4))
    window = Window((kernel, kernel), (2, 2), pads)
    shape = cases.odd_shape(chance, channels=3)
    operation = conv(shape, chance.randint(1, 130), window, dtype=dtype)
    source = chance.choice(["float32", "float16", "channels last"])
    operation = cases.with_input(operation, _image(operation, source))
    assert cases.worst(TritonStem(), operation, seed=seed) < TOLERANCE[dtype]
    pooled = cases.conv_max_pool(operation, chance.choice([_POOL, _PADDED_POOL]), up=seed % 2 == 0)
    assert cases.worst(TritonConvMaxPool(), pooled, seed=seed) < TOLERANCE[dtype]


def _image(operation, source) -> TensorType:
    kind = operation.inputs[0]
    if source == "channels last":
        return kind
    return TensorType.contiguous(source, kind.shape)
