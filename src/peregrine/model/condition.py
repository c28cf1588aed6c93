"""Random weights whose activations keep unit scale, so that reduced precision means something.

Plainly random ones underflow (mobilenet_v2) or overflow (resnet101) in fp16 on every runtime,
since BatchNorm's default statistics normalise nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BATCH = 4
# The scale of a residual branch against its skip. At 1, tens of random blocks amplify a rounding
# error chaotically: resnet152 in fp32 then differs from itself in float64 by 4e-4, in fp16 by
# 18 %, which would say nothing of a backend. Trained networks have small branches too.
_BRANCH_SCALE = 0.2


def condition(module: nn.Module, shape: tuple[int, ...], seed: int) -> str:
    """Condition a freshly initialised module in place, in one pass over random inputs.

    With BatchNorm, its running statistics become those of the pass. Without, every convolution
    and linear layer is scaled and shifted by channel to zero mean and unit variance over the
    pass (layer-sequential unit variance).

    Args:
        module: takes one float32 input; left in eval mode.
        shape: of one input, without the batch.
        seed: of the inputs, uniform in [0, 1).

    Returns:
        What was done, in words for the report.
    """
    inputs = torch.rand(_BATCH, *shape, generator=torch.Generator().manual_seed(seed))
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    with torch.inference_mode():
        if norms:
            for norm in _branch_ends(module):
                norm.weight.fill_(_BRANCH_SCALE)
            _set_statistics(module, norms, inputs)
            return "BatchNorm statistics conditioned on random inputs"
        _unit_variance(module, inputs)
    return "layers scaled to unit variance on random inputs"


def _branch_ends(module: nn.Module) -> Iterator[_BatchNorm]:
    """The last BatchNorm of each residual branch, in the block classes of the zoo's packages."""
    for block in module.modules():
        kind = type(block).__name__
        norm: object = None
        if kind in ("BasicBlock", "Bottleneck"):
            norm = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        elif kind == "InvertedResidual" and getattr(block, "use_res_connect", False):
            norm = list(block.modules())[-1]
        if isinstance(norm, _BatchNorm):
            yield norm


def _set_statistics(module: nn.Module, norms: list[_BatchNorm], inputs: Tensor) -> None:
    # Only the norms go to training mode: dropout must not touch the statistics.
    module.eval()
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average: one pass sets the statistics outright
        layer.train()
    module(inputs)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    module.eval()


def _unit_variance(module: nn.Module, inputs: Tensor) -> None:
    module.eval()
    seen: set[int] = set()

    def normalise(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if id(layer) in seen:  # a shared layer was conditioned at its first use
            return None
        seen.add(id(layer))
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        channel = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
        others = [axis for axis in range(output.ndim) if axis != channel]
        along = [-1 if axis == channel else 1 for axis in range(output.ndim)]
        mean = output.mean(others)
        scale = output.std(others).clamp_min(1e-6)
        weight.div_(scale.view(-1, *[1] * (weight.ndim - 1)))
        if isinstance(bias, Tensor):
            bias.sub_(mean).div_(scale)
            output = output - mean.view(along)
        return output / scale.view(along)

    handles = [
        layer.register_forward_hook(normalise)
        for layer in module.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    module(inputs)
    for handle in handles:
        handle.remove()
