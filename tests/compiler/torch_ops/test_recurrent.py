"""Recurrent operators against ONNX Runtime."""

from typing import Any

import numpy as np
import pytest

from compiler.one_operator import assert_same, by_onnxruntime, engine, generator
from peregrine.compiler.torch_ops import recurrent
from peregrine.errors import Unsupported

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIME, BATCH, INPUT, HIDDEN = 7, 3, 5, 6


def arrays(
    op_type: str, directions: int, *, given: bool = True, peepholes: bool = False
) -> list[np.ndarray | None]:
    """X, W, R and, where `given`, B, sequence_lens (absent), initial_h and what else there is."""
    random = generator()
    rows = GATES[op_type] * HIDDEN

    def uniform(*shape: int) -> np.ndarray:
        return random.uniform(-1, 1, shape).astype(np.float32)

    inputs: list[np.ndarray | None] = [
        uniform(TIME, BATCH, INPUT),
        uniform(directions, rows, INPUT),
        uniform(directions, rows, HIDDEN),
    ]
    if given:
        inputs += [uniform(directions, 2 * rows), None, uniform(directions, BATCH, HIDDEN)]
        if op_type == "LSTM":
            inputs.append(uniform(directions, BATCH, HIDDEN))
            if peepholes:
                inputs.append(uniform(directions, 3 * HIDDEN))
    return inputs


def check(op_type: str, inputs: list[np.ndarray | None], **attributes: Any) -> None:
    outputs = 3 if op_type == "LSTM" else 2
    attributes = {"hidden_size": HIDDEN, "outputs": outputs, "opset": 14, **attributes}
    expected = by_onnxruntime(op_type, inputs, **attributes)
    assert_same(engine(op_type, inputs, **attributes), expected, 1e-4)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [False, True])
def test_directions(op_type: str, direction: str, given: bool) -> None:
    directions = 2 if direction == "bidirectional" else 1
    check(op_type, arrays(op_type, directions, given=given), direction=direction)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_gru_with_the_product_before_the_reset_is_torch_s_own(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the usual attributes went step by step")

    monkeypatch.setattr(recurrent, "_step_by_step", never)
    directions = 2 if direction == "bidirectional" else 1
    inputs = arrays("GRU", directions)
    check("GRU", inputs, direction=direction, linear_before_reset=1)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_sequences_of_different_lengths(op_type: str, direction: str) -> None:
    inputs = arrays(op_type, 2 if direction == "bidirectional" else 1)
    inputs[4] = np.array([TIME, 1, 4], np.int32)
    check(op_type, inputs, direction=direction)


@pytest.mark.parametrize("op_type", GATES)
def test_both_ways_of_computing_agree(op_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arrays(op_type, 2)
    attributes: dict[str, Any] = {"direction": "bidirectional", "linear_before_reset": 1}
    by_torch = engine(op_type, inputs, outputs=2, **attributes)
    monkeypatch.setattr(recurrent, "_is_usual", lambda *_, **__: False)
    assert_same(engine(op_type, inputs, outputs=2, **attributes), by_torch)


def test_peepholes() -> None:
    check("LSTM", arrays("LSTM", 2, peepholes=True), direction="bidirectional")


@pytest.mark.parametrize("op_type", GATES)
def test_clip(op_type: str) -> None:
    check(op_type, arrays(op_type, 1), clip=0.4)


def test_coupled_input_and_forget() -> None:
    check("LSTM", arrays("LSTM", 1), input_forget=1)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.3]}),
        (
            "GRU",
            {
                "activations": ["HardSigmoid", "Softsign"],
                "activation_alpha": [0.3],
                "activation_beta": [0.4],
            },
        ),
        (
            "LSTM",
            {
                "activations": ["HardSigmoid", "ScaledTanh", "LeakyRelu"],
                "activation_alpha": [0.2, 1.5, 0.1],
                "activation_beta": [0.5, 0.7],
            },
        ),
        ("LSTM", {"activations": ["Sigmoid", "Elu", "Softplus"], "activation_alpha": [0.7]}),
    ],
)
def test_activations(op_type: str, attributes: dict[str, Any]) -> None:
    check(op_type, arrays(op_type, 1), **attributes)


def test_each_direction_has_its_activations() -> None:
    check("RNN", arrays("RNN", 2), direction="bidirectional", activations=["Relu", "Tanh"])
    check("RNN", arrays("RNN", 2), direction="bidirectional", activations=["Relu", "Relu"])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(Unsupported, match="RNN with activation 'sine'"):
        engine("RNN", arrays("RNN", 1), activations=("Sine",))


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_batch_first(op_type: str, direction: str) -> None:
    inputs = arrays(op_type, 2 if direction == "bidirectional" else 1)
    outputs = 3 if op_type == "LSTM" else 2
    attributes: dict[str, Any] = {"direction": direction, "outputs": outputs}
    y, *last = engine(op_type, inputs, **attributes)
    swapped = [
        np.ascontiguousarray(x.swapaxes(0, 1)) if x is not None and index in (0, 5, 6) else x
        for index, x in enumerate(inputs)
    ]
    expected = [y.transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in last)]
    assert_same(engine(op_type, swapped, layout=1, **attributes), expected)


@pytest.mark.parametrize("op_type", GATES)
def test_halves_are_computed_in_float32(op_type: str) -> None:
    inputs = [None if x is None else x.astype(np.float16) for x in arrays(op_type, 1)]
    single = [None if x is None else x.astype(np.float32) for x in inputs]
    expected = [y.astype(np.float16) for y in engine(op_type, single, outputs=2)]
    assert_same(engine(op_type, inputs, outputs=2), expected)
