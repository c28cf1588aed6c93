"""Which tensors are rows of channels at equal distances, and where these lie."""

from __future__ import annotations

import pytest
import torch

from compiler.tactics.operations import image, tensors
from peregrine.compiler.operation import (
    Operation,
    TensorType,
    channels_last_strides,
    contiguous_strides,
)
from peregrine.compiler.tactics._matrix import Matrix


def test_a_matrix_of_an_image_reads_the_elements_it_should():
    for kind in (image("float32", (2, 5, 3, 4)), image("float32", (2, 5, 3, 4), 9),
                 image("float32", (3, 5, 1, 1), 9), image("float32", (1, 1, 4, 2))):  # fmt: skip
        operation = Operation("ai.onnx.Relu", {}, (kind,), (kind,))
        (x,) = tensors(operation)
        matrix = Matrix.of(kind, image=True)
        assert matrix is not None
        assert x is not None
        assert torch.equal(matrix.view(x), x.permute(0, 2, 3, 1).reshape(-1, kind.shape[1]))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((4, 6), (1, 4)),  # transposed
        ((4, 6), (0, 1)),  # the same row again and again
        ((4, 6), (3, 1)),  # rows that overlap
        ((2, 3, 6), (100, 6, 1)),  # rows at unequal distances
    ],
)
def test_tensors_that_are_no_rows_at_equal_distances(shape, strides):
    assert Matrix.of(TensorType("float32", shape, strides), image=False) is None


def test_tensors_of_unknown_place_are_refused():
    assert Matrix.of(TensorType("float32", (4, 6), None), image=False) is None
    assert Matrix.of(TensorType("float32", None, None), image=False) is None


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 8, 5, 6), channels_last_strides((2, 8, 5, 6)), 8),
        ((2, 8, 5, 6), channels_last_strides((2, 20, 5, 6)), 20),
        ((2, 8, 5, 6), contiguous_strides((2, 8, 5, 6)), None),
        ((2, 1, 5, 6), contiguous_strides((2, 1, 5, 6)), 1),
        ((4, 8, 1, 1), (24, 1, 99, 77), 24),
        ((2, 8, 5, 6), (1000, 1, 48, 8), None),
    ],
)
def test_the_distance_of_pixels(shape, strides, expected):
    matrix = Matrix.of(TensorType("float16", shape, strides), image=True)
    assert (matrix and matrix.pitch) == expected


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((3, 4, 10), (40, 10, 1), 10),
        ((3, 4, 10), (80, 10, 1), None),
        ((1, 10), (5, 1), 10),
        ((7, 10), (1, 7), None),
        ((1, 1, 4, 5), (20, 20, 5, 1), 5),
        ((2, 3, 4, 5), (60, 20, 5, 1), 5),
    ],
)
def test_the_distance_of_rows(shape, strides, expected):
    matrix = Matrix.of(TensorType("float16", shape, strides), image=False)
    assert (matrix and matrix.pitch) == expected
