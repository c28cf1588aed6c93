"""Resampling against ONNX's reference and ONNX Runtime."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from compiler.one_operator import assert_same, by_onnx, by_onnxruntime, engine, generator
from peregrine.compiler.torch_ops import resize
from peregrine.errors import Unsupported

COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "align_corners",
    "asymmetric",
)
SCALES = ((1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 0.6, 1.7), (1.0, 1.0, 1.0, 0.5), (1.0, 1.0, 4.0, 8.0))
SIZES = ((2, 3, 7, 9), (2, 3, 3, 16), (2, 3, 1, 1), (2, 3, 10, 6))


def image(*shape: int) -> np.ndarray:
    return generator().normal(size=shape or (2, 3, 5, 8)).astype(np.float32)


def scaled(x: np.ndarray, scales: tuple[float, ...]) -> list[np.ndarray | None]:
    return [x, None, np.array(scales, np.float32)]


def sized(x: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray | None]:
    return [x, None, None, np.array(sizes)]


def check(inputs: list[np.ndarray | None], **attributes: Any) -> None:
    expected = by_onnx("Resize", inputs, opset=19, **attributes)
    assert_same(engine("Resize", inputs, opset=19, **attributes), expected)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("exclude_outside", [0, 1])
@pytest.mark.parametrize("antialias", [0, 1])
def test_between_pixels(mode: str, coordinates: str, exclude_outside: int, antialias: int) -> None:
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        "exclude_outside": exclude_outside,
        "antialias": antialias,
    }
    for scales in SCALES:
        check(scaled(image(), scales), **attributes)
    for sizes in SIZES:
        check(sized(image(), sizes), **attributes)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_nearest(coordinates: str, nearest: str) -> None:
    attributes: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": nearest,
    }
    for scales in SCALES:
        check(scaled(image(), scales), **attributes)
    for sizes in SIZES:
        check(sized(image(), sizes), **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_the_usual_ones_are_one_kernel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("went axis by axis")

    monkeypatch.setattr(resize, "_resize_axis", never)
    attributes: dict[str, Any] = {"mode": mode}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    check(scaled(image(), (1, 1, 2, 4)), **attributes)
    if mode != "nearest":
        check(scaled(image(), (1, 1, 0.7, 1.3)), **attributes)
        check(sized(image(), (2, 3, 7, 5)), **attributes)


def test_cubic_coefficient() -> None:
    check(scaled(image(), (1, 1, 1.7, 0.8)), mode="cubic", cubic_coeff_a=-0.5)


@pytest.mark.parametrize("shape", [(2, 3, 9), (7,), (1, 2, 4, 5, 6)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_other_ranks(shape: tuple[int, ...], mode: str) -> None:
    scales = (1.0,) * min(2, len(shape) - 1) + (1.5, 0.7, 2.0)
    check(scaled(image(*shape), scales[: len(shape)]), mode=mode)


def test_axes() -> None:
    x = image()
    check(scaled(x, (0.7, 1.6)), mode="linear", axes=[3, 2])
    check(sized(x, (7, 3)), mode="linear", axes=[2, 3])
    assert_same(
        engine("Resize", sized(x, (7, 3)), mode="linear", axes=[-2, -1]),
        engine("Resize", sized(x, (7, 3)), mode="linear", axes=[2, 3]),
    )


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    check(sized(image(), (11, 6)), mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_region_that_reaches_outside(mode: str) -> None:
    roi = np.array([0, 0, -0.2, 0.3, 1, 1, 0.9, 1.4], np.float32)
    inputs = [image(), roi, None, np.array([2, 3, 7, 9])]
    check(
        inputs,
        mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=9.0,
    )


def test_integers_are_rounded_and_saturate() -> None:
    x = generator().integers(0, 256, (1, 2, 5, 6), dtype=np.uint8)
    check(scaled(x, (1, 1, 1.6, 2.3)), mode="cubic")
    check(scaled(x, (1, 1, 1.6, 2.3)), mode="nearest")


def test_halves_are_resized_in_float32() -> None:
    x = image().astype(np.float16)
    (exact,) = by_onnx("Resize", scaled(x.astype(np.float32), (1, 1, 1.3, 2.7)), mode="cubic")
    result = engine("Resize", scaled(x, (1, 1, 1.3, 2.7)), mode="cubic")
    assert_same(result, [exact.astype(np.float16)], 1e-3)


def test_channels_last_stays_right() -> None:
    x = torch.from_numpy(image()).to(memory_format=torch.channels_last)
    call = resize.Call({"mode": "nearest", "nearest_mode": "ceil"}, 19)
    scales = torch.tensor([1, 1, 1.7, 2.5])
    plain = resize.resize(call, x.contiguous(), None, scales)
    torch.testing.assert_close(resize.resize(call, x, None, scales), plain, rtol=0, atol=0)


def test_tables_are_made_once_and_stay_where_they_lie() -> None:
    """A captured CUDA graph reads them at their addresses."""
    x = torch.from_numpy(image())
    attributes = {"mode": "cubic", "cubic_coeff_a": -0.5}
    kept = resize.Call(attributes, 19)
    scales = [torch.tensor([1, 1, 1.7, 2.5]), torch.tensor([1, 1, 0.5, 2.5])]
    plain = [resize.resize(resize.Call(attributes, 19), x, None, by) for by in scales]
    for by, expected in zip(scales, plain, strict=True):
        torch.testing.assert_close(resize.resize(kept, x, None, by), expected, rtol=0, atol=0)
    assert len(kept.tables) == 3  # the width's is the same
    before = {key: [t.data_ptr() for t in made] for key, made in kept.tables.items()}
    for by, expected in zip(scales, plain, strict=True):
        torch.testing.assert_close(resize.resize(kept, x, None, by), expected, rtol=0, atol=0)
    assert {key: [t.data_ptr() for t in made] for key, made in kept.tables.items()} == before


def test_nothing_to_resize_by_is_refused() -> None:
    with pytest.raises(Unsupported, match="Resize with neither"):
        engine("Resize", [image()])
    with pytest.raises(Unsupported, match="coordinate_transformation_mode 'odd'"):
        engine("Resize", scaled(image(), SCALES[0]), coordinate_transformation_mode="odd")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [SCALES[0], SCALES[1], (1.0, 1.0, 3.0, 3.0)])
def test_the_older_versions(mode: str, scales: tuple[float, ...]) -> None:
    x = image()
    inputs = [x, np.array(scales, np.float32)]
    expected = by_onnxruntime("Resize", inputs, opset=10, mode=mode)
    assert_same(engine("Resize", inputs, opset=10, mode=mode), expected)
    if min(scales) >= 1:
        upsampled = by_onnxruntime("Upsample", inputs, opset=9, mode=mode)
        assert_same(engine("Upsample", inputs, opset=9, mode=mode), upsampled)
        assert_same(engine("Upsample", [x], opset=7, mode=mode, scales=scales), upsampled)


@pytest.mark.parametrize(
    ("mode", "padding", "aligned"),
    product(["linear", "nearest", "cubic"], ["zeros", "border", "reflection"], [0, 1]),
)
@pytest.mark.parametrize("rank", [2, 3])
def test_grid_sample(mode: str, padding: str, aligned: int, rank: int) -> None:
    random = generator()
    sizes = (5, 7, 4)[:rank]
    x = random.normal(size=(2, 3, *sizes)).astype(np.float32)
    grid = random.uniform(-1.4, 1.4, (2, *(6, 3, 4)[:rank], rank)).astype(np.float32)
    attributes: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    if mode == "cubic" and rank == 3:
        with pytest.raises(Unsupported, match="cubic GridSample"):
            engine("GridSample", [x, grid], **attributes)
        return
    expected = by_onnxruntime("GridSample", [x, grid], opset=20, **attributes)
    assert_same(engine("GridSample", [x, grid], **attributes), expected, 1e-4)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (2, 3, 4, 5, 6)])
def test_affine_grid(aligned: int, size: tuple[int, ...]) -> None:
    rank = len(size) - 2
    theta = generator().normal(size=(2, rank, rank + 1)).astype(np.float32)
    expected = by_onnx("AffineGrid", [theta, np.array(size)], align_corners=aligned)
    assert_same(engine("AffineGrid", [theta, np.array(size)], align_corners=aligned), expected)


def test_the_coordinates_that_were_dropped_after_opset_11() -> None:
    inputs: list[np.ndarray | None] = scaled(image(), (1, 1, 1.7, 0.6))
    inputs[1] = np.zeros(0, np.float32)
    attributes: dict[str, Any] = {
        "mode": "nearest",
        "nearest_mode": "floor",
        "coordinate_transformation_mode": "tf_half_pixel_for_nn",
    }
    expected = by_onnxruntime("Resize", inputs, opset=11, **attributes)
    assert_same(engine("Resize", inputs, opset=11, **attributes), expected)
