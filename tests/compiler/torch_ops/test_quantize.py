"""Quantisation against its formulas in numpy, and against ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours, runtime
from peregrine.errors import Unsupported


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_there_and_back_is_what_onnx_runtime_gives(axis, dtype):
    random = np.random.default_rng(SEED)
    x = (random.standard_normal((3, 4, 5)) * 40000).astype("f4")
    size = () if axis is None else (x.shape[axis],)
    scale = np.asarray(random.uniform(0.01, 200, size), "f4")
    zero = np.asarray(integers(random, dtype, *size), dtype)
    options = {} if axis is None else {"axis": axis}
    quantised = ours("QuantizeLinear", 21, x, scale, zero, **options)
    expected = runtime("QuantizeLinear", 21, x, scale, zero, **options)
    assert quantised.dtype == dtype
    np.testing.assert_array_equal(quantised, expected)
    back = ours("DequantizeLinear", 21, quantised, scale, zero, **options)
    expected = runtime("DequantizeLinear", 21, quantised, scale, zero, **options)
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("block", [2, 3, 4])
def test_blocks_have_scales_of_their_own(block):
    random = np.random.default_rng(SEED)
    x = random.standard_normal((3, 10, 2)).astype("f4")
    shape = (3, -(-10 // block), 2)
    scale, zero = random.uniform(0.01, 0.1, shape).astype("f4"), integers(random, "int8", *shape)
    wide = [np.repeat(p, block, 1)[:, :10] for p in (scale, zero.astype("f4"))]
    options = {"axis": 1, "block_size": block}
    quantised = ours("QuantizeLinear", 21, x, scale, zero, **options)
    expected = np.clip(np.round(x / wide[0]) + wide[1], -128, 127)
    np.testing.assert_array_equal(quantised, expected)
    back = ours("DequantizeLinear", 21, quantised, scale, zero, **options)
    np.testing.assert_array_equal(back, (quantised.astype("f4") - wide[1]) * wide[0])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_saturates_unless_told_otherwise(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype))
    greatest = float(ml_dtypes.finfo(dtype).max)
    x = np.array([0.3, -1.7, greatest * 4], "f4")
    scale, zero = np.array(2.0, "f4"), np.zeros((), dtype)
    actual = ours("QuantizeLinear", 24, x, scale, zero)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(
        actual.astype("f4"), [*(x[:2] / 2).astype(dtype).astype("f4"), greatest]
    )
    np.testing.assert_array_equal(
        ours("DequantizeLinear", 24, actual, scale).astype("f4"), actual.astype("f4") * 2
    )
    overflown = ours("QuantizeLinear", 24, x, scale, zero, saturate=0).astype("f4")
    assert not np.isfinite(overflown[2])


def test_types_are_told_by_attributes_without_a_zero_point():
    x, scale = np.array([-300.0, 7.4, 300.0], "f4"), np.array(1.0, "f4")
    np.testing.assert_array_equal(ours("QuantizeLinear", 21, x, scale), [0, 7, 255])
    signed = ours("QuantizeLinear", 21, x, scale, output_dtype=3)
    np.testing.assert_array_equal(signed, [-128, 7, 127])
    half = ours("DequantizeLinear", 23, signed, scale, output_dtype=10)
    assert half.dtype == np.float16
    with pytest.raises(Unsupported, match="INT4"):
        ours("QuantizeLinear", 21, x, scale, output_dtype=22)


def test_int32_biases_keep_all_their_bits():
    x, scale = np.array([2**30 + 1, -7], "i4"), np.array(0.5, "f4")
    expected = runtime("DequantizeLinear", 13, x, scale)
    np.testing.assert_array_equal(ours("DequantizeLinear", 13, x, scale), expected)


@pytest.mark.parametrize("offset", [-3.0, 0.0, 3.0])
def test_dynamic_quantisation_is_what_onnx_runtime_gives(offset):
    x = (np.random.default_rng(SEED).standard_normal((7, 5)) + offset).astype("f4")
    actual = ours("DynamicQuantizeLinear", 11, x, outputs=3)
    expected = runtime("DynamicQuantizeLinear", 11, x, outputs=3)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_zeros_are_quantised_to_zeros():
    y, scale, zero = ours("DynamicQuantizeLinear", 11, np.zeros(3, "f4"), outputs=3)
    assert not y.any()
    assert np.isfinite(scale)
    assert zero == 0


@pytest.mark.parametrize("columns", [(), (6,)])
def test_quantised_products_are_what_onnx_runtime_gives(columns):
    random = np.random.default_rng(SEED)
    a = integers(random, "uint8", 2, 5, 40)
    # 7 bits: processors without VNNI sum pairs of wider products in 16 bits.
    b = random.integers(-64, 64, (40, 6), dtype="i1")
    b_scale = np.asarray(random.uniform(0.01, 0.02, columns), "f4")
    scales = [np.array(0.01, "f4"), b_scale, np.array(0.1, "f4")]
    b_zero = np.zeros(columns, "i1")
    zeros = [np.array(100, "u1"), b_zero, np.array(110, "u1")]
    given = [a, scales[0], zeros[0], b, scales[1], zeros[1], scales[2], zeros[2]]
    actual = ours("QLinearMatMul", 10, *given)
    expected = runtime("QLinearMatMul", 10, *given)
    assert actual.dtype == np.uint8
    # A product that lies between two integers may be rounded to either: float32 and float64.
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
