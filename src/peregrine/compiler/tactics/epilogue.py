"""What a library takes as weights, and what its kernel leaves to be done on its output: bias,
residual and activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peregrine.compiler.operators import Activation, ActivationKind

if TYPE_CHECKING:
    import torch


def packed(
    inputs: Sequence[torch.Tensor | None], layout: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor | None]:
    """The inputs (X, W, B, Z) of which W, where it is given, lies as `layout` says, contiguous,
    and B has its dtype: libraries take one."""
    made = list(inputs)
    weight = made[1]
    bias = made[2] if len(made) > 2 else None
    if weight is not None:
        made[1] = layout(weight).contiguous()
    if bias is not None and weight is not None:
        made[2] = bias.to(weight.dtype).contiguous()
    return made


def finish(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: Activation,
) -> list[Callable[[], object]]:
    """The passes over y that turn it into activation(y + bias + residual), one kernel each on a
    GPU, in order; none where there is nothing to do. Each writes in place and allocates nothing.

    Args:
        y: of any strides, rounded to its dtype after each pass.
        bias: broadcasts to y.
        residual: of y's sizes.
    """
    passes: list[Callable[[], object]] = []
    if bias is not None:
        passes.append(lambda: y.add_(bias))
    if residual is not None:
        passes.append(lambda: y.add_(residual))
    return passes + _activate(y, activation)


def _activate(y: torch.Tensor, activation: Activation) -> list[Callable[[], object]]:
    import torch

    aten = torch.ops.aten
    alpha, beta = activation.alpha, activation.beta
    match activation.kind:
        case ActivationKind.IDENTITY:
            return []
        case ActivationKind.RELU:
            return [y.relu_]
        case ActivationKind.CLIP:
            return [lambda: y.clamp_(alpha, beta)]
        case ActivationKind.LEAKY_RELU:
            return [lambda: aten.leaky_relu_(y, alpha)]
        case ActivationKind.SIGMOID:
            return [y.sigmoid_]
        case ActivationKind.TANH:
            return [y.tanh_]
        case ActivationKind.SILU:
            return [lambda: aten.silu_(y)]
        case ActivationKind.HARD_SIGMOID:
            return [lambda: y.mul_(alpha), lambda: y.add_(beta), lambda: y.clamp_(0, 1)]
        case ActivationKind.HARD_SWISH:
            return [lambda: aten.hardswish_(y)]
        case ActivationKind.GELU:
            return [lambda: aten.gelu_(y)]
        case ActivationKind.GELU_TANH:
            return [lambda: aten.gelu_(y, approximate="tanh")]
