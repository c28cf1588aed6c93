"""Element-wise activations and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.operators import Activation, ActivationKind
from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call, operator


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


_PLAIN: Mapping[ActivationKind, Callable[[Tensor], Tensor]] = {
    ActivationKind.RELU: torch.relu,
    ActivationKind.SIGMOID: torch.sigmoid,
    ActivationKind.TANH: torch.tanh,
    ActivationKind.SILU: F.silu,
    ActivationKind.HARD_SWISH: _hard_swish,
    ActivationKind.GELU: F.gelu,
    ActivationKind.GELU_TANH: _gelu_tanh,
}


def activate(activation: Activation, x: Tensor) -> Tensor:
    """The function at the end of a fused operator, in the dtype of x."""
    alpha, beta = activation.alpha, activation.beta
    match activation.kind:
        case ActivationKind.IDENTITY:
            return x
        case ActivationKind.CLIP:
            return torch.clamp(x, alpha, beta)
        case ActivationKind.LEAKY_RELU:
            return F.leaky_relu(x, alpha)
        case ActivationKind.HARD_SIGMOID:
            return _hard_sigmoid(x, alpha, beta)
        case kind:
            return _PLAIN[kind](x)


@operator("ai.onnx.Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("ai.onnx.LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


@operator("ai.onnx.Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


@operator("ai.onnx.Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.67326319217681884765625)
    gamma = call.get("gamma", 1.05070102214813232421875)
    return F.elu(wide(x), alpha).mul(gamma).to(x.dtype)


@operator("ai.onnx.Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.get("alpha", 1.0))


@operator("ai.onnx.Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    """torch's own turns linear above a threshold, which float64 can tell."""
    y = wide(x)
    return torch.logaddexp(y, torch.zeros((), dtype=y.dtype, device=y.device)).to(x.dtype)


@operator("ai.onnx.Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    return F.softsign(wide(x)).to(x.dtype)


@operator("ai.onnx.HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return _hard_sigmoid(wide(x), call.get("alpha", 0.2), call.get("beta", 0.5)).to(x.dtype)


@operator("ai.onnx.HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    return _hard_swish(wide(x)).to(x.dtype)


@operator("ai.onnx.Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    return F.mish(wide(x)).to(x.dtype)


@operator("ai.onnx.Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


@operator("ai.onnx.Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    return _swish(wide(x), call).to(x.dtype)


def _swish(x: Tensor, call: Call) -> Tensor:
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@operator("ai.onnx.SwiGLU", since=28)
def swiglu(call: Call, gate: Tensor, x: Tensor) -> Tensor:
    """Shazeer, GLU Variants Improve Transformer (2020)."""
    return (_swish(wide(gate), call) * wide(x)).to(x.dtype)


@operator("ai.onnx.ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return F.threshold(x, call.get("alpha", 1.0), 0)


@operator("ai.onnx.Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    y = wide(x)
    shrunk = torch.where(y < -limit, y + bias, torch.where(y > limit, y - bias, 0))
    return shrunk.to(x.dtype)


def _softmax(x: Tensor, axis: int) -> Tensor:
    return torch.softmax(wide(x), axis).to(x.dtype)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return torch.log_softmax(wide(x), axis).to(x.dtype)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first of the greatest, 0 elsewhere; argmax leaves open which of them it tells."""
    greatest = x == x.amax(axis, keepdim=True)
    return (greatest & (greatest.cumsum(axis) == 1)).to(x.dtype)


def _flattened(function: Callable[[Tensor, int], Tensor], call: Call, x: Tensor) -> Tensor:
    """Over all dimensions from the axis on, as before opset 13."""
    axis = call.get("axis", 1) % max(x.dim(), 1)
    rows = math.prod(x.shape[:axis])
    if x.numel() == 0:
        return torch.empty_like(x)
    return function(x.reshape(rows, -1), 1).reshape(x.shape)


@operator("ai.onnx.Softmax")
def softmax_flattened(call: Call, x: Tensor) -> Tensor:
    return _flattened(_softmax, call, x)


@operator("ai.onnx.Softmax", since=13)
def softmax(call: Call, x: Tensor) -> Tensor:
    return _softmax(x, call.get("axis", -1))


@operator("ai.onnx.LogSoftmax")
def log_softmax_flattened(call: Call, x: Tensor) -> Tensor:
    return _flattened(_log_softmax, call, x)


@operator("ai.onnx.LogSoftmax", since=13)
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return _log_softmax(x, call.get("axis", -1))


@operator("ai.onnx.Hardmax")
def hardmax_flattened(call: Call, x: Tensor) -> Tensor:
    return _flattened(_hardmax, call, x)


@operator("ai.onnx.Hardmax", since=13)
def hardmax(call: Call, x: Tensor) -> Tensor:
    return _hardmax(x, call.get("axis", -1))
