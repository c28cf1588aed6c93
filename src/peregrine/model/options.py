"""What a user asked of a model besides naming it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peregrine.model.inputs import InputSpec
from peregrine.types import Feeds


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The arguments of `load` but for the source and the directory; see there."""

    inputs: tuple[InputSpec, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    example: Feeds | None = None
    seed: int = 0
    weights: str = "auto"
    trust: bool = False
    name: str = ""
