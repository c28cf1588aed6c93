"""Non-maximum suppression against ONNX Runtime."""

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnxruntime, engine, generator


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("most", [0, 3, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("least", [None, 0.4])
def test_greedy_suppression(centred: int, most: int, overlap: float, least: float | None) -> None:
    random = generator()
    boxes = random.uniform(0, 1, (2, 60, 4)).astype(np.float32)
    scores = random.uniform(0, 1, (2, 3, 60)).astype(np.float32)
    inputs = [boxes, scores, np.array([most]), np.array([overlap], np.float32)]
    if least is not None:
        inputs.append(np.array([least], np.float32))
    expected = by_onnxruntime("NonMaxSuppression", inputs, opset=11, center_point_box=centred)
    assert_same(engine("NonMaxSuppression", inputs, center_point_box=centred), expected)


def test_of_equal_boxes_the_first_stays() -> None:
    boxes = np.array([[[0, 0, 1, 1]] * 3 + [[1, 1, 0.5, 0.5]]], np.float32)
    scores = np.array([[[0.5, 0.5, 0.5, 0.4]]], np.float32)
    limits = [np.array([9]), np.array([0.5], np.float32)]
    (result,) = engine("NonMaxSuppression", [boxes, scores, *limits])
    assert result.tolist() == [[0, 0, 0], [0, 0, 3]]
