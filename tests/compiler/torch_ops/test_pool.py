"""Poolings against ONNX Runtime and ONNX's reference."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnx, by_onnxruntime, engine, generator

SHAPES = {1: (2, 3, 17), 2: (2, 3, 11, 14), 3: (1, 2, 7, 8, 9)}
WINDOWS: list[tuple[int, dict[str, Any]]] = [
    (1, {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    (2, {"kernel_shape": [3, 2], "strides": [2, 3]}),
    (2, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (2, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    (2, {"kernel_shape": [5, 4], "strides": [3, 3], "pads": [2, 0, 1, 3], "ceil_mode": 1}),
    (2, {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    (2, {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1]}),
    (2, {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    (2, {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    (2, {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "VALID"}),
    (3, {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [1, 1, 0, 0, 1, 1]}),
    (3, {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "dilations": [1, 2, 1], "ceil_mode": 1}),
]


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_and_its_indices(rank: int, window: dict[str, Any], storage_order: int) -> None:
    x = generator().normal(size=SHAPES[rank]).astype(np.float32)
    attributes = {**window, "storage_order": storage_order}
    expected = by_onnxruntime("MaxPool", [x], opset=12, outputs=2, **attributes)
    assert_same(engine("MaxPool", [x], outputs=2, **attributes), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_of_integers(dtype: type) -> None:
    info = np.iinfo(dtype)
    x = generator().integers(info.min, info.max + 1, (2, 3, 7, 9), dtype=dtype)
    window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}
    expected = by_onnxruntime("MaxPool", [x], opset=12, **window)
    assert_same(engine("MaxPool", [x], **window), expected)


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
@pytest.mark.parametrize("with_pads", [0, 1])
def test_average_pool(rank: int, window: dict[str, Any], with_pads: int) -> None:
    x = generator().normal(size=SHAPES[rank]).astype(np.float32)
    attributes = {**window, "count_include_pad": with_pads}
    (result,) = engine("AveragePool", [x], **attributes)
    assert_same([result], [average(x, result.shape[2:], window, bool(with_pads))])
    if not window.get("ceil_mode") and "dilations" not in window:
        assert_same([result], by_onnxruntime("AveragePool", [x], **attributes))


def average(
    x: np.ndarray, positions: tuple[int, ...], window: dict[str, Any], with_pads: bool
) -> np.ndarray:
    """By loops over the definition; its first pads are those that the output's size leaves."""
    sizes, kernel = x.shape[2:], window["kernel_shape"]
    rank = len(sizes)
    strides = window.get("strides", [1] * rank)
    dilations = window.get("dilations", [1] * rank)
    pads = window.get("pads", [0] * (2 * rank))
    if window.get("auto_pad", "").startswith("SAME"):
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(sizes, strides, kernel, strict=True)
        ]
        upper = window["auto_pad"] == "SAME_UPPER"
        begins = [t // 2 if upper else t - t // 2 for t in totals]
        pads = begins + [t - b for t, b in zip(totals, begins, strict=True)]
    y = np.zeros((*x.shape[:2], *positions), x.dtype)
    for position in product(*map(range, positions)):
        total, count = np.zeros(x.shape[:2], np.float64), 0
        for tap in product(*map(range, kernel)):
            at = [
                p * s + t * d - b
                for p, s, t, d, b in zip(position, strides, tap, dilations, pads, strict=False)
            ]
            inside = all(0 <= a < n for a, n in zip(at, sizes, strict=True))
            padded = all(
                -b <= a < n + e
                for a, n, b, e in zip(at, sizes, pads[:rank], pads[rank:], strict=True)
            )
            total += x[(..., *at)] if inside else 0
            count += inside or (with_pads and padded)
        y[(..., *position)] = total / count
    return y


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
@pytest.mark.parametrize("power", [1, 2, 3])
def test_lp_pool(rank: int, window: dict[str, Any], power: int) -> None:
    x = generator().normal(size=SHAPES[rank]).astype(np.float32)
    expected = by_onnxruntime("LpPool", [x], opset=18, p=power, **window)
    assert_same(engine("LpPool", [x], p=power, **window), expected, 1e-4)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools(op_type: str, rank: int) -> None:
    x = generator().normal(size=SHAPES[rank]).astype(np.float32)
    opset = 13 if op_type == "GlobalLpPool" else 22
    expected = by_onnxruntime(op_type, [x], opset=opset)
    assert_same(engine(op_type, [x], opset=opset), expected)


def test_a_half_mean_keeps_its_sum_in_float32() -> None:
    x = np.full((1, 1, 300, 300), 3, np.float16)
    assert engine("GlobalAveragePool", [x])[0].item() == 3
    assert engine("AveragePool", [x], kernel_shape=[300, 300])[0].item() == 3


def test_max_unpool_undoes_max_pool() -> None:
    x = generator().normal(size=(2, 3, 8, 12)).astype(np.float32)
    window: dict[str, Any] = {"kernel_shape": [2, 3], "strides": [2, 3]}
    pooled = engine("MaxPool", [x], outputs=2, **window)
    (result,) = engine("MaxUnpool", pooled, **window)
    assert result.shape == x.shape
    kept = result != 0
    np.testing.assert_array_equal(result[kept], x[kept])
    assert kept.sum() == pooled[0].size
    assert_same([result], by_onnxruntime("MaxUnpool", pooled, opset=11, **window))


def test_max_roi_pool() -> None:
    random = generator()
    x = random.normal(size=(3, 4, 17, 23)).astype(np.float32)
    rois = np.array(
        [[0, 0, 0, 10, 8], [2, 3, 5, 44, 30], [1, 20, 10, 22, 12], [1, 7, 7, 7, 7]], np.float32
    )
    attributes: dict[str, Any] = {"pooled_shape": [3, 2], "spatial_scale": 0.5}
    expected = by_onnxruntime("MaxRoiPool", [x, rois], opset=11, **attributes)
    assert_same(engine("MaxRoiPool", [x, rois], **attributes), expected)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(mode: str, coordinates: str, ratio: int) -> None:
    random = generator()
    x = random.normal(size=(2, 3, 13, 11)).astype(np.float32)
    corners = random.uniform(-2, 20, (6, 2, 2)).astype(np.float32)
    rois = np.concatenate([corners.min(1), corners.max(1)], 1)
    images = np.array([0, 1, 1, 0, 1, 0])
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        "sampling_ratio": ratio,
        "spatial_scale": 0.7,
        "output_height": 3,
        "output_width": 4,
    }
    expected = by_onnx("RoiAlign", [x, rois, images], **attributes)
    assert_same(engine("RoiAlign", [x, rois, images], **attributes), expected, 1e-4)


def test_no_regions() -> None:
    x = np.zeros((1, 3, 5, 5), np.float32)
    none = np.zeros((0, 4), np.float32)
    (aligned,) = engine("RoiAlign", [x, none, np.zeros(0, np.int64)], output_height=2)
    assert aligned.shape == (0, 3, 2, 1)
    (pooled,) = engine("MaxRoiPool", [x, np.zeros((0, 5), np.float32)], pooled_shape=(2, 2))
    assert pooled.shape == (0, 3, 2, 2)
