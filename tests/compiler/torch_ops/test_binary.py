"""Arithmetic of several tensors against numpy, whole ranges of every integer type included."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours

UNSIGNED = ["uint8", "uint16", "uint32", "uint64"]
SIGNED = ["int8", "int16", "int32", "int64"]


def pair(dtype):
    """Whole-range values, among them the extremes, to be divided by such without 0 and -1."""
    random = np.random.default_rng(SEED)
    info = np.iinfo(dtype)
    edges = np.array([info.min, info.max, info.max // 2, info.max // 2 + 1], dtype=dtype)
    a = np.concatenate([integers(random, dtype, 200), edges])
    small = random.integers(1, 99, 100, dtype=dtype)
    b = np.concatenate([integers(random, dtype, 100), small, edges[::-1]])
    b[b == 0] = 3
    if info.min:
        b[b == -1] = 5
    return a, b


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
@pytest.mark.parametrize("name", ["Add", "Sub", "Mul"])
def test_integers_wrap_around(name, dtype):
    a, b = pair(dtype)
    expected = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[name](a, b)
    actual = ours(name, 14, a, b)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
def test_division_of_integers_is_exact_and_rounds_towards_zero(dtype):
    a, b = pair(dtype)
    expected = [
        abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(ours("Div", 14, a, b), np.array(expected, dtype))


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
def test_the_remainder_has_the_divisors_sign_or_with_fmod_the_dividends(dtype):
    a, b = pair(dtype)
    np.testing.assert_array_equal(ours("Mod", 13, a, b), np.mod(a, b))
    np.testing.assert_array_equal(ours("Mod", 13, a, b, fmod=1), np.fmod(a, b))


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
@pytest.mark.parametrize("name", ["Max", "Min", "Sum"])
def test_many_tensors_broadcast(name, dtype):
    random = np.random.default_rng(SEED)
    a, b, c = (integers(random, dtype, *shape) for shape in ((4, 1, 3), (5, 1), (1,)))
    function = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}[name]
    actual = ours(name, 13, a, b, c)
    np.testing.assert_array_equal(actual, function(function(a, b), c))
    assert actual.dtype == dtype


def test_extremes_of_floats_keep_nan():
    a, b = np.array([1, np.nan, 3], "f4"), np.array([np.nan, 2, 4], "f4")
    np.testing.assert_array_equal(ours("Max", 13, a, b), np.array([np.nan, np.nan, 4], "f4"))
    np.testing.assert_array_equal(ours("Min", 13, a, b), np.array([np.nan, np.nan, 3], "f4"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_of_halves_are_kept_in_float32(dtype):
    """One after the other in a half, 1/512 would be lost beside 2 (and 1/32 in bfloat16)."""
    small = np.array([2.0**-11 if dtype is np.float16 else 2.0**-8], dtype)
    tensors = [np.array([1.0], dtype), *[small] * 4]
    expected = (1.0 + 4 * float(small[0]),)
    np.testing.assert_array_equal(ours("Sum", 13, *tensors).astype("f8"), expected)
    mean = ours("Mean", 13, *tensors).astype("f8")
    np.testing.assert_array_equal(mean, np.array([expected[0] / 5], dtype).astype("f8"))


def test_broadcasting_before_opset_7_starts_at_an_axis():
    random = np.random.default_rng(SEED)
    a, b = random.random((2, 3, 4, 5), "f4"), random.random((3, 4), "f4")
    expected = a - b[None, :, :, None]
    np.testing.assert_array_equal(ours("Sub", 6, a, b, broadcast=1, axis=1), expected)
    np.testing.assert_array_equal(ours("Sub", 6, a, b, broadcast=1, axis=-3), expected)
    last = random.random(5, "f4")
    np.testing.assert_array_equal(ours("Sub", 6, a, last, broadcast=1), a - last)
    less = ours("Less", 1, a, b, broadcast=1, axis=1)
    np.testing.assert_array_equal(less, a < b[None, :, :, None])


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        ("f4", "f4"),
        ("f4", "i8"),
        ("i4", "f4"),
        ("i8", "i4"),
        ("f2", "f4"),
        ("u4", "i8"),
        ("f8", "u8"),
    ],
)
def test_a_power_has_the_dtype_of_its_base(base, exponent):
    a, b = np.array([1, 2, 3, 10], base), np.array([3, 5, 2, 4], exponent)
    actual = ours("Pow", 15, a, b)
    assert actual.dtype == base
    np.testing.assert_allclose(actual.astype("f8"), [1, 32, 9, 10000], rtol=1e-3)


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts_are_those_of_unlimited_integers(dtype, direction):
    random = np.random.default_rng(SEED)
    info = np.iinfo(dtype)
    a = integers(random, dtype, 300)
    count = random.integers(0, info.bits + 3, 300).astype(dtype)
    if direction == "LEFT":
        mask = (1 << info.bits) - 1
        whole = [(x << n) & mask for x, n in zip(a.tolist(), count.tolist(), strict=True)]
        expected = np.array(whole, np.uint64).astype(f"u{info.bits // 8}").view(dtype)
    else:
        whole = [x >> n for x, n in zip(a.tolist(), count.tolist(), strict=True)]
        expected = np.array(whole, dtype)
    np.testing.assert_array_equal(ours("BitShift", 28, a, count, direction=direction), expected)


@pytest.mark.parametrize("dtype", UNSIGNED + SIGNED)
def test_bitwise(dtype):
    a, b = pair(dtype)
    np.testing.assert_array_equal(ours("BitwiseAnd", 18, a, b), a & b)
    np.testing.assert_array_equal(ours("BitwiseOr", 18, a, b), a | b)
    np.testing.assert_array_equal(ours("BitwiseXor", 18, a, b), a ^ b)
    np.testing.assert_array_equal(ours("BitwiseNot", 18, a), ~a)
