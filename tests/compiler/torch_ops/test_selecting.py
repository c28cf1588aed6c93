"""Outputs whose sizes depend on values, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, ours

DTYPES = ["float32", "float16", "uint16", "uint64", "int8"]


def some(dtype, *shape):
    return np.random.default_rng(SEED).integers(0, 4, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_where_it_is_not_zero(dtype):
    x = some(dtype, 3, 4, 2)
    np.testing.assert_array_equal(ours("NonZero", 13, x), np.array(np.nonzero(x)))


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_a_short_condition_selects_from_the_front(axis, dtype):
    x = some(dtype, 3, 4)
    condition = np.array([False, True, True])
    given = {} if axis is None else {"axis": axis}
    actual = ours("Compress", 11, x, condition, **given)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, np.compress(condition, x, axis))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("in_order", [0, 1])
def test_distinct_values(axis, in_order, dtype):
    x = some(dtype, 6, 2, 2) // 2
    given = {} if axis is None else {"axis": axis}
    values, first, inverse, counts = ours("Unique", 11, x, outputs=4, sorted=in_order, **given)
    wanted, where, _, how_many = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    order = np.arange(len(where)) if in_order else np.argsort(where)
    np.testing.assert_array_equal(values, np.take(wanted, order, axis or 0))
    np.testing.assert_array_equal(first, where[order])
    np.testing.assert_array_equal(counts, how_many[order])
    flat = x.reshape(-1) if axis is None else x
    np.testing.assert_array_equal(np.take(values, inverse, axis or 0), flat)
    assert values.dtype == dtype
