"""What lowering makes and a session runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peregrine.compiler.device_memory import moved
from peregrine.compiler.plan import Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Lowered:
    """A plan with its weights, on any device: an `Executable` moves them to where they are read."""

    plan: Plan
    weights: Mapping[str, torch.Tensor]

    def on(self, device: str) -> Lowered:
        """The same with all weights on one device, with their strides."""
        return Lowered(self.plan, {name: moved(w, device) for name, w in self.weights.items()})
