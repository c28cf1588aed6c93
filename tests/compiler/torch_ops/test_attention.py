"""Attention and rotary embeddings against ONNX's reference."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from compiler.one_operator import assert_same, by_onnx, engine, generator
from peregrine.compiler.torch_ops import attention
from peregrine.compiler.torch_ops.registry import Call

BATCH, HEADS, QUERIES, KEYS, SIZE, VALUE = 2, 4, 5, 7, 8, 6


def qkv(kv_heads: int = HEADS, keys: int = KEYS) -> list[np.ndarray | None]:
    random = generator()
    shapes = (
        (BATCH, HEADS, QUERIES, SIZE),
        (BATCH, kv_heads, keys, SIZE),
        (BATCH, kv_heads, keys, VALUE),
    )
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def check(inputs: list[np.ndarray | None], *, opset: int = 24, **attributes: Any) -> None:
    """With and without the fourth output, which goes another way."""
    first = by_onnx("Attention", inputs, opset=opset, **attributes)[:1]
    assert_same(engine("Attention", inputs, opset=opset, **attributes), first)
    for mode in range(4):
        attributes["qk_matmul_output_mode"] = mode
        expected = by_onnx("Attention", inputs, opset=opset, outputs=4, **attributes)
        results = engine("Attention", inputs, opset=opset, outputs=4, **attributes)
        if mode == 0 and attributes.get("softcap"):
            # The reference gives the softened products, the operator's definition the bare ones.
            cap = attributes["softcap"]
            results[3] = cap * np.tanh(results[3] / cap)
        assert_same(results, expected)


def mask(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    random = generator()
    allowed = random.random(shape) < 0.7
    allowed[..., 0, :] = False  # The first query attends nothing.
    if kind == "bool":
        return allowed
    values = random.normal(size=shape).astype(np.float32)
    return np.where(allowed, values, -np.inf).astype(np.float32)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.5}, {"is_causal": 1}, {"softcap": 2.0}])
def test_heads(kv_heads: int, attributes: dict[str, Any]) -> None:
    check(qkv(kv_heads), **attributes)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(
    "shape",
    [(QUERIES, KEYS), (HEADS, QUERIES, KEYS), (BATCH, 1, QUERIES, KEYS), (QUERIES, KEYS - 2)],
)
@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_masks(kind: str, shape: tuple[int, ...], is_causal: int, softcap: float) -> None:
    check([*qkv(), mask(kind, shape)], is_causal=is_causal, softcap=softcap)


def test_three_dimensions() -> None:
    inputs = [
        x.transpose(0, 2, 1, 3).reshape(BATCH, x.shape[2], -1) for x in qkv(2) if x is not None
    ]
    check([*inputs], q_num_heads=HEADS, kv_num_heads=2)


@pytest.mark.parametrize("is_causal", [0, 1])
def test_past_keys(is_causal: int) -> None:
    random = generator()
    past = [random.normal(size=(BATCH, HEADS, 3, size)).astype(np.float32) for size in (8, 6)]
    check([*qkv(), None, *past], is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [0, 1])
def test_padded_keys(is_causal: int) -> None:
    """The second sample has fewer keys than queries: its first queries attend nothing."""
    check([*qkv(), None, None, None, np.array([KEYS, 3])], is_causal=is_causal)


@pytest.mark.parametrize(("left", "right"), product([-1, 0, 2], repeat=2))
def test_windows(left: int, right: int) -> None:
    attributes = {"left_window_size": left, "right_window_size": right}
    check(qkv(), opset=25, **attributes)
    check([*qkv(), mask("bool", (QUERIES, KEYS))], opset=25, is_causal=1, **attributes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_attended_in_float32(dtype: torch.dtype) -> None:
    """The products, about 100000, are beyond float16."""
    torch.manual_seed(20261121)
    q, k, v = (torch.randn(1, 2, 5, 64) * size for size in (100, 100, 1))
    halves = [x.to(dtype) for x in (q, k, v)]
    single = [x.float() for x in halves]
    for outputs in (1, 4):
        call = Call({}, 23, outputs)
        results = attention.attention(call, *halves), attention.attention(call, *single)
        half, exact = (r if isinstance(r, torch.Tensor) else r[0] for r in results)
        assert half is not None
        assert exact is not None
        torch.testing.assert_close(half, exact.to(dtype))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("positions", [False, True])
def test_rotary_embedding(interleaved: int, turned: int, rank: int, positions: bool) -> None:
    random = generator()
    shape = (2, 3, 5, 8) if rank == 4 else (2, 5, 24)
    half = (turned or 8) // 2
    angles = random.uniform(-3, 3, (10, half) if positions else (2, 5, half)).astype(np.float32)
    inputs = [random.normal(size=shape).astype(np.float32), np.cos(angles), np.sin(angles)]
    if positions:
        inputs.append(random.integers(0, 10, (2, 5)))
    attributes: dict[str, Any] = {"interleaved": interleaved, "rotary_embedding_dim": turned}
    if rank == 3:
        attributes["num_heads"] = 3
    expected = by_onnx("RotaryEmbedding", inputs, opset=23, **attributes)
    assert_same(engine("RotaryEmbedding", inputs, opset=23, **attributes), expected)
