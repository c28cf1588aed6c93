"""Modules that do what a careful person would not, as people's modules do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WritesToInput(nn.Module):
    """An in-place operator on the input: the second call would see other values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).add_(1).sum(1)


class ReturnsViews(nn.Module):
    """Outputs that are the input, a view of it, and a buffer; in a mapping, with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"same": x, "rest": (x[:, 1:], self.table)}


class Branches(nn.Module):
    """Control flow on a value: no single graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if y.sum() > 0:
            y = y * 3
        return self.second(y)


class RefusesToCompile(nn.Module):
    """Fails under every tracer, runs otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise ValueError("not for compilers")
        return x + 1


def _seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def writes_to_input() -> nn.Module:
    """[batch, 6] -> [batch]."""
    return _seeded(WritesToInput)


def returns_views() -> nn.Module:
    """[batch, 6] -> same [batch, 6], rest [batch, 5], [6]."""
    return _seeded(ReturnsViews)


def branches() -> nn.Module:
    """[batch, 6] -> [batch, 3]."""
    return _seeded(Branches)


def refuses_to_compile() -> nn.Module:
    """[batch, 6] -> [batch, 6]."""
    return _seeded(RefusesToCompile)
