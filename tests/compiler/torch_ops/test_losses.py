"""Losses against ONNX's reference."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnx, engine, generator

CASES = list(
    product(["mean", "sum", "none"], [(4, 5), (2, 5, 3), (2, 5, 3, 4)], [False, True], [None, 2])
)


def data(shape: tuple[int, ...], weighted: bool) -> list[np.ndarray]:
    random = generator()
    scores = random.normal(size=shape).astype(np.float32)
    labels = random.integers(0, shape[1], (shape[0], *shape[2:]))
    weights = [random.uniform(0.5, 2, shape[1]).astype(np.float32)] if weighted else []
    return [scores, labels, *weights]


@pytest.mark.parametrize(("reduction", "shape", "weighted", "ignored"), CASES)
def test_losses(
    reduction: str, shape: tuple[int, ...], weighted: bool, ignored: int | None
) -> None:
    attributes: dict[str, Any] = {"reduction": reduction}
    if ignored is not None:
        attributes["ignore_index"] = ignored
    inputs = data(shape, weighted)
    for op_type, outputs in (
        ("NegativeLogLikelihoodLoss", 1),
        ("SoftmaxCrossEntropyLoss", 1),
        ("SoftmaxCrossEntropyLoss", 2),
    ):
        expected = by_onnx(op_type, inputs, outputs=outputs, **attributes)
        wanted = [np.asarray(y, np.float32) for y in expected]
        assert_same(engine(op_type, inputs, outputs=outputs, **attributes), wanted)


def test_an_ignored_label_need_not_be_a_class() -> None:
    scores, labels = data((4, 5), False)
    labels[1] = -100
    (result,) = engine("SoftmaxCrossEntropyLoss", [scores, labels], ignore_index=-100)
    kept = [0, 2, 3]
    (expected,) = engine("SoftmaxCrossEntropyLoss", [scores[kept], labels[kept]])
    np.testing.assert_allclose(result, expected, rtol=1e-6)
