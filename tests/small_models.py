"""Tiny seeded networks that between them have every trait a backend must survive.

`SMALL[name]()` gives the network with its input specs. The module-level functions of the same
names return the bare `torch.nn.Module`, so that `small_models:conv` works as a model source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from peregrine.model.model import Model
from peregrine.types import TensorSpec


@dataclass(frozen=True)
class SmallModel:
    """A network and what its inputs look like.

    `ranges` bounds random integers per input, [low, high). `dims` sizes the symbols other
    than "batch".
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)

    def load(self, directory: Path) -> Model:
        """The network as a `Model` in `directory`, through the same door as a user's module."""
        from peregrine.model.inputs import InputSpec
        from peregrine.model.load import load

        inputs = [InputSpec(spec, self.ranges.get(spec.name)) for spec in self.inputs]
        return load(self.module, directory, inputs=inputs, dims=self.dims, name=self.name)


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a skip connection, then a classifier head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(y)))
        return self.head(x.mean((2, 3)))


class Lstm(nn.Module):
    """One step of a recurrent network that is handed its state and hands it back."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=1, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out, (h, c) = self.lstm(x, (state[0:1], state[1:2]))
        return torch.sigmoid(self.head(out[:, -1])), torch.cat((h, c))


class Attention(nn.Module):
    """One pre-norm transformer block with two heads, spelled out."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class MultiInput(nn.Module):
    """An image and a vector in; scores and a feature vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Linear(5, 8)
        self.head = nn.Linear(8, 6)

    def forward(self, image: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.conv(image)).mean((2, 3)) + self.side(side)
        return self.head(features), features


class IntInput(nn.Module):
    """Token ids through an embedding of 50 rows: an id outside [0, 50) must never be fed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.head = nn.Linear(12, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(ids)).mean(1))


class BoolInput(nn.Module):
    """A mean over the elements that a boolean mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kept = torch.where(mask.unsqueeze(-1), self.inner(x), torch.zeros_like(x))
        return kept.sum(1) / (mask.sum(1, keepdim=True).to(x.dtype) + 1)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build under a fixed seed, give BatchNorms statistics that do something, set eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean, -0.2, 0.2)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()


def conv() -> nn.Module:
    """[batch, 3, 16, 16] -> [batch, 10]."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
    )


def residual() -> nn.Module:
    """[batch, 3, 16, 16] -> [batch, 10]."""
    return _seeded(Residual)


def depthwise() -> nn.Module:
    """[batch, 3, 16, 16] -> [batch, 16, 8, 8]."""
    return _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 16, 1),
        )
    )


def lstm() -> nn.Module:
    """x [batch, 5, 8], state [2, batch, 16] -> [batch, 4], state [2, batch, 16]."""
    return _seeded(Lstm)


def attention() -> nn.Module:
    """[batch, 6, 16] -> [batch, 6, 16]."""
    return _seeded(Attention)


def multi_input() -> nn.Module:
    """image [batch, 3, 8, 8], side [batch, 5] -> [batch, 6], [batch, 8]."""
    return _seeded(MultiInput)


def int_input() -> nn.Module:
    """int64 ids [batch, 9] in [0, 50) -> [batch, 7]."""
    return _seeded(IntInput)


def bool_input() -> nn.Module:
    """x [batch, 4, 8], bool mask [batch, 4] -> [batch, 8]."""
    return _seeded(BoolInput)


def dynamic_batch() -> nn.Module:
    """[batch, 12] -> [batch, 3]."""
    return _seeded(lambda: nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)))


def dynamic_width() -> nn.Module:
    """[batch, 3, 8, width] -> [batch, 8, 4, width // 2]."""
    return _seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)))


def _f32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


SMALL: dict[str, Callable[[], SmallModel]] = {
    "conv": lambda: SmallModel("conv", conv(), (_f32("x", "batch", 3, 16, 16),)),
    "residual": lambda: SmallModel("residual", residual(), (_f32("x", "batch", 3, 16, 16),)),
    "depthwise": lambda: SmallModel("depthwise", depthwise(), (_f32("x", "batch", 3, 16, 16),)),
    "lstm": lambda: SmallModel(
        "lstm", lstm(), (_f32("x", "batch", 5, 8), _f32("state", 2, "batch", 16))
    ),
    "attention": lambda: SmallModel("attention", attention(), (_f32("x", "batch", 6, 16),)),
    "multi_input": lambda: SmallModel(
        "multi_input", multi_input(), (_f32("image", "batch", 3, 8, 8), _f32("side", "batch", 5))
    ),
    "int_input": lambda: SmallModel(
        "int_input",
        int_input(),
        (TensorSpec("ids", "int64", ("batch", 9)),),
        ranges={"ids": (0, 50)},
    ),
    "bool_input": lambda: SmallModel(
        "bool_input",
        bool_input(),
        (_f32("x", "batch", 4, 8), TensorSpec("mask", "bool", ("batch", 4))),
    ),
    "dynamic_batch": lambda: SmallModel(
        "dynamic_batch", dynamic_batch(), (_f32("x", "batch", 12),)
    ),
    "dynamic_width": lambda: SmallModel(
        "dynamic_width",
        dynamic_width(),
        (_f32("x", "batch", 3, 8, "width"),),
        dims={"width": 12},
    ),
}
