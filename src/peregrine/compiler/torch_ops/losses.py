"""Losses, as a training graph ends in them."""

from __future__ import annotations

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call, Result, operator


def _negative_log_likelihood(
    call: Call, log_probabilities: Tensor, target: Tensor, weight: Tensor | None
) -> Tensor:
    """log_probabilities (N, C, ...), target (N, ...) of classes, weight (C) -> (N, ...), or a
    scalar as `reduction` says. A mean is weighted; `ignore_index` counts nowhere."""
    ignored = call.get("ignore_index")
    counted = torch.ones_like(target, dtype=torch.bool)
    if ignored is not None:
        counted = target != ignored
    classes = torch.where(counted, target, 0).long()
    weights = counted.to(log_probabilities.dtype)
    if weight is not None:
        weights = weights * wide(weight)[classes]
    picked = log_probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = torch.where(counted, -picked * weights, 0)
    match call.get("reduction", "mean"):
        case "none":
            return losses
        case "sum":
            return losses.sum()
        case _:
            return losses.sum() / weights.sum()


@operator("ai.onnx.NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    return _negative_log_likelihood(call, wide(x), target, weight).to(x.dtype)


@operator("ai.onnx.SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    call: Call, scores: Tensor, labels: Tensor, weights: Tensor | None = None
) -> Result:
    log_probabilities = torch.log_softmax(wide(scores), 1)
    loss = _negative_log_likelihood(call, log_probabilities, labels, weights).to(scores.dtype)
    return loss if call.outputs == 1 else (loss, log_probabilities.to(scores.dtype))
