"""Shapes against numpy, older opsets included."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.torch_ops.calling import SEED, ours


@pytest.fixture
def x():
    return np.random.default_rng(SEED).random((2, 3, 4), "f4")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((0, -1), (2, 12)), ((-1,), (24,)), ((4, 0, 2), (4, 3, 2)), ((1, 24), (1, 24))],
)
def test_reshape(x, shape, expected):
    np.testing.assert_array_equal(ours("Reshape", 1, x, shape=shape), x.reshape(expected))
    np.testing.assert_array_equal(ours("Reshape", 14, x, list(shape)), x.reshape(expected))


def test_a_zero_is_a_size_where_allowed():
    x = np.zeros((0, 3), "f4")
    assert ours("Reshape", 14, x, [3, 0], allowzero=1).shape == (3, 0)
    assert ours("Reshape", 14, x, [0, 3]).shape == (0, 3)
    assert ours("Reshape", 14, x, [0, -1]).shape == (0, 0)


@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (1, 24)), (1, (2, 12)), (-1, (6, 4)), (3, (24, 1))]
)
def test_flatten(x, axis, shape):
    np.testing.assert_array_equal(ours("Flatten", 13, x, axis=axis), x.reshape(shape))


def test_axes_of_size_one_come_and_go(x):
    for opset, given in ((11, {"axes": (0, -1)}), (13, {})):
        inputs = [] if given else [[0, -1]]
        wide = ours("Unsqueeze", opset, x, *inputs, **given)
        np.testing.assert_array_equal(wide, x[None, ..., None])
        np.testing.assert_array_equal(ours("Squeeze", opset, wide, *inputs, **given), x)
    np.testing.assert_array_equal(ours("Squeeze", 13, x[None, :, None]), x)
    with pytest.raises(ValueError, match="cannot squeeze"):
        ours("Squeeze", 13, x, [1])


def test_axes_of_unsqueeze_are_in_any_order(x):
    np.testing.assert_array_equal(ours("Unsqueeze", 13, x, [4, 0, 2]), x[None, :, None, :, None])


def test_transpose_reverses_unless_told(x):
    np.testing.assert_array_equal(ours("Transpose", 13, x), x.T)
    np.testing.assert_array_equal(ours("Transpose", 13, x, perm=(1, 2, 0)), x.transpose(1, 2, 0))


def test_expand_goes_both_ways(x):
    y = x[:, :1]
    actual = ours("Expand", 13, y, [5, 1, 3, 1])
    np.testing.assert_array_equal(actual, np.broadcast_to(y, (5, 2, 3, 4)))


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint64", "bool"])
def test_tile(x, dtype):
    x = (x * 2).astype(dtype)
    np.testing.assert_array_equal(ours("Tile", 13, x, [2, 1, 3]), np.tile(x, (2, 1, 3)))
    one_axis = ours("Tile", 1, x, [2], [1])
    np.testing.assert_array_equal(one_axis, np.tile(x, (1, 2, 1)))


@pytest.mark.parametrize(("start", "end"), [(None, None), (1, None), (-2, -1), (-9, 9), (2, 1)])
def test_shape_is_a_slice_of_the_sizes(x, start, end):
    given = {k: v for k, v in (("start", start), ("end", end)) if v is not None}
    actual = ours("Shape", 15, x, **given)
    assert actual.dtype == np.int64
    np.testing.assert_array_equal(actual, np.array(x.shape)[start:end])
    assert ours("Size", 13, x) == 24


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_and_depth_are_each_others_inverse(mode):
    x = np.arange(2 * 12 * 2 * 3).reshape(2, 12, 2, 3).astype("f4")
    space = ours("DepthToSpace", 13, x, blocksize=2, mode=mode)
    assert space.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(ours("SpaceToDepth", 28, space, blocksize=2, mode=mode), x)
    # The pixel below and right of the first one comes from the last of the four channels.
    channel = 9 if mode == "DCR" else 3
    assert space[0, 0, 1, 1] == x[0, channel, 0, 0]
