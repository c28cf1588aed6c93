"""The element-wise functions at the end of a fused operator, inside a Triton kernel."""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """The function named by KIND, element by element.

    Args:
        x: float32, any shape.
        KIND: the value of an `ActivationKind`, as a plain str.
        ALPHA, BETA: its parameters, float; 0 where it has none.

    Returns:
        float32 of the same shape. NaN stays NaN in every kind.
    """
    if KIND == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "clip":
        y = _clip(x, ALPHA, BETA)
    elif KIND == "leaky_relu":
        y = tl.where(x < 0.0, x * ALPHA, x)
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
    elif KIND == "tanh":
        y = _tanh(x)
    elif KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "hard_sigmoid":
        y = _clip(x * ALPHA + BETA, 0.0, 1.0)
    elif KIND == "hard_swish":
        y = x * _clip(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(KIND == "identity", "an activation that has no formula here")
        y = x
    return y


@triton.jit
def _clip(x, low, high):
    above = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tanh(x):
    """By exp, and by its series where that would cancel: within 3e-7 of the true value, relative.
    (libdevice has a tanh, the interpreter has not.)"""
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    s = size * size
    series = 1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
    y = tl.where(size < 0.25, size * series, far)
    return tl.where(x < 0.0, -y, y)
