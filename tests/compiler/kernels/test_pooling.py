"""Poolings against float64."""

from __future__ import annotations

import random

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import RELU, TOLERANCE, image, tensors
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.triton_pooling import (
    TritonGlobalPool,
    TritonMaxPool,
    TritonPoolLinear,
)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (2, 2)),
        Window((3, 3), (2, 2), (1, 1, 1, 1)),
        Window((2, 2), (2, 2)),
        Window((5, 3), (1, 2), (2, 1, 2, 0)),
        Window((3, 3), (1, 1), (0, 0, 0, 0), (2, 2)),
    ],
)
def test_maxima_are_exact(window, up):
    operation = cases.max_pool((2, 20, 7, 8), window, up=up, slice_of=24)
    assert cases.worst(TritonMaxPool(), operation, cases.max_pooled(operation), most=2) == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maxima_of_other_dtypes(dtype):
    operation = cases.max_pool((1, 40, 9, 11), Window((3, 3), (2, 2)), dtype=dtype)
    assert cases.worst(TritonMaxPool(), operation, cases.max_pooled(operation), most=1) == 0.0


def test_the_largest_is_nan_where_a_window_holds_one():
    operation = cases.max_pool((1, 8, 9, 9), Window((3, 3), (2, 2), (1, 1, 1, 1)))
    inputs = tensors(operation, cases.DEVICE.name)
    inputs[0][0, 3, 3, 4] = float("nan")
    config = TritonMaxPool().configs(operation, cases.DEVICE)[0]
    (y,) = cases.run(TritonMaxPool(), operation, config, inputs)
    assert y.isnan().equal(cases.max_pooled(operation)(inputs).isnan())
    assert y.isnan().sum() == 2


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 40, 9, 11), "float16"), ((1, 130, 1, 1), "bfloat16"), ((3, 20, 5, 4), "float32")],
)
def test_means(shape, dtype):
    operation = Operation(
        "ai.onnx.GlobalAveragePool",
        {},
        (image(dtype, shape, shape[1] + 8),),
        (TensorType.contiguous(dtype, (*shape[:2], 1, 1)),),
        opset=1,
    )
    assert cases.worst(TritonGlobalPool(), operation, _means) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "outputs"), [((1, 520, 7, 7), 33), ((2, 70, 3, 5), 40), ((18, 136, 2, 3), 50)]
)
def test_means_and_a_classifier(shape, outputs, dtype):
    operation = cases.pool_linear(shape, outputs, dtype=dtype)
    assert cases.worst(TritonPoolLinear(), operation, most=4) < TOLERANCE[dtype]


def test_a_classifier_without_bias_with_an_activation():
    operation = cases.pool_linear((2, 40, 3, 3), 20, bias=False, activation=RELU)
    assert cases.worst(TritonPoolLinear(), operation, most=4) < TOLERANCE["float16"]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(6))
def test_odd_sizes_on_a_gpu(seed):
    print("seed", seed)
    chance = random.Random(seed)
    shape = cases.odd_shape(chance)
    dtype = chance.choice(["float16", "bfloat16"])
    window = chance.choice([Window((3, 3), (2, 2)), Window((3, 3), (2, 2), (1, 1, 1, 1))])
    operation = cases.max_pool(shape, window, dtype=dtype, up=seed % 2 == 0)
    assert cases.worst(TritonMaxPool(), operation, cases.max_pooled(operation), seed=seed) == 0.0
    images = chance.choice([1, 2, 40, 100])
    head = cases.pool_linear((images, *shape[1:]), chance.randint(1, 1100), dtype=dtype)
    assert cases.worst(TritonPoolLinear(), head, seed=seed) < TOLERANCE[dtype]


def _means(inputs):
    return inputs[0].double().mean((2, 3), keepdim=True)
