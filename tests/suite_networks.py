"""Two networks of a few thousand weights, as `package.module:factory`."""

import torch
from torch import nn


def _network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 10),
    )  # fmt: skip


def narrow() -> nn.Module:
    return _network(8)


def wide() -> nn.Module:
    return _network(32)
