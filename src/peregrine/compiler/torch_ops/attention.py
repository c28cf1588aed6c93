"""Attention as one operator, and rotary position embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products, wide
from peregrine.compiler.torch_ops.dtypes import dtype_of
from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.compiler.torch_ops.windows import pad

_WITH_SOFTCAP, _WITH_BIAS, _PROBABILITIES = 1, 2, 3
"""What `qk_matmul_output_mode` asks for; 0 is the bare product."""


@operator("ai.onnx.Attention", since=23)
def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Result:
    """Q (N, heads, L, E), K (N, kv heads, S, E), V (N, kv heads, S, F), or (N, L, heads * E) and so
    on. A query with no key to attend gives zeros."""
    in_three = q.dim() == 3
    if in_three:
        q = _split_heads(q, call.get("q_num_heads"))
        k, v = (_split_heads(x, call.get("kv_num_heads")) for x in (k, v))
    past = 0
    if past_k is not None and past_v is not None:
        past = past_k.shape[2]
        k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
    present = (k, v)
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    with float32_products(q.device, tf32=call.tf32):
        y, scores = _attend(call, q, k, v, mask, past, lengths)
    if in_three:
        y = y.transpose(1, 2).flatten(2)
    if call.outputs == 1:
        return y
    return (y, *present, scores)[: call.outputs]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past: int,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(Y, what the fourth output wants or None)."""
    scale = call.get("scale")
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    softcap = call.get("softcap", 0.0)
    bias = _bias(call, q, k, mask, past, lengths)
    narrow = dtype_of(call.get("softmax_precision") or 1) is not torch.float64
    if call.outputs < 4 and not softcap and (narrow or q.dtype is torch.float64):
        return _fused(q, k, v, bias, scale), None
    scores = torch.matmul(wide(q) * scale, wide(k).transpose(2, 3))
    shown = scores
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    mode = call.get("qk_matmul_output_mode", 0)
    if mode == _WITH_SOFTCAP:
        shown = scores
    if bias is not None:
        scores = scores + wide(bias)
    if mode == _WITH_BIAS:
        shown = scores
    logits = scores if narrow else scores.double()
    probabilities = _zero_where_masked(torch.softmax(logits, -1), bias)
    if mode == _PROBABILITIES:
        shown = probabilities
    y = torch.matmul(probabilities.to(wide(v).dtype), wide(v))
    return y.to(q.dtype), shown.to(q.dtype)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """One kernel on a GPU, whose softmax is in float32."""
    dtype = torch.float32 if q.dtype in HALVES and not q.is_cuda else q.dtype
    if bias is not None:
        bias = bias.to(dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    y = F.scaled_dot_product_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=bias, scale=scale
    )
    return _zero_where_masked(y, bias).to(q.dtype)


def _zero_where_masked(x: Tensor, bias: Tensor | None) -> Tensor:
    """0 in the rows of queries that may attend no key, which are not a number otherwise."""
    if bias is None:
        return x
    return torch.where(bias.amax(-1, keepdim=True) == -math.inf, 0, x)


def _bias(
    call: Call, q: Tensor, k: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None
) -> Tensor | None:
    """What is added to the scores, broadcast over (N, heads, L, S): the mask, and -inf where a key
    lies ahead of its query, out of its window or in the padding."""
    bias = None
    if mask is not None:
        missing = k.shape[2] - mask.shape[-1]
        if mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(
                ~mask, -math.inf
            )
        bias = pad(mask, [0], [missing], -math.inf)
        bias = bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))
    allowed = _allowed(call, q, k, past, lengths)
    if allowed is None:
        return bias
    empty = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
    return torch.where(allowed, empty, -math.inf)


def _allowed(call: Call, q: Tensor, k: Tensor, past: int, lengths: Tensor | None) -> Tensor | None:
    """Which keys a query may attend: (1 or N, 1, L, S); None for all."""
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    if call.get("is_causal", 0):
        right = 0
    keys = torch.arange(k.shape[2], device=q.device)
    queries = torch.arange(q.shape[2], device=q.device)[:, None] + past
    allowed = None
    if lengths is not None:
        lengths = lengths.reshape(-1, 1, 1, 1)
        queries = queries + (lengths - q.shape[2])
        allowed = keys < lengths
    ahead = keys - queries
    if right >= 0:
        allowed = ahead <= right if allowed is None else allowed & (ahead <= right)
    if left >= 0:
        allowed = ahead >= -left if allowed is None else allowed & (ahead >= -left)
    return allowed


@operator("ai.onnx.RotaryEmbedding", since=23)
def rotary_embedding(
    call: Call, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Su et al., RoFormer (2021). X (N, heads, L, E) or (N, L, heads * E); the caches are
    (positions, E' / 2) with `positions` (N, L), else (N, L, E' / 2)."""
    y = wide(x)
    # (N, L, heads, E)
    y = y if x.dim() == 4 else _split_heads(y, call.get("num_heads"))
    y = y.transpose(1, 2)
    turned_size = call.get("rotary_embedding_dim", 0) or y.shape[3]
    turned, rest = y[..., :turned_size], y[..., turned_size:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cos, sin = wide(cosines).unsqueeze(2), wide(sines).unsqueeze(2)
    if call.get("interleaved", 0):
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if call.get("interleaved", 0):
        turned = torch.stack((real, imaginary), -1).flatten(3)
    else:
        turned = torch.cat((real, imaginary), -1)
    y = torch.cat((turned, rest), -1)
    y = y.transpose(1, 2) if x.dim() == 4 else y.flatten(2)
    return y.to(x.dtype)
