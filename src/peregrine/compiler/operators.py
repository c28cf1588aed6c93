"""The fused operators that the passes write and the tactics implement.

They live in the ONNX domain `peregrine`, version 1, beside the standard ones in the same graph.
Shapes are ONNX's (N, C, H, W) whatever the layout in memory; weights are constants.

Conv(X, W, B?, Z?) -> Y
    Y = activation(conv(X, W) + B + Z), 2-D. W (O, C / group, KH, KW), B (O), Z as Y.
Linear(X, W, B?, Z?) -> Y
    Y = activation(X @ W.T + B + Z). X (..., K), W (N, K), B (N), Z and Y (..., N).
DepthwisePointwise(X, WD, BD?, WP, BP?, Z?) -> Y
    Y = activation(conv1x1(inner(depthwise(X, WD) + BD), WP) + BP + Z). WD (C, 1, KH, KW),
    BD (C), WP (O, C, 1, 1), BP (O). Kernel, strides, pads and dilations are the depthwise one's.
ConvMaxPool(X, W, B?) -> Y
    Y = maxpool(activation(conv(X, W) + B)).
ConvBranches(X, W1, B1?, W2, B2?) -> Y
    Y = concat over channels of activation(conv1x1(X, W1) + B1) and activation(conv(X, W2) + B2).
    Kernel, strides and pads are the second one's; the first has its strides and no pads.
PoolLinear(X, W, B?) -> Y
    Y = activation(mean of X over H and W @ W.T + B). X (N, C, H, W), W (M, C), Y (N, M).
PointwisePair(X, W1, B1?, Z?, W2, B2?) -> Y1, Y2
    Y1 = activation(conv1x1(X, W1) + B1 + Z) and Y2 = second activation(conv1x1(Y1, W2) + B2), of
    Y1 as it is written, rounded to its dtype. W1 (O1, C, 1, 1), B1 (O1), Z as Y1,
    W2 (O2, O1, 1, 1), B2 (O2). The attributes of Y2's activation start with `second_`.

An input marked ? may be absent. Sums are kept in float32 (float64 for float64) until the output is
written, whatever the dtype of X. Attributes are plain ints, floats, strings and tuples of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DOMAIN = "peregrine"


class Fused(enum.StrEnum):
    """The operators of the domain, as `Operation.operator` has them."""

    CONV = "peregrine.Conv"
    LINEAR = "peregrine.Linear"
    DEPTHWISE_POINTWISE = "peregrine.DepthwisePointwise"
    CONV_MAX_POOL = "peregrine.ConvMaxPool"
    CONV_BRANCHES = "peregrine.ConvBranches"
    POOL_LINEAR = "peregrine.PoolLinear"
    POINTWISE_PAIR = "peregrine.PointwisePair"

    @property
    def op_type(self) -> str:
        """The name within the domain."""
        return self.value.partition(".")[2]


class ActivationKind(enum.StrEnum):
    """An element-wise function at the end of a fused operator."""

    IDENTITY = "identity"
    RELU = "relu"
    CLIP = "clip"
    """min(max(x, alpha), beta)."""
    LEAKY_RELU = "leaky_relu"
    """x where x >= 0, else alpha * x."""
    SIGMOID = "sigmoid"
    TANH = "tanh"
    SILU = "silu"
    """x * sigmoid(x)."""
    HARD_SIGMOID = "hard_sigmoid"
    """min(max(alpha * x + beta, 0), 1)."""
    HARD_SWISH = "hard_swish"
    """x * min(max(x / 6 + 0.5, 0), 1)."""
    GELU = "gelu"
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    GELU_TANH = "gelu_tanh"
    """GELU's approximation by tanh (Hendrycks and Gimpel, 2016)."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A kind with its two parameters; those that a kind has not are 0."""

    kind: ActivationKind = ActivationKind.IDENTITY
    alpha: float = 0.0
    beta: float = 0.0

    @classmethod
    def read(cls, attributes: Mapping[str, Any], prefix: str = "") -> Activation:
        """From an operator's attributes: `activation`, `activation_alpha`, `activation_beta`,
        each with `prefix` in front (`inner_` for what a DepthwisePointwise has in the middle,
        `second_` for the second output of a PointwisePair)."""
        name = f"{prefix}activation"
        return cls(
            ActivationKind(attributes.get(name, ActivationKind.IDENTITY)),
            float(attributes.get(f"{name}_alpha", 0.0)),
            float(attributes.get(f"{name}_beta", 0.0)),
        )

    def attributes(self, prefix: str = "") -> dict[str, Any]:
        """What `read` reads; nothing for the identity."""
        if self.kind is ActivationKind.IDENTITY:
            return {}
        name = f"{prefix}activation"
        return {
            name: str(self.kind),
            f"{name}_alpha": self.alpha,
            f"{name}_beta": self.beta,
        }


@dataclass(frozen=True, slots=True)
class Window:
    """A 2-D window that slides: a convolution's or a pooling's geometry. Pads are explicit."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right, as ONNX orders them."""
    dilations: tuple[int, int] = (1, 1)

    @classmethod
    def read(cls, attributes: Mapping[str, Any], prefix: str = "") -> Window:
        """From `kernel_shape`, `strides`, `pads`, `dilations`, each with `prefix` in front
        (`pool_` for what a ConvMaxPool ends in)."""

        def pair(name: str) -> tuple[int, int]:
            first, second = attributes.get(prefix + name, (1, 1))
            return int(first), int(second)

        top, left, bottom, right = attributes.get(f"{prefix}pads", (0, 0, 0, 0))
        return cls(
            pair("kernel_shape"),
            pair("strides"),
            (int(top), int(left), int(bottom), int(right)),
            pair("dilations"),
        )

    def attributes(self, prefix: str = "") -> dict[str, Any]:
        """What `read` reads."""
        return {
            f"{prefix}kernel_shape": self.kernel,
            f"{prefix}strides": self.strides,
            f"{prefix}pads": self.pads,
            f"{prefix}dilations": self.dilations,
        }

    def output(self, height: int, width: int) -> tuple[int, int]:
        """The size of what it writes over an input of this size, rounded down."""
        top, left, bottom, right = self.pads
        sizes = []
        for size, pad, kernel, stride, dilation in zip(
            (height, width),
            (top + bottom, left + right),
            self.kernel,
            self.strides,
            self.dilations,
            strict=True,
        ):
            sizes.append((size + pad - dilation * (kernel - 1) - 1) // stride + 1)
        return sizes[0], sizes[1]

    @property
    def is_pointwise(self) -> bool:
        """One element in, one out: a matrix product."""
        return self.kernel == (1, 1) and self.pads == (0, 0, 0, 0)
