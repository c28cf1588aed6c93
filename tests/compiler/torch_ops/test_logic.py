"""Comparisons and choices against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours

COMPARISONS = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_integers_over_their_whole_range(name, dtype):
    random = np.random.default_rng(SEED)
    a = integers(random, dtype, 300)
    b = np.where(random.random(300) < 0.3, a, integers(random, dtype, 300))
    actual = ours(name, 19, a, b)
    assert actual.dtype == np.bool_
    np.testing.assert_array_equal(actual, COMPARISONS[name](a, b))


@pytest.mark.parametrize("name", COMPARISONS)
def test_nothing_compares_with_nan(name):
    x = np.array([np.nan, 1.0, np.inf], "f4")
    np.testing.assert_array_equal(ours(name, 19, x, x), COMPARISONS[name](x, x))


@pytest.mark.parametrize("dtype", ["bool", "uint16", "uint64", "float16", "int64"])
def test_where_broadcasts_three_ways(dtype):
    random = np.random.default_rng(SEED)
    condition = random.random((3, 1, 1)) < 0.5
    x, y = (random.random(shape) * 100 for shape in ((4, 1), (5,)))
    x, y = x.astype(dtype), y.astype(dtype)
    actual = ours("Where", 16, condition, x, y)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, np.where(condition, x, y))
