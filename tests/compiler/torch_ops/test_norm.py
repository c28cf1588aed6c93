"""Normalisations against ONNX Runtime and ONNX's reference."""

from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnx, by_onnxruntime, engine, generator
from peregrine.errors import Unsupported


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 7), (2, 5, 7, 3), (1, 5, 2, 3, 4)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    random = generator()
    inputs = [
        normal(random, *shape),
        normal(random, 5),
        normal(random, 5),
        normal(random, 5),
        random.uniform(0.1, 3, 5).astype(np.float32),
    ]
    for opset in (7, 9, 14, 15):
        expected = by_onnxruntime("BatchNormalization", inputs, opset=opset, epsilon=1e-3)
        assert_same(engine("BatchNormalization", inputs, opset=opset, epsilon=1e-3), expected)
    trained: dict[str, Any] = {"training_mode": 1, "momentum": 0.7, "outputs": 3, "opset": 15}
    expected = by_onnx("BatchNormalization", inputs, **trained)
    assert_same(engine("BatchNormalization", inputs, **trained), expected)


def test_batch_normalization_of_every_element() -> None:
    random = generator()
    inputs = [
        normal(random, 2, 3, 4, 5),
        *(normal(random, 3, 4, 5) for _ in range(3)),
        random.uniform(0.1, 3, (3, 4, 5)).astype(np.float32),
    ]
    expected = by_onnxruntime("BatchNormalization", inputs, opset=7, spatial=0)
    assert_same(engine("BatchNormalization", inputs, opset=7, spatial=0), expected)


def test_old_training_is_refused() -> None:
    inputs = [np.ones((1, 2, 3), np.float32), *[np.ones(2, np.float32)] * 4]
    with pytest.raises(Unsupported, match="BatchNormalization"):
        engine("BatchNormalization", inputs, opset=9, outputs=5)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 7, 3), (1, 5, 2, 3, 4)])
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    random = generator()
    inputs = [normal(random, *shape), normal(random, 5), normal(random, 5)]
    expected = by_onnxruntime("InstanceNormalization", inputs, epsilon=1e-2)
    assert_same(engine("InstanceNormalization", inputs, epsilon=1e-2), expected)


@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(axis: int, bias: bool) -> None:
    random = generator()
    shape = (3, 5, 7)
    inputs = [normal(random, *shape), normal(random, *shape[axis:])]
    if bias:
        inputs.append(normal(random, *shape[axis:]))
    attributes: dict[str, Any] = {"axis": axis, "epsilon": 1e-3, "opset": 17}
    expected = by_onnx("LayerNormalization", inputs, outputs=3, **attributes)
    assert_same(engine("LayerNormalization", inputs, outputs=3, **attributes), expected)
    assert_same(engine("LayerNormalization", inputs, **attributes), expected[:1])
    assert_same(by_onnxruntime("LayerNormalization", inputs, **attributes), expected[:1])


def test_layer_normalization_of_halves_is_computed_in_float32() -> None:
    """The variance, 64 million, is beyond float16."""
    x = np.array([[-8000, 8000, -8000, 8000]], np.float16)
    result, mean, inverse = engine(
        "LayerNormalization", [x, np.ones(4, np.float16)], outputs=3, opset=17
    )
    assert result.tolist() == [[-1, 1, -1, 1]]
    assert mean.dtype == inverse.dtype == np.float32
    np.testing.assert_allclose(inverse, 1 / 8000, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalization(groups: int) -> None:
    random = generator()
    x = normal(random, 2, 6, 5, 3)
    inputs = [x, normal(random, 6), normal(random, 6)]
    attributes: dict[str, Any] = {"num_groups": groups, "epsilon": 1e-3}
    expected = by_onnx("GroupNormalization", inputs, opset=21, **attributes)
    assert_same(engine("GroupNormalization", inputs, opset=21, **attributes), expected)
    each = [normal(random, groups), normal(random, groups)]
    spread = [x, *(np.repeat(vector, 6 // groups) for vector in each)]
    expected = by_onnx("GroupNormalization", spread, opset=21, **attributes)
    assert_same(engine("GroupNormalization", [x, *each], opset=18, **attributes), expected)


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis: int) -> None:
    random = generator()
    inputs = [normal(random, 3, 5, 7), normal(random, *(3, 5, 7)[axis:])]
    expected = by_onnx("RMSNormalization", inputs, opset=23, axis=axis)
    assert_same(engine("RMSNormalization", inputs, opset=23, axis=axis), expected)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_lp_normalization(p: int, axis: int) -> None:
    x = normal(generator(), 3, 4, 5)
    expected = by_onnxruntime("LpNormalization", [x], opset=13, p=p, axis=axis)
    assert_same(engine("LpNormalization", [x], p=p, axis=axis), expected)
    zeros = np.zeros((2, 3), np.float32)
    assert_same(engine("LpNormalization", [zeros], p=p), [zeros])


@pytest.mark.parametrize("axes", [None, [0, 2, 3], [1], [2, 3]])
def test_mean_variance_normalization(axes: list[int] | None) -> None:
    x = normal(generator(), 2, 3, 5, 4)
    attributes = {} if axes is None else {"axes": axes}
    expected = by_onnxruntime("MeanVarianceNormalization", [x], opset=13, **attributes)
    assert_same(engine("MeanVarianceNormalization", [x], **attributes), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_lrn(size: int) -> None:
    x = normal(generator(), 2, 7, 5, 3)
    attributes: dict[str, Any] = {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}
    result = engine("LRN", [x], **attributes)
    expected = np.empty_like(x)
    for channel in range(7):
        first, last = channel - (size - 1) // 2, channel + size // 2
        near = x[:, max(first, 0) : last + 1]
        factor = (1.5 + 0.3 / size * np.square(near).sum(1)) ** 0.6
        expected[:, channel] = x[:, channel] / factor
    assert_same(result, [expected])
    if size % 2:
        assert_same(result, by_onnxruntime("LRN", [x], **attributes))


def test_dropout_is_the_identity() -> None:
    x = normal(generator(), 3, 4)
    y, mask = engine("Dropout", [x, np.array(0.7, np.float32), np.array(False)], outputs=2)
    assert_same([y, mask], [x, np.ones_like(x, bool)])
    y, mask = engine("Dropout", [x], outputs=2, opset=7)
    assert_same([y, mask], [x, np.ones_like(x)])
    with pytest.raises(Unsupported, match="Dropout"):
        engine("Dropout", [x, None, np.array(True)])
    assert_same(engine("Dropout", [x, np.array(0.0, np.float32), np.array(True)]), [x])
