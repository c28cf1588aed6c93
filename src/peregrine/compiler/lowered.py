"""What lowering makes and a session runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peregrine.compiler.plan import Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Lowered:
    """A plan with its weights, which lie on the device (on the CPU where the plan says HOST)."""

    plan: Plan
    weights: Mapping[str, torch.Tensor]
