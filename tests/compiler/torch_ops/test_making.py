"""Tensors made from numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.torch_ops.calling import SEED, ours
from peregrine.errors import Unsupported


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint64, torch.bool, torch.float8_e5m2])
def test_a_constant_of_a_shape_has_every_type(dtype):
    value = torch.tensor([1.0]).to(dtype)
    actual = ours("ConstantOfShape", 20, [2, 0, 3], value=value)
    assert actual.shape == (2, 0, 3)
    full = ours("ConstantOfShape", 20, [2, 3], value=value)
    assert full.astype("f4").sum() == 6


def test_a_constant_of_a_shape_is_zero_float32_by_default():
    np.testing.assert_array_equal(ours("ConstantOfShape", 9, [2]), np.zeros(2, "f4"))
    assert ours("ConstantOfShape", 9, []).shape == ()
    greatest = torch.tensor([-1]).view(torch.uint64)
    assert ours("ConstantOfShape", 9, [1], value=greatest)[0] == 2**64 - 1


def test_constants():
    assert ours("Constant", 13, value_float=1.5) == np.float32(1.5)
    np.testing.assert_array_equal(ours("Constant", 13, value_ints=(1, 2)), [1, 2])
    np.testing.assert_array_equal(ours("Constant", 13, value=torch.eye(2)), np.eye(2))
    with pytest.raises(Unsupported, match="value_string"):
        ours("Constant", 13, value_string="a")


@pytest.mark.parametrize(
    ("start", "limit", "delta", "dtype"),
    [
        (0, 10, 3, "int64"),
        (10, -3, -4, "int32"),
        (5, 5, 1, "int16"),
        (5, 0, 1, "int64"),
        (1.0, 2.0, 0.3, "float64"),
        (1.0, -1.0, -0.25, "float32"),
        (0.0, 2.0, 0.25, "float16"),
        (2**53 + 1, 2**53 + 4, 1, "int64"),
    ],
)
def test_ranges(start, limit, delta, dtype):
    given = [np.array(x, dtype) for x in (start, limit, delta)]
    actual = ours("Range", 27, *given)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, np.arange(start, limit, delta).astype(dtype), rtol=1e-6)


@pytest.mark.parametrize("k", [-5, -1, 0, 2, 7])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "bool", "int64"])
def test_diagonals_and_triangles(k, dtype):
    x = (np.random.default_rng(SEED).random((2, 4, 5)) * 9).astype(dtype)
    for upper, function in ((1, np.triu), (0, np.tril)):
        actual = ours("Trilu", 14, x, np.array(k), upper=upper)
        np.testing.assert_array_equal(actual, function(x, k))
    eye = ours("EyeLike", 22, x[0], k=k)
    np.testing.assert_array_equal(eye, np.eye(4, 5, k, dtype))
    assert eye.dtype == dtype
    assert ours("EyeLike", 22, x[0], dtype=11).dtype == np.float64


@pytest.mark.parametrize("dtype", ["float32", "uint16", "bool", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis, dtype):
    index = np.array([[0, 3, -1], [4, -5, 9]])
    off, on = np.array([0, 1], dtype)
    actual = ours("OneHot", 11, index, np.array(4.0, "f4"), np.array([off, on]), axis=axis)
    expected = np.full((2, 3, 4), off)
    for (i, j), value in np.ndenumerate(index):
        if -4 <= value < 4:
            expected[i, j, value] = on
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, np.moveaxis(expected, -1, axis))
