"""Convolutions of every kind against ONNX Runtime and ONNX's reference."""

from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnx, by_onnxruntime, engine, generator
from peregrine.errors import Unsupported


def normal(random: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return random.normal(size=shape).astype(dtype)


CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 17), (4, 3, 5), {"strides": [2], "pads": [1, 3]}),
    ((2, 4, 9, 11), (6, 2, 3, 2), {"group": 2, "dilations": [2, 3], "pads": [2, 0, 1, 3]}),
    ((1, 3, 7, 8), (5, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((1, 3, 7, 8), (5, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ((1, 3, 7, 8), (5, 3, 3, 4), {"auto_pad": "VALID"}),
    ((1, 6, 13, 5), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ((2, 2, 5, 6, 7), (3, 2, 2, 3, 1), {"strides": [1, 2, 2], "pads": [0, 1, 0, 1, 1, 0]}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVS)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    random = generator()
    inputs = [normal(random, *x_shape), normal(random, *w_shape)]
    if bias:
        inputs.append(normal(random, w_shape[0]))
    expected = by_onnxruntime("Conv", inputs, **attributes)
    assert_same(engine("Conv", inputs, **attributes), expected)
    halves = [x.astype(np.float16) for x in inputs]
    exact = by_onnxruntime("Conv", [x.astype(np.float32) for x in halves], **attributes)
    (half,) = engine("Conv", halves, **attributes)
    assert_same([half], [exact[0].astype(np.float16)], 1e-3)


def test_a_half_conv_keeps_its_sums_in_float32() -> None:
    """A sum of 4096 halves in half would stop growing at 2048."""
    x, w = np.ones((1, 4096, 1, 1), np.float16), np.ones((1, 4096, 1, 1), np.float16)
    assert engine("Conv", [x, w])[0].item() == 4096


def test_conv_of_four_dimensions_is_refused() -> None:
    x, w = np.ones((1, 1, 2, 2, 2, 2), np.float32), np.ones((1, 1, 1, 1, 1, 1), np.float32)
    with pytest.raises(Unsupported, match="Conv of 4"):
        engine("Conv", [x, w])


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 7), (3, 4, 5), {"strides": [2], "pads": [1, 2]}),
    ((1, 4, 5, 6), (4, 2, 3, 3), {"group": 2, "strides": [2, 3], "output_padding": [1, 2]}),
    ((1, 3, 5, 4), (3, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((1, 3, 5, 4), (3, 2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ((1, 3, 5, 4), (3, 2, 3, 3), {"strides": [3, 2], "output_shape": [16, 10]}),
    ((1, 3, 5, 4), (3, 2, 3, 3), {"strides": [2, 2], "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
    ((1, 2, 3, 4, 5), (2, 3, 2, 2, 3), {"strides": [2, 1, 2], "pads": [1, 0, 1, 0, 1, 0]}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), TRANSPOSED)
def test_conv_transpose(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    random = generator()
    channels = w_shape[1] * attributes.get("group", 1)
    inputs = [normal(random, *x_shape), normal(random, *w_shape), normal(random, channels)]
    expected = by_onnxruntime("ConvTranspose", inputs, **attributes)
    assert_same(engine("ConvTranspose", inputs, **attributes), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_conv_integer(per_channel: bool) -> None:
    random = generator()
    x = random.integers(0, 256, (2, 3, 9, 7), dtype=np.uint8)
    w = random.integers(0, 256, (4, 3, 3, 2), dtype=np.uint8)
    w_zero = np.array([100, 130, 0, 255] if per_channel else 128, np.uint8)
    inputs = [x, w, np.array(120, np.uint8), w_zero]
    attributes: dict[str, Any] = {"pads": [1, 0, 2, 1], "strides": [2, 1]}
    if per_channel:
        each = [
            by_onnx("ConvInteger", [x, w[i : i + 1], inputs[2], w_zero[i]], **attributes)
            for i in range(4)
        ]
        expected = [np.concatenate([y for (y,) in each], 1)]
    else:
        expected = by_onnxruntime("ConvInteger", inputs, opset=10, **attributes)
    assert_same(engine("ConvInteger", inputs, **attributes), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_conv(dtype: type) -> None:
    random = generator()
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max + 1
    x = random.integers(low, high, (2, 3, 9, 7), dtype=dtype)
    w = random.integers(low, high, (4, 3, 3, 3), dtype=dtype)
    scales = random.uniform(0.01, 0.02, 4).astype(np.float32)
    inputs = [
        *(x, np.array(0.03, np.float32), np.array(7, dtype)),
        *(w, scales, np.zeros(4, dtype)),
        *(np.array(0.5, np.float32), np.array(3, dtype)),
        random.integers(-500, 500, 4, dtype=np.int32),
    ]
    expected = by_onnxruntime("QLinearConv", inputs, pads=[1, 1, 1, 1])
    result = engine("QLinearConv", inputs, pads=[1, 1, 1, 1])
    # ONNX Runtime multiplies by the scale in float32, so a tie may fall to the other side.
    difference = np.abs(result[0].astype(int) - expected[0].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("masked", [False, True])
def test_deform_conv(masked: bool) -> None:
    random = generator()
    x, w = normal(random, 2, 4, 7, 9), normal(random, 6, 2, 3, 2)
    attributes: dict[str, Any] = {
        "group": 2,
        "offset_group": 2,
        "pads": [1, 0, 1, 1],
        "strides": [2, 1],
        "dilations": [1, 2],
    }
    (plain,) = by_onnxruntime(
        "Conv", [x, w], group=2, pads=[1, 0, 1, 1], strides=[2, 1], dilations=[1, 2]
    )
    height, width = plain.shape[2:]
    offset = normal(random, 2, 2 * 6 * 2, height, width) * 2
    inputs = [x, w, offset, normal(random, 6)]
    if masked:
        inputs.append(random.uniform(size=(2, 2 * 6, height, width)).astype(np.float32))
    expected = by_onnx("DeformConv", inputs, **attributes)
    assert_same(engine("DeformConv", inputs, **attributes), expected, 1e-4)
    still = engine("DeformConv", [x, w, np.zeros_like(offset)], **attributes)
    assert_same(still, [plain], 1e-4)


@pytest.mark.parametrize(
    ("image", "block", "attributes"),
    [
        ((7, 9), (2, 3), {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
        ((8, 8), (3, 2), {"dilations": [2, 1]}),
        ((5, 6, 4), (2, 1, 3), {"strides": [1, 2, 1]}),
    ],
)
def test_col2im_is_the_gradient_of_taking_blocks(
    image: tuple[int, ...], block: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    """<col2im(blocks), image> = <blocks, im2col(image)> for im2col by a convolution of ones."""
    random = generator()
    taps, channels = int(np.prod(block)), 2
    kernels = np.zeros((channels * taps, 1, *block), np.float32)
    for index in range(channels * taps):
        kernels[index].reshape(-1)[index % taps] = 1
    picture = normal(random, 3, channels, *image)
    (blocks,) = by_onnxruntime("Conv", [picture, kernels], group=channels, **attributes)
    given = normal(random, 3, channels * taps, int(np.prod(blocks.shape[2:])))
    shapes = [np.array(image), np.array(block)]
    (summed,) = engine("Col2Im", [given, *shapes], **attributes)
    assert summed.shape == picture.shape
    expected = np.vdot(given, blocks.reshape(given.shape))
    np.testing.assert_allclose(np.vdot(summed, picture), expected, rtol=1e-4)
