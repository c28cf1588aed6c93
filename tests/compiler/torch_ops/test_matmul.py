"""Matrix products against numpy in float64 or whole numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours

HALVES = [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 5), (5, 4)), ((5,), (5, 4)), ((3, 5), (5,)), ((5,), (5,)), ((2, 1, 3, 5), (7, 5, 4))],
)
@pytest.mark.parametrize("dtype", ["float64", "int32", "uint32", "uint64"])
def test_products_broadcast(left, right, dtype):
    random = np.random.default_rng(SEED)
    whole = np.dtype(dtype).kind in "iu"
    a, b = (integers(random, dtype, *s) if whole else random.random(s) for s in (left, right))
    actual = ours("MatMul", 13, a, b)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, a @ b, rtol=0 if whole else 1e-12)


@pytest.mark.parametrize("dtype", HALVES)
def test_products_of_halves_are_summed_in_float32(dtype):
    random = np.random.default_rng(SEED)
    a, b = (random.uniform(0, 1, shape).astype(dtype) for shape in ((3, 3000), (3000, 4)))
    expected = a.astype("f8") @ b.astype("f8")
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(ours("MatMul", 13, a, b).astype("f8"), expected, rtol=eps)
    np.testing.assert_allclose(ours("Gemm", 13, a, b).astype("f8"), expected, rtol=eps)
    sums = ours("Einsum", 28, a, b, equation="ij, jk -> ik").astype("f8")
    np.testing.assert_allclose(sums, expected, rtol=eps)


@pytest.mark.parametrize("bias", [None, (), (4,), (3, 1), (3, 4)])
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(transposed, bias):
    random = np.random.default_rng(SEED)
    a, b = random.random((3, 5)), random.random((5, 4))
    c = None if bias is None else random.random(bias)
    given = (a.T if transposed[0] else a, b.T if transposed[1] else b)
    options = {"transA": transposed[0], "transB": transposed[1], "alpha": 0.5, "beta": 2.0}
    expected = 0.5 * (a @ b) + (0 if c is None else 2 * c)
    np.testing.assert_allclose(ours("Gemm", 13, *given, c, **options), expected, rtol=1e-12)


def test_gemm_of_integers():
    random = np.random.default_rng(SEED)
    a, b, c = (random.integers(-9, 9, s, dtype="i4") for s in ((3, 5), (5, 4), (4,)))
    np.testing.assert_array_equal(
        ours("Gemm", 13, a, b, c, alpha=2.0, beta=3.0), 2 * (a @ b) + 3 * c
    )


@pytest.mark.parametrize(
    ("left", "right"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")]
)
def test_products_of_8_bits_have_zero_points_a_row_and_a_column(left, right):
    random = np.random.default_rng(SEED)
    a, b = integers(random, left, 2, 3, 700), integers(random, right, 700, 4)
    for rows, columns in (((), ()), ((1,), (1,)), ((3,), (4,))):
        za, zb = integers(random, left, *rows), integers(random, right, *columns)
        za, zb = np.asarray(za, left), np.asarray(zb, right)
        wide_za = za.astype("i8")[:, None] if rows == (3,) else za.astype("i8")
        expected = (a.astype("i8") - wide_za) @ (b.astype("i8") - zb.astype("i8"))
        actual = ours("MatMulInteger", 10, a, b, za, zb)
        assert actual.dtype == np.int32
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(ours("MatMulInteger", 10, a, b), a.astype("i8") @ b.astype("i8"))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk", [(2, 3), (3, 4)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("b h i d, b h j d -> b h i j", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("i,i->", [(5,), (5,)]),
        ("ba", [(2, 3)]),
        ("Ab,bC->CA", [(2, 3), (3, 4)]),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "int32", "uint64"])
def test_einsum(equation, shapes, dtype):
    random = np.random.default_rng(SEED)
    operands = [(random.random(shape) * 9).astype(dtype) for shape in shapes]
    actual = ours("Einsum", 12, *operands, equation=equation)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, np.einsum(equation.replace(" ", ""), *operands), rtol=1e-12)


def test_determinants():
    x = np.random.default_rng(SEED).random((2, 3, 4, 4))
    np.testing.assert_allclose(ours("Det", 22, x), np.linalg.det(x), rtol=1e-10)
    np.testing.assert_allclose(ours("Det", 22, x.astype("f2")), np.linalg.det(x), atol=2e-3)
