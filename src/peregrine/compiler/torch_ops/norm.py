"""Normalisations. Half inputs are computed in float32 and rounded once, at the end."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.dtypes import dtype_of
from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.errors import Unsupported


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """(C) for every element of (N, C, ...), in the dtype of the sums."""
    return wide(vector).reshape(1, -1, *[1] * (x.dim() - 2))


@operator("ai.onnx.BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Result:
    if call.get("training_mode", 0):
        return _training_batch_normalization(call, x, scale, bias, mean, variance)
    if call.outputs > 1:
        raise Unsupported("BatchNormalization in the training form of before opset 14")
    epsilon = call.get("epsilon", 1e-5)
    if call.opset < 9 and not call.get("spatial", 1):  # statistics of every element: (C, H, W)
        normal = (wide(x) - wide(mean)) * torch.rsqrt(wide(variance) + epsilon)
        return (normal * wide(scale) + wide(bias)).to(x.dtype)
    factor = wide(scale) * torch.rsqrt(wide(variance) + epsilon)
    offset = wide(bias) - wide(mean) * factor
    return (wide(x) * _per_channel(factor, x) + _per_channel(offset, x)).to(x.dtype)


def _training_batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Result:
    y, momentum = wide(x), call.get("momentum", 0.9)
    axes = (0, *range(2, x.dim()))
    spread, centre = torch.var_mean(y, axes, correction=0)
    normal = (y - _per_channel(centre, x)) * torch.rsqrt(
        _per_channel(spread, x) + call.get("epsilon", 1e-5)
    )
    outputs = (
        (normal * _per_channel(scale, x) + _per_channel(bias, x)).to(x.dtype),
        (wide(mean) * momentum + centre * (1 - momentum)).to(mean.dtype),
        (wide(variance) * momentum + spread * (1 - momentum)).to(variance.dtype),
    )
    return outputs[: call.outputs] if call.outputs > 1 else outputs[0]


def _standardise(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over some axes."""
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


@operator("ai.onnx.InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = _standardise(wide(x), tuple(range(2, x.dim())), call.get("epsilon", 1e-5))
    return (y * _per_channel(scale, x) + _per_channel(bias, x)).to(x.dtype)


def _group_normalise(call: Call, x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, groups, everything else), standardised."""
    grouped = x.to(dtype).reshape(x.shape[0], call.get("num_groups"), -1)
    return _standardise(grouped, (2,), call.get("epsilon", 1e-5))


@operator("ai.onnx.GroupNormalization", since=18)
def group_normalization_by_groups(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias (groups)."""
    y = _group_normalise(call, x, wide(x).dtype)
    y = y * wide(scale).reshape(-1, 1) + wide(bias).reshape(-1, 1)
    return y.reshape(x.shape).to(x.dtype)


@operator("ai.onnx.GroupNormalization", since=21)
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scale and bias (C)."""
    y = _group_normalise(call, x, _stash(call, x)).reshape(x.shape)
    return (y * _per_channel(scale, x) + _per_channel(bias, x)).to(x.dtype)


def _stash(call: Call, x: Tensor) -> torch.dtype:
    """The dtype of `stash_type`, but never narrower than the sums of x."""
    return torch.promote_types(dtype_of(call.get("stash_type", 1)), wide(x).dtype)


@operator("ai.onnx.LayerNormalization", since=17)
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    axis, epsilon = call.get("axis", -1) % x.dim(), call.get("epsilon", 1e-5)
    stash = _stash(call, x)
    axes = tuple(range(axis, x.dim()))
    if call.outputs == 1 and x.is_cuda and scale.shape == x.shape[axis:] and stash == wide(x).dtype:
        # One kernel, which keeps its sums in float32 as well.
        return F.layer_norm(x, list(scale.shape), scale, bias, epsilon)
    y = x.to(stash)
    variance, mean = torch.var_mean(y, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = (y - mean) * inverse * wide(scale)
    if bias is not None:
        y = y + wide(bias)
    written = dtype_of(call.get("stash_type", 1))
    outputs = (y.to(x.dtype), mean.to(written), inverse.to(written))
    return outputs[: call.outputs] if call.outputs > 1 else outputs[0]


@operator("ai.onnx.RMSNormalization", since=23)
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Zhang and Sennrich, Root Mean Square Layer Normalization (2019)."""
    y = x.to(_stash(call, x))
    axes = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    y = y * torch.rsqrt(y.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return (y * wide(scale)).to(x.dtype)


@operator("ai.onnx.LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """A row of zeros stays one."""
    y = wide(x)
    norm = torch.linalg.vector_norm(y, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, 0, y / norm).to(x.dtype)


@operator("ai.onnx.MeanVarianceNormalization", since=9)
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    y, axes = wide(x), tuple(call.get("axes", (0, 2, 3)))
    variance, mean = torch.var_mean(y, axes, correction=0, keepdim=True)
    return ((y - mean) / (variance.sqrt() + 1e-9)).to(x.dtype)


@operator("ai.onnx.LRN")
def lrn(call: Call, x: Tensor) -> Tensor:
    """Krizhevsky et al. (2012): over `size` neighbouring channels, one more after than before
    where that is even."""
    y, size = wide(x), int(call.get("size"))
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    before = (size - 1) // 2
    squares = y.square()
    sides = [0, 0] * (x.dim() - 2) + [before, size - 1 - before]
    sums = F.pad(squares, sides).unfold(1, size, 1).sum(-1)
    scale = sums.mul(alpha / size).add(bias).pow(beta)
    return (y / scale).to(x.dtype)


@operator("ai.onnx.Dropout")
def dropout_inference(call: Call, x: Tensor) -> Result:
    """The identity. The mask has the dtype of x before opset 10."""
    if call.outputs == 1:
        return x
    return x, torch.ones_like(x, dtype=torch.bool if call.opset >= 10 else x.dtype)


@operator("ai.onnx.Dropout", since=12, host=(1, 2))
def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Result:
    share = 0.5 if ratio is None else float(ratio)
    if training is not None and bool(training) and not math.isclose(share, 0):
        raise Unsupported("Dropout in training: its outputs are random")
    return dropout_inference(call, x)
