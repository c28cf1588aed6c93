"""Running sums, the largest k, reversed sequences against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, integers, ours


def running(x, function, start, *, exclusive, reverse):
    """Along the last axis, element by element."""
    x = x[..., ::-1] if reverse else x
    columns, total = [], np.full(x.shape[:-1], start, x.dtype)
    for i in range(x.shape[-1]):
        before, total = total, function(total, x[..., i])
        columns.append(before if exclusive else total)
    y = np.stack(columns, -1)
    return y[..., ::-1] if reverse else y


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint64", "float64"])
def test_running_sums_and_products(dtype, exclusive, reverse):
    random = np.random.default_rng(SEED)
    whole = np.dtype(dtype).kind in "iu"
    x = integers(random, dtype, 3, 7) if whole else random.random((3, 7))
    options = {"exclusive": exclusive, "reverse": reverse}
    for name, function, start in (("CumSum", np.add, 0), ("CumProd", np.multiply, 1)):
        actual = ours(name, 26, x, np.array(-1), **options)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, running(x, function, start, **options), rtol=1e-12)


def test_a_running_sum_of_halves_is_kept_in_float32():
    x = np.full(3000, 0.1, "f2")
    expected = np.cumsum(x.astype("f8"))
    np.testing.assert_allclose(ours("CumSum", 14, x, np.array(0)), expected, rtol=2**-10)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", ["uint64", "uint16", "int8", "float16", "float32"])
def test_of_equals_the_first_are_taken(dtype, largest):
    x = np.random.default_rng(SEED).integers(0, 5, (4, 9, 3)).astype(dtype)
    if dtype == "uint64":
        x[0, 0, 0] = np.iinfo(dtype).max
    keys = x.astype("f8") * (-1 if largest else 1)
    order = np.argsort(keys, axis=1, kind="stable")[:, :4]
    values, indices = ours(
        "TopK", 11, x, np.array([4]), outputs=2, axis=1, largest=largest, sorted=1
    )
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))
    assert values.dtype == dtype


def test_k_was_an_attribute():
    x = np.array([[3.0, 1.0, 2.0]], "f4")
    values, indices = ours("TopK", 1, x, outputs=2, k=2)
    np.testing.assert_array_equal(values, [[3, 2]])
    np.testing.assert_array_equal(indices, [[0, 2]])


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_sequences_are_reversed_up_to_their_lengths(time, batch):
    x = np.random.default_rng(SEED).random((4, 4, 3))
    lengths = np.array([1, 4, 2, 3])
    expected = x.copy()
    for row, length in enumerate(lengths):
        if batch == 0:
            expected[row, :length] = x[row, :length][::-1]
        else:
            expected[:length, row] = x[:length, row][::-1]
    actual = ours("ReverseSequence", 10, x, lengths, time_axis=time, batch_axis=batch)
    np.testing.assert_array_equal(actual, expected)
