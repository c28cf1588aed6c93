"""Slices, pads, splits against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.torch_ops.calling import SEED, ours
from peregrine.errors import Unsupported

BOUND = st.one_of(st.integers(-9, 9), st.just(2**63 - 1), st.just(-(2**63)))


@given(
    size=st.integers(0, 6),
    start=BOUND,
    end=BOUND,
    step=st.integers(-4, 4).filter(bool),
    dtype=st.sampled_from(["f4", "u2", "u8", "?"]),
)
@settings(max_examples=300)
def test_slices_are_numpys(size, start, end, step, dtype):
    """But for a step back from before the first element, which ONNX clamps to that element."""
    x = np.arange(size * 3).reshape(3, size).astype(dtype)
    actual = ours("Slice", 13, x, [start], [end], [-1], [step])
    first = max(start, -size) if step < 0 and size else start
    np.testing.assert_array_equal(actual, x[:, first:end:step])


def test_slices_of_several_axes():
    x = np.random.default_rng(SEED).random((5, 6, 7))
    np.testing.assert_array_equal(
        ours("Slice", 13, x, [4, 1], [-100, 5], [2, 0], [-2, 1]), x[1:5, :, 4::-2]
    )
    np.testing.assert_array_equal(ours("Slice", 10, x, [1, 2], [3, 4]), x[1:3, 2:4])
    older = ours("Slice", 1, x, starts=(1, -3), ends=(1000, -1), axes=(0, 2))
    np.testing.assert_array_equal(older, x[1:, :, -3:-1])


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint64", "bool", "float16"])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [(1, 2, 0, 3), (0, 0, 0, 0), (5, 0, 7, 6)])
def test_pads_are_numpys(mode, pads, dtype):
    """Also where a reflection is longer than what is reflected."""
    x = (np.random.default_rng(SEED).random((3, 4)) * 9).astype(dtype)
    widths = [(pads[0], pads[2]), (pads[1], pads[3])]
    actual = ours("Pad", 19, x, list(pads), mode=mode)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, np.pad(x, widths, mode))


def test_pads_crop_where_negative():
    x = np.random.default_rng(SEED).random((5, 6), "f4")
    for mode in ("constant", "edge"):
        cropped = ours("Pad", 13, x, [-1, 2, -2, -3], mode=mode)
        np.testing.assert_array_equal(cropped, np.pad(x[1:3, :3], [(0, 0), (2, 0)], mode))


def test_pads_have_a_value_and_axes():
    x = np.random.default_rng(SEED).random((2, 3, 4), "f4")
    value = np.array(7, "f4")
    expected = np.pad(x, [(0, 0), (0, 2), (1, 0)], constant_values=7)
    np.testing.assert_array_equal(ours("Pad", 18, x, [1, 0, 0, 2], value, [-1, 1]), expected)
    np.testing.assert_array_equal(ours("Pad", 2, x, pads=(0, 0, 1, 0, 2, 0), value=7.0), expected)
    np.testing.assert_array_equal(
        ours("Pad", 1, x, paddings=(0, 0, 1, 0, 2, 0), value=7.0), expected
    )


def test_an_unknown_mode_is_refused():
    with pytest.raises(Unsupported, match="mirror"):
        ours("Pad", 19, np.ones((2, 2), "f4"), [1, 1, 1, 1], mode="mirror")


def test_splits_of_all_opsets():
    x = np.random.default_rng(SEED).random((2, 7), "f4")
    parts = [x[:, :2], x[:, 2:7]]
    for actual in (
        ours("Split", 11, x, outputs=2, axis=1, split=(2, 5)),
        ours("Split", 1, x, [2, 5], outputs=2, axis=1),
        ours("Split", 13, x, [2, 5], outputs=2, axis=1),
    ):
        for one, expected in zip(actual, parts, strict=True):
            np.testing.assert_array_equal(one, expected)
    sizes = [part.shape[1] for part in ours("Split", 18, x, outputs=3, axis=-1, num_outputs=3)]
    assert sizes == [3, 3, 1]
    halves = ours("Split", 11, x, outputs=2)
    np.testing.assert_array_equal(halves[1], x[1:])


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint64", "bool"])
def test_concat(dtype):
    random = np.random.default_rng(SEED)
    parts = [(random.random((2, n)) * 9).astype(dtype) for n in (1, 3, 0)]
    np.testing.assert_array_equal(ours("Concat", 13, *parts, axis=-1), np.concatenate(parts, 1))
    np.testing.assert_array_equal(ours("Concat", 1, *parts), np.concatenate(parts, 1))
