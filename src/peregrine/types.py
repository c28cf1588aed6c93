"""The words every room shares: tensors, profiles, candidates, targets, placements.

Nothing here imports more than the standard library and numpy, because a worker
in a foreign interpreter imports this module before anything else.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]
Dim: TypeAlias = int | str
Scalar: TypeAlias = str | int | float | bool


class Precision(enum.StrEnum):
    """Arithmetic of a candidate; inputs and outputs keep the model's own dtypes."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output.

    `dtype` is numpy's name ("float32", "int64", "bool"). A dimension is an int, or a
    string that names a symbol: equal symbols are equal sizes, everywhere in a model.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions, in order, each once."""
        return tuple(dict.fromkeys(dim for dim in self.shape if isinstance(dim, str)))

    def resolve(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape under `dims`; KeyError names a symbol without a size."""
        return tuple(dims[dim] if isinstance(dim, str) else dim for dim in self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}:{'x'.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True, slots=True)
class DimRange:
    """Sizes one symbolic dimension may take, and the one to optimise for."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"expected 1 <= min <= opt <= max, got {self}")


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes of every symbolic dimension that a session must serve."""

    dims: Mapping[str, DimRange] = field(default_factory=dict)

    @classmethod
    def fixed(cls, dims: Mapping[str, int]) -> Profile:
        """A profile of exactly one size per symbol."""
        return cls({name: DimRange(size, size, size) for name, size in dims.items()})

    @property
    def is_fixed(self) -> bool:
        return all(r.min == r.max for r in self.dims.values())

    @property
    def opt(self) -> dict[str, int]:
        """The size of each symbol to optimise for."""
        return {name: r.opt for name, r in self.dims.items()}

    def covers(self, dims: Mapping[str, int]) -> bool:
        """Whether a session built for this profile may be fed sizes `dims`."""
        return all(
            name in self.dims and self.dims[name].min <= size <= self.dims[name].max
            for name, size in dims.items()
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """backend x precision x options: one row of the race.

    `variant` names the flavour within a backend (a provider, a layout, a hint);
    `options` are what the backend needs to rebuild it, JSON scalars only.
    """

    backend: str
    variant: str = ""
    precision: Precision = Precision.FP32
    options: Mapping[str, Scalar] = field(default_factory=dict)
    graph: str = ""
    """The converted graph it reads, as `peregrine.model.graphs` names them (`u8s8`), with
    `+repaired` where layers of it were kept in fp32; empty for the model's own."""

    @property
    def id(self) -> str:
        """Stable name, e.g. `onnxruntime[CPUExecutionProvider] fp32 threads=2`."""
        head = f"{self.backend}[{self.variant}]" if self.variant else self.backend
        # An fp16 row of the graph `fp16` needs the word once.
        graph = [self.graph] if self.graph not in ("", self.precision) else []
        tail = [k if v is True else f"{k}={v}" for k, v in sorted(self.options.items())]
        return " ".join([head, str(self.precision), *graph, *tail])


_CPUS = "/sys/devices/system/cpu"


def physical_cores() -> int:
    """Physical cores this process may run on, at least 1."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return max(1, (os.cpu_count() or 2) // 2)
    cores = set()
    for cpu in allowed:
        try:
            cores.add(Path(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


@dataclass(frozen=True, slots=True)
class Target:
    """Where and for what sizes to compile: a device, a profile, a thread budget."""

    device: str = "cpu"
    profile: Profile = field(default_factory=Profile)
    threads: int = 0
    """Compute threads; 0 lets the runtime take all physical cores."""

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True, slots=True)
class Support:
    """An answer with its reason: can this run here, and if not, what would change it."""

    ok: bool
    reason: str = ""
    fix: str = ""
    """The exact command or setting that would change the answer."""

    def __bool__(self) -> bool:
        return self.ok

    @classmethod
    def yes(cls) -> Support:
        return cls(True)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Support:
        return cls(False, reason, fix)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a session's nodes really ran, as the runtime itself reported it."""

    device: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    """Provider, engine or device -> number of nodes it executed."""
    precisions: Mapping[str, int] = field(default_factory=dict)
    """Arithmetic -> convolutions, matrix products and recurrent layers computed in it, in the
    runtime's own words for it (`u8`, `bf16`, `f32`). Empty where the runtime does not tell."""
    copies: int = 0
    """Copies between devices inside one inference."""
    fell_back: bool = False
    """Nodes ran somewhere the candidate did not ask for."""
    graph_breaks: int | None = None
    """Breaks of a traced graph; None where the word has no meaning."""
    proof: str = ""
    """How this is known, e.g. `onnxruntime profile of one run`."""
    detail: str = ""
    """What fell back or broke, in a sentence."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a spec's `dtype`; bfloat16 and fp8 need `ml_dtypes`."""
    try:
        found: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
    return found
