"""Casts between all types against numpy and ml_dtypes."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from compiler.torch_ops.calling import SEED, integers, ours
from peregrine.errors import Unsupported

INTEGERS = ["UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"]
FLOATS = ["FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"]
FLOAT8 = ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"]


def number(name):
    return int(ir.DataType[name])


def numpy_of(name):
    return ir.DataType[name].numpy()


def cast(x, name, opset=24, **attributes):
    actual = ours("Cast", opset, x, to=number(name), **attributes)
    assert actual.dtype == numpy_of(name)
    np.testing.assert_array_equal(
        ours("CastLike", opset, x, np.zeros(1, numpy_of(name)), **attributes).view(np.uint8),
        actual.view(np.uint8),
    )
    return actual


@pytest.mark.parametrize("target", [*INTEGERS, *FLOATS, "BOOL"])
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_wrap_and_round(source, target):
    x = integers(np.random.default_rng(SEED), numpy_of(source), 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float16 overflows
        expected = x.astype(numpy_of(target))
    np.testing.assert_array_equal(cast(x, target), expected)


@pytest.mark.parametrize("target", [*INTEGERS, *FLOATS, "BOOL"])
@pytest.mark.parametrize("source", FLOATS)
def test_floats_lose_their_fraction_and_round(source, target):
    low = -100 if not target.startswith("U") else 0
    x = np.random.default_rng(SEED).uniform(low, 100, 200).astype(numpy_of(source))
    np.testing.assert_array_equal(cast(x, target), x.astype(numpy_of(target)))


@pytest.mark.parametrize("target", FLOAT8)
@pytest.mark.parametrize("source", FLOATS)
def test_float8_rounds_to_the_even_neighbour(source, target):
    greatest = float(ml_dtypes.finfo(numpy_of(target)).max)
    x = np.random.default_rng(SEED).uniform(-1, 1, 500) ** 5 * greatest
    x = x.astype(np.float16).astype(numpy_of(source))
    inside = x.astype("f4").astype(numpy_of(target))
    for saturate in (0, 1):
        actual = cast(x, target, saturate=saturate)
        np.testing.assert_array_equal(actual.view("u1"), inside.view("u1"))


@pytest.mark.parametrize("target", FLOAT8)
def test_what_is_beyond_float8_saturates_or_overflows(target):
    """The tables of the operator's documentation, of opset 24."""
    greatest = float(ml_dtypes.finfo(numpy_of(target)).max)
    x = np.array([np.inf, -np.inf, greatest * 2, -greatest * 2, np.nan], "f4")
    saturated = cast(x, target).astype("f4")
    np.testing.assert_array_equal(saturated, [greatest, -greatest, greatest, -greatest, np.nan])
    infinity = np.inf if target == "FLOAT8E5M2" else np.nan
    overflown = cast(x, target, saturate=0).astype("f4")
    np.testing.assert_array_equal(overflown, [infinity, -infinity, infinity, -infinity, np.nan])


@pytest.mark.parametrize("target", FLOAT8)
def test_before_opset_24_infinities_of_types_with_one_zero_become_nan(target):
    greatest = float(ml_dtypes.finfo(numpy_of(target)).max)
    expected = np.nan if target.endswith("FNUZ") else greatest
    actual = cast(np.array([np.inf, 1e6], "f4"), target, opset=19).astype("f4")
    np.testing.assert_array_equal(actual, [expected, greatest])


@pytest.mark.parametrize("source", FLOAT8)
def test_every_float8_is_a_float(source):
    x = np.arange(256, dtype="u1").view(numpy_of(source))
    with np.errstate(invalid="ignore"):
        expected = x.astype("f4")
    for target in ("FLOAT", "DOUBLE"):
        np.testing.assert_array_equal(cast(x, target), expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("up", [1, 2, 2, 2, 4]), ("down", [1, 1, 1, 1, 2]), ("nearest", [1, 1, 2, 2, 4])],
)
def test_powers_of_two_round_as_asked(mode, expected):
    x = np.array([1, 1.25, 1.5, 1.75, 3.0], "f4")
    np.testing.assert_array_equal(cast(x, "FLOAT8E8M0", round_mode=mode).astype("f4"), expected)


def test_strings_and_small_integers_are_refused_by_name():
    for name in ("STRING", "INT4", "FLOAT4E2M1"):
        with pytest.raises(Unsupported, match=name):
            ours("Cast", 24, np.ones(2, "f4"), to=number(name))


def test_bits_are_kept_by_a_bit_cast():
    x = np.random.default_rng(SEED).standard_normal((3, 5)).astype("f4")
    for name in ("INT32", "UINT32"):
        actual = ours("BitCast", 26, x, to=number(name))
        np.testing.assert_array_equal(actual, x.view(numpy_of(name)))
    with pytest.raises(Unsupported, match="width"):
        ours("BitCast", 26, x, to=number("INT64"))
