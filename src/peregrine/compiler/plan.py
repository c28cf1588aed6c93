"""The plan of an engine: what runs, in which order, on which memory. Data only, kept as JSON."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from peregrine.compiler.operation import Operation, TensorType


class Place(enum.StrEnum):
    """Which memory a tensor lies in."""

    INPUT = "input"
    """A buffer of the session that the caller's input is copied to."""
    OUTPUT = "output"
    """A buffer of the session that the caller reads."""
    WEIGHT = "weight"
    """The weights file, under the tensor's name."""
    ARENA = "arena"
    """The one block that activations share, at `offset`."""
    STEP = "step"
    """Allocated by the step that makes it, at every inference: its sizes are not known, or the
    operator answers with a view."""
    HOST = "host"
    """A constant in the CPU's memory that the step reads while it starts: a shape, an axis."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A named tensor. Two tensors of one `offset` and place overlap: that is how a concatenation
    is written by its producers, and how memory is used again."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    """In elements."""
    place: Place
    offset: int = 0
    """Bytes from the start of the place; of an INPUT or OUTPUT, from its own start."""
    buffer: str = ""
    """Of an INPUT or OUTPUT: whose buffer it lies in, where that is another tensor's."""

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape, self.strides)


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """A tactic that was tried: how long it took, or why it was not let in."""

    tactic: str
    config: dict[str, Any] = {}
    ms: float | None = None
    """Median on the device; None where it was not timed."""
    predicted_ms: float | None = None
    error: float | None = None
    """Relative error against the reference, ||out - ref|| / ||ref||."""
    refused: str = ""
    """Why it may not compete; empty where it may."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One launch of one tactic."""

    name: str
    operation: Operation
    """Its inputs that are constants have the types they had before the tactic packed them."""
    inputs: tuple[str, ...]
    """Names of tensors; empty where an optional input is absent."""
    outputs: tuple[str, ...]
    chosen: Timed
    runners_up: tuple[Timed, ...] = ()
    """The other tactics that were tried, best first."""
    over: str = ""
    """The input on whose memory the first output lies, which this step reads last; empty where it
    has its own."""
    workspace: int = 0
    """Bytes of scratch memory, shared by all steps."""
    state: int = 0
    """Bytes of memory of its own."""
    sources: tuple[str, ...] = ()
    """Names of the nodes of the user's graph that were fused into it."""
    flops: float = 0.0
    """Multiplications and additions, each counted as one."""
    bytes: float = 0.0
    """The fewest bytes it must move: each input read once, each output written once."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """How the activations share their block; bytes."""

    arena: int
    """What is allocated."""
    lower_bound: int
    """The most that is alive at one time: no plan needs less."""
    sum_of_tensors: int
    """What they would take if none shared."""
    weights: int
    workspace: int
    state: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to run a network at one size of each symbol, beside its weights."""

    name: str
    dims: dict[str, int]
    precision: str
    inputs: tuple[str, ...]
    """Names of the tensors that hold the model's inputs, in its order."""
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    steps: tuple[Step, ...]
    memory: Memory
    apart: tuple[tuple[str, ...], ...] = ()
    """Sets of the user's nodes, by name, that were not fused: they are faster one by one."""
    slices: tuple[tuple[str, str, int], ...] = ()
    """Chains of steps, by the outputs of the first and of the last, that are done for a part of the
    images at a time, and in how many parts."""
    capturable: bool = True
    """Whether an inference can be captured as a CUDA graph: nothing in it waits for the GPU."""
    notes: tuple[str, ...] = ()
