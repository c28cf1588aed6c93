"""Functions of one element against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours

FUNCTIONS = {
    "Acos": np.arccos,
    "Asinh": np.arcsinh,
    "Ceil": np.ceil,
    "Cosh": np.cosh,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Reciprocal": np.reciprocal,
    "Round": np.round,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_nearest_number_or_its_neighbour(name, dtype):
    dtype = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(ml_dtypes.bfloat16)
    x = np.random.default_rng(SEED).uniform(0.05, 0.95, (7, 11)).astype(dtype)
    actual = ours(name, 22, x)
    assert actual.dtype == dtype
    expected = FUNCTIONS[name](x.astype("f8"))
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(actual.astype("f8"), expected, rtol=4 * eps)


def test_halves_round_to_the_even_neighbour():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999, -0.2], "f4")
    np.testing.assert_array_equal(ours("Round", 11, x), [-2, -2, 0, 0, 2, 2, 2, 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_signs_of_integers(dtype):
    x = integers(np.random.default_rng(SEED), dtype, 100)
    x[:3] = [0, 1, np.iinfo(dtype).max]
    np.testing.assert_array_equal(ours("Sign", 13, x), np.sign(x))
    np.testing.assert_array_equal(ours("Abs", 13, x), np.abs(x))


def test_the_sign_of_nan_is_nan():
    x = np.array([np.nan, -3, 0, 2], "f4")
    np.testing.assert_array_equal(ours("Sign", 13, x), np.sign(x))


def test_infinities_are_told_by_their_sign():
    x = np.array([np.inf, -np.inf, np.nan, 1], "f4")
    np.testing.assert_array_equal(ours("IsInf", 20, x), [True, True, False, False])
    positive = ours("IsInf", 20, x, detect_negative=0)
    np.testing.assert_array_equal(positive, [True, False, False, False])
    negative = ours("IsInf", 20, x, detect_positive=0)
    np.testing.assert_array_equal(negative, [False, True, False, False])
    np.testing.assert_array_equal(ours("IsNaN", 20, x), [False, False, True, False])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "int8", "float32", "float16"])
@pytest.mark.parametrize(("low", "high"), [(3, 9), (None, 9), (3, None), (None, None), (9, 3)])
def test_clip(dtype, low, high):
    x = np.arange(12).astype(dtype)
    bounds = [None if bound is None else np.array(bound, dtype) for bound in (low, high)]
    expected = x
    if low is not None:
        expected = np.maximum(expected, bounds[0])
    if high is not None:
        expected = np.minimum(expected, bounds[1])
    actual = ours("Clip", 13, x, *bounds)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, expected)


def test_clip_keeps_nan():
    x = np.array([np.nan, 5.0], "f4")
    np.testing.assert_array_equal(
        ours("Clip", 13, x, np.array(0, "f4"), np.array(1, "f4")), np.array([np.nan, 1], "f4")
    )


def test_clip_of_older_opsets_has_bounds_of_float32():
    x = np.array([-60000, -1, 7], "f4").astype("f2")
    np.testing.assert_array_equal(ours("Clip", 6, x, min=0.0, max=3.4028234663852886e38), [0, 0, 7])


def test_prelu_of_older_opsets_has_a_slope_a_channel():
    x = np.random.default_rng(SEED).standard_normal((2, 3, 4, 5)).astype("f4")
    slope = np.array([0.1, 0.2, 0.3], "f4")
    expected = np.where(x < 0, x * slope[:, None, None], x)
    np.testing.assert_array_equal(ours("PRelu", 6, x, slope), expected)
    np.testing.assert_array_equal(ours("PRelu", 16, x, slope[:, None, None]), expected)
