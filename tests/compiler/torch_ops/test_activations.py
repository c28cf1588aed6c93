"""Activations against ONNX's own reference, and what the fused operators end in."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from compiler.one_operator import by_onnx, engine
from peregrine.compiler.operators import Activation, ActivationKind
from peregrine.compiler.torch_ops.activations import activate

SEED = 20261121


def evaluate(op_type: str, opset: int, x: np.ndarray, **attributes: Any) -> np.ndarray:
    return by_onnx(op_type, [x], opset=opset, **attributes)[0]


def ours(op_type: str, opset: int, x: np.ndarray, **attributes: Any) -> np.ndarray:
    (result,) = engine(op_type, [x], opset=opset, **attributes)
    assert result.dtype == x.dtype
    return result


CASES: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("Elu", {}),
    ("Elu", {"alpha": 0.7}),
    ("Selu", {}),
    ("Selu", {"alpha": 2.0, "gamma": 3.0}),
    ("Celu", {"alpha": 2.0}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 0.5, "beta": 0.6}),
    ("HardSwish", {}),
    ("Mish", {}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("ThresholdedRelu", {}),
    ("ThresholdedRelu", {"alpha": -0.5}),
    ("Shrink", {}),
    ("Shrink", {"lambd": 1.5, "bias": 0.5}),
    ("Swish", {"alpha": 0.5}),
    ("Softmax", {}),
    ("Softmax", {"axis": 1}),
    ("LogSoftmax", {"axis": 0}),
    ("Hardmax", {"axis": -2}),
]


@pytest.mark.parametrize(("op_type", "attributes"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_onnx_reference_agrees(op_type: str, attributes: dict[str, Any], dtype: str) -> None:
    x = np.random.default_rng(SEED).normal(0, 3, (3, 5, 7)).astype(dtype)
    exact = evaluate(op_type, 24, x.astype("float64"), **attributes)
    # The evaluator reads attributes as float32, whatever the dtype of x.
    tolerance = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-6}[dtype]
    result = ours(op_type, 24, x, **attributes)
    np.testing.assert_allclose(result.astype("float64"), exact, tolerance, tolerance)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swiglu(alpha: float) -> None:
    gate, x = np.random.default_rng(SEED).normal(0, 3, (2, 5, 7)).astype(np.float32)
    (result,) = engine("SwiGLU", [gate, x], opset=28, alpha=alpha)
    np.testing.assert_allclose(result, gate / (1 + np.exp(-alpha * gate)) * x, 1e-5, 1e-6)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 2, -1])
def test_the_softmax_family_before_opset_13_flattens(op_type: str, axis: int | None) -> None:
    x = np.random.default_rng(SEED).normal(0, 3, (3, 2, 5)).astype(np.float32)
    attributes = {} if axis is None else {"axis": axis}
    flattened = 1 if axis is None else axis % 3
    rows = x.reshape(math.prod(x.shape[:flattened]), -1)
    expected = evaluate(op_type, 13, rows, axis=1).reshape(x.shape)
    np.testing.assert_allclose(ours(op_type, 11, x, **attributes), expected, 1e-5, 1e-6)
    if flattened != 2:
        assert not np.allclose(ours(op_type, 13, x, axis=flattened), expected)


def test_hardmax_takes_the_first_of_equals() -> None:
    x = np.array([[1, 3, 3, 2], [5, 5, 5, 5]], np.float32)
    assert ours("Hardmax", 13, x).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_a_half_softmax_does_not_overflow() -> None:
    x = np.full((2, 70000), 5, np.float16)
    exact = np.full((2, 70000), 1 / 70000)
    np.testing.assert_allclose(ours("Softmax", 13, x), exact, rtol=0, atol=6e-8)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


FUSED: dict[ActivationKind, tuple[float, float, Callable[[np.ndarray], np.ndarray]]] = {
    ActivationKind.IDENTITY: (0, 0, lambda x: x),
    ActivationKind.RELU: (0, 0, lambda x: np.maximum(x, 0)),
    ActivationKind.CLIP: (-0.5, 6, lambda x: np.minimum(np.maximum(x, -0.5), 6)),
    ActivationKind.LEAKY_RELU: (0.1, 0, lambda x: np.where(x >= 0, x, 0.1 * x)),
    ActivationKind.SIGMOID: (0, 0, _sigmoid),
    ActivationKind.TANH: (0, 0, np.tanh),
    ActivationKind.SILU: (0, 0, lambda x: x * _sigmoid(x)),
    ActivationKind.HARD_SIGMOID: (0.3, 0.4, lambda x: np.clip(0.3 * x + 0.4, 0, 1)),
    ActivationKind.HARD_SWISH: (0, 0, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    ActivationKind.GELU: (0, 0, lambda x: x / 2 * (1 + _erf(x / math.sqrt(2)))),
    ActivationKind.GELU_TANH: (
        0,
        0,
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
}


@pytest.mark.parametrize("kind", ActivationKind)
def test_every_kind_is_what_operators_says(kind: ActivationKind) -> None:
    alpha, beta, formula = FUSED[kind]
    x = np.concatenate([np.random.default_rng(SEED).normal(0, 4, 1001), [0.0, -100.0, 100.0]])
    result = activate(Activation(kind, alpha, beta), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(result, formula(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ActivationKind)
def test_nan_stays_nan(kind: ActivationKind) -> None:
    alpha, beta, _ = FUSED[kind]
    result = activate(Activation(kind, alpha, beta), torch.tensor([float("nan")]))
    assert result.isnan().all()
