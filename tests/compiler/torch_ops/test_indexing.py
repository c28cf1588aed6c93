"""Gathers and scatters against loops of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours
from peregrine.errors import Unsupported

DTYPES = ["float32", "float16", "uint16", "uint64", "bool", "int8"]


def values(random, *shape, dtype="float32"):
    return (random.random(shape) * 9 - (0 if dtype[0] == "u" else 4)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)])
def test_gather(shape, axis, dtype):
    random = np.random.default_rng(SEED)
    x = values(random, 4, 5, 6, dtype=dtype)
    index = random.integers(-4, 4, shape)
    for kind in (np.int64, np.int32):
        actual = ours("Gather", 13, x, np.asarray(index, kind), axis=axis)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, np.take(x, index, axis))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_and_scatter_elements_are_inverse(axis):
    random = np.random.default_rng(SEED)
    x = values(random, 4, 5, 6)
    order = np.argsort(random.random(x.shape), axis=axis)
    index = order - np.where(random.random(x.shape) < 0.5, x.shape[axis], 0)  # Some negative.
    gathered = ours("GatherElements", 13, x, index, axis=axis)
    np.testing.assert_array_equal(gathered, np.take_along_axis(x, order, axis))
    restored = ours("ScatterElements", 18, np.zeros_like(x), index, gathered, axis=axis)
    np.testing.assert_array_equal(restored, x)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_gather_nd(batch, depth):
    random = np.random.default_rng(SEED)
    x = values(random, 2, 3, 4, 5)
    index = random.integers(-3, 3, (*x.shape[:batch], 6, depth))
    for d in range(depth):
        index[..., d] %= x.shape[batch + d]
    negative = index.copy()
    negative[..., 0] -= x.shape[batch]
    expected = np.empty((*x.shape[:batch], 6, *x.shape[batch + depth :]), x.dtype)
    for place in np.ndindex(*x.shape[:batch], 6):
        expected[place] = x[(*place[:batch], *index[place])]
    for given in (index, negative):
        actual = ours("GatherND", 13, x, given, batch_dims=batch)
        np.testing.assert_array_equal(actual, expected)


REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "uint32", "uint64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatters_reduce_what_lies_in_one_place(reduction, dtype):
    random = np.random.default_rng(SEED)
    whole = np.dtype(dtype).kind in "iu"
    x = integers(random, dtype, 4, 5) if whole else values(random, 4, 5, dtype=dtype)
    updates = integers(random, dtype, 7, 5) if whole else values(random, 7, 5, dtype=dtype)
    index = random.integers(0, 4, (7, 5))
    expected, rows = x.copy(), x.copy()
    for i, j in np.ndindex(7, 5):
        at = (index[i, j], j)
        expected[at] = REDUCTIONS[reduction](expected[at], updates[i, j])
    for i in range(7):
        rows[index[i, 0]] = REDUCTIONS[reduction](rows[index[i, 0]], updates[i])
    elements = ours("ScatterElements", 18, x, index, updates, reduction=reduction)
    np.testing.assert_allclose(elements, expected, rtol=1e-5 if not whole else 0)
    assert elements.dtype == dtype
    slices = ours("ScatterND", 18, x, index[:, :1], updates, reduction=reduction)
    np.testing.assert_allclose(slices, rows, rtol=1e-5 if not whole else 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatters_replace(dtype):
    random = np.random.default_rng(SEED)
    x, updates = values(random, 4, 5, 3, dtype=dtype), values(random, 2, 3, dtype=dtype)
    index = np.array([[3, -1], [0, 2]])
    expected = x.copy()
    expected[3, 4], expected[0, 2] = updates
    for opset in (11, 18):
        np.testing.assert_array_equal(ours("ScatterND", opset, x, index, updates), expected)
    one = np.array([[1, -2]])
    flat = np.zeros((1, 5), dtype)
    changed = flat.copy()
    changed[0, 1], changed[0, 3] = updates[0, :2]
    for name, opset in (("Scatter", 9), ("ScatterElements", 13)):
        actual = ours(name, opset, flat, one, updates[:1, :2], axis=1)
        np.testing.assert_array_equal(actual, changed)


def test_an_unknown_reduction_is_refused():
    x, index = np.ones(3, "f4"), np.zeros(1, np.int64)
    with pytest.raises(Unsupported, match="median"):
        ours("ScatterElements", 18, x, index, x[:1], reduction="median")


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_is_written_from_each_samples_place_on(mode):
    random = np.random.default_rng(SEED)
    cache, update = values(random, 3, 2, 5, 4), values(random, 3, 2, 2, 4)
    start = np.array([0, 3, 4 if mode == "circular" else 2])
    expected = cache.copy()
    for sample in range(3):
        for step in range(2):
            expected[sample, :, (start[sample] + step) % 5] = update[sample, :, step]
    np.testing.assert_array_equal(
        ours("TensorScatter", 24, cache, update, start, mode=mode), expected
    )
    first = cache.copy()
    first[:, :, :2] = update
    np.testing.assert_array_equal(ours("TensorScatter", 24, cache, update), first)
