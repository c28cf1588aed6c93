"""Reductions against numpy in float64: axes as an attribute and as an input, empty sets, ties."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours

REDUCTIONS = {
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt((x**2).sum(**k)),
    "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "ReduceMax": lambda x, **k: x.max(**k),
    "ReduceMean": lambda x, **k: x.mean(**k),
    "ReduceMin": lambda x, **k: x.min(**k),
    "ReduceProd": lambda x, **k: x.prod(**k),
    "ReduceSum": lambda x, **k: x.sum(**k),
    "ReduceSumSquare": lambda x, **k: (x**2).sum(**k),
}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, (1,), (-1, 0), (0, 1, 2)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_axes_are_an_attribute_and_later_an_input(name, axes, keepdims):
    x = np.random.default_rng(SEED).uniform(0.5, 1.5, (3, 4, 5))
    expected = REDUCTIONS[name](x, axis=axes, keepdims=bool(keepdims))
    attributes = {} if axes is None else {"axes": axes}
    older = ours(name, 11, x, keepdims=keepdims, **attributes)
    newer = ours(name, 20, x, None if axes is None else list(axes), keepdims=keepdims)
    assert older.shape == newer.shape == np.shape(expected)
    np.testing.assert_allclose(older, expected, rtol=1e-12)
    np.testing.assert_array_equal(newer, older)


def test_reduce_sum_takes_its_axes_as_an_input_from_13_on():
    x = np.random.default_rng(SEED).random((3, 4))
    np.testing.assert_allclose(ours("ReduceSum", 13, x, [1]), x.sum(1, keepdims=True))
    np.testing.assert_allclose(ours("ReduceMax", 13, x, axes=(1,)), x.max(1, keepdims=True))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_over_no_axes_each_element_is_reduced_on_its_own(name):
    x = np.random.default_rng(SEED).uniform(0.5, 1.5, (3, 4))
    expected = REDUCTIONS[name](x[..., None], axis=-1)
    for axes in (None, np.zeros(0, np.int64)):
        actual = ours(name, 18, x, axes, noop_with_empty_axes=1)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_scalar(name):
    x = np.array(1.5)
    np.testing.assert_allclose(ours(name, 18, x), REDUCTIONS[name](x), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ReduceL1", 0),
        ("ReduceL2", 0),
        ("ReduceLogSum", -np.inf),
        ("ReduceLogSumExp", -np.inf),
        ("ReduceMax", -np.inf),
        ("ReduceMin", np.inf),
        ("ReduceProd", 1),
        ("ReduceSum", 0),
        ("ReduceSumSquare", 0),
    ],
)
def test_the_empty_set(name, expected):
    actual = ours(name, 20, np.zeros((2, 0, 3), "f4"), [1])
    np.testing.assert_array_equal(actual, np.full((2, 1, 3), expected, "f4"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_integers_of_every_type(dtype):
    x = integers(np.random.default_rng(SEED), dtype, 4, 6)
    info = np.iinfo(dtype)
    for name, function in (("ReduceMax", np.max), ("ReduceMin", np.min)):
        actual = ours(name, 20, x, [1], keepdims=0)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, function(x, axis=1))
    nothing = np.zeros((2, 0), dtype)
    np.testing.assert_array_equal(ours("ReduceMax", 20, nothing, [1], keepdims=0), [info.min] * 2)
    np.testing.assert_array_equal(ours("ReduceMin", 20, nothing, [1], keepdims=0), [info.max] * 2)
    for name, function in (("ReduceSum", np.sum), ("ReduceProd", np.prod)):
        actual = ours(name, 18, x, [0], keepdims=0)
        np.testing.assert_array_equal(actual, function(x, axis=0, dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp"])
def test_sums_of_halves_are_kept_in_float32(name, dtype):
    x = np.random.default_rng(SEED).uniform(0, 1, (2, 4000)).astype(dtype)
    expected = REDUCTIONS[name](x.astype("f8"), axis=1)
    actual = ours(name, 18, x, [1], keepdims=0).astype("f8")
    np.testing.assert_allclose(actual, expected, rtol=float(ml_dtypes.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "float32"])
def test_where_the_extreme_lies_first_or_last(dtype):
    x = np.random.default_rng(SEED).integers(0, 4, (5, 7, 6)).astype(dtype)
    for axis in (0, 1, -1):
        for name, function in (("ArgMax", np.argmax), ("ArgMin", np.argmin)):
            first = ours(name, 13, x, axis=axis, keepdims=0)
            np.testing.assert_array_equal(first, function(x, axis=axis))
            assert first.dtype == np.int64
            last = ours(name, 13, x, axis=axis, keepdims=0, select_last_index=1)
            expected = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
            np.testing.assert_array_equal(last, expected)
    assert ours("ArgMax", 13, x, axis=1).shape == (5, 1, 6)


def test_the_extreme_is_the_first_nan():
    x = np.array([1, np.nan, 3, np.nan], "f4")
    assert ours("ArgMax", 13, x, keepdims=0) == np.argmax(x) == 1
    assert ours("ArgMin", 13, x, keepdims=0) == np.argmin(x) == 1
