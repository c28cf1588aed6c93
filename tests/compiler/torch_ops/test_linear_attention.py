"""Linear attention and causal convolutions against ONNX's reference."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.one_operator import assert_same, by_onnx, engine, generator
from peregrine.errors import Unsupported

NEWEST = onnx.defs.onnx_opset_version()
pytestmark = pytest.mark.skipif(NEWEST < 27, reason="onnx is older than the operators")
BATCH, TIME, KEY, VALUE = 2, 6, 4, 5


@pytest.mark.parametrize(
    ("rule", "heads", "past"),
    product(["linear", "gated", "delta", "gated_delta"], [(2, 2), (4, 2), (3, 1)], [False, True]),
)
@pytest.mark.parametrize("each", [False, True])
def test_linear_attention(rule: str, heads: tuple[int, int], past: bool, each: bool) -> None:
    """`each`: a decay for every key dimension, and one beta for all heads."""
    random = generator()
    q_heads, kv_heads = heads

    def uniform(*shape: int) -> np.ndarray:
        return random.uniform(-1, 1, shape).astype(np.float32)

    inputs: list[np.ndarray | None] = [
        uniform(BATCH, TIME, q_heads * KEY),
        uniform(BATCH, TIME, kv_heads * KEY),
        uniform(BATCH, TIME, kv_heads * VALUE),
        uniform(BATCH, kv_heads, KEY, VALUE) if past else None,
        uniform(BATCH, TIME, kv_heads * (KEY if each else 1)) if "gated" in rule else None,
        uniform(BATCH, TIME, 1 if each else kv_heads) if "delta" in rule else None,
    ]
    attributes: dict[str, Any] = {
        "update_rule": rule,
        "q_num_heads": q_heads,
        "kv_num_heads": kv_heads,
        "outputs": 2,
        "opset": 27,
    }
    expected = by_onnx("LinearAttention", inputs, **attributes)
    assert_same(engine("LinearAttention", inputs, **attributes), expected)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("length", [1, 9])
def test_causal_convolution(activation: str, past: bool, length: int) -> None:
    random = generator()
    shapes = ((2, 3, length), (3, 1, 4), (3,), (2, 3, 3))
    inputs = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    given = inputs if past else inputs[:3]
    attributes: dict[str, Any] = {"activation": activation, "outputs": 2, "opset": 27}
    expected = by_onnx("CausalConvWithState", given, **attributes)
    assert_same(engine("CausalConvWithState", given, **attributes), expected)


def test_what_is_unknown_is_refused() -> None:
    x = np.ones((1, 2, 2), np.float32)
    with pytest.raises(Unsupported, match="LinearAttention with update_rule 'odd'"):
        engine("LinearAttention", [x, x, x], opset=27, update_rule="odd")
    with pytest.raises(Unsupported, match="CausalConvWithState with activation 'odd'"):
        engine("CausalConvWithState", [x, x[:, :1]], opset=27, activation="odd")
