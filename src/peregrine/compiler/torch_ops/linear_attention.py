"""Attention whose state does not grow with the sequence, and the convolution in front of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products, wide
from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.errors import Unsupported


@operator("ai.onnx.CausalConvWithState", since=27)
def causal_conv_with_state(
    call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None
) -> Result:
    """x (N, C, L), w (C, 1, K), past (N, C, K - 1): what came before, zero if absent. Gives y as x
    and the last K - 1 of what came until now."""
    activation = call.get("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise Unsupported(f"CausalConvWithState with activation {activation!r}")
    before = w.shape[2] - 1
    if past is None:
        past = x.new_zeros(*x.shape[:2], before)
    whole = torch.cat((past.to(x.dtype), x), 2)
    dtype = torch.float32 if x.dtype in HALVES and not x.is_cuda else x.dtype
    bias = b.to(dtype) if b is not None else None
    with float32_products(x.device, tf32=call.tf32):
        y = torch.conv1d(whole.to(dtype), w.to(dtype), bias, groups=x.shape[1])
    if activation != "none":
        y = torch.nn.functional.silu(wide(y))
    y = y.to(x.dtype)
    return y if call.outputs == 1 else (y, whole[:, :, whole.shape[2] - before :])


@operator("ai.onnx.LinearAttention", since=27)
def linear_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> Result:
    """Yang et al., Gated Delta Networks (2025), token by token. query (N, T, heads * K),
    key (N, T, kv heads * K), value (N, T, kv heads * V); the state (N, kv heads, K, V) in float32
    is multiplied by exp(decay), then written k (x) v, where a delta rule first subtracts from v
    what the state holds for k, and takes `beta` of the difference."""
    rule = call.get("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Unsupported(f"LinearAttention with update_rule {rule!r}")
    heads, kv_heads = call.get("q_num_heads"), call.get("kv_num_heads")

    def split(x: Tensor, count: int) -> Tensor:
        """(N, T, count * size) -> (T, N, count, size)."""
        return wide(x).reshape(*x.shape[:2], count, -1).transpose(0, 1)

    q, k, v = split(query, heads), split(key, kv_heads), split(value, kv_heads)
    scale = call.get("scale", 0.0) or 1 / math.sqrt(k.shape[3])
    factors = split(decay, kv_heads).exp() if decay is not None else None
    rates = split(beta, beta.shape[2]) if beta is not None else None
    state = k.new_zeros(*k.shape[1:], v.shape[3]) if past is None else wide(past)
    read = []
    with float32_products(query.device, tf32=call.tf32):
        for time in range(q.shape[0]):
            if factors is not None:
                state = state * factors[time].unsqueeze(3)
            written = v[time]
            if rates is not None:
                held = torch.matmul(k[time].unsqueeze(2), state).squeeze(2)
                written = rates[time] * (written - held)
            state = state + k[time].unsqueeze(3) * written.unsqueeze(2)
            shared = state.repeat_interleave(heads // kv_heads, 1)
            read.append(torch.matmul(q[time].unsqueeze(2) * scale, shared).squeeze(2))
    y = torch.stack(read, 1).flatten(2).to(query.dtype)
    return y if call.outputs == 1 else (y, state.to(query.dtype if past is None else past.dtype))
