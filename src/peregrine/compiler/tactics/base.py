"""The contract of a tactic: one implementation of one or more operators.

A tactic says what it takes, lists configurations worth trying, predicts what each costs, repacks
weights once, and binds itself to tensors. It never times itself: the autotuner holds the clock,
and lets it compete only after its outputs passed the comparison with the reference.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from peregrine.compiler.operation import Operation
from peregrine.types import Scalar, Support

if TYPE_CHECKING:
    import torch

Config: TypeAlias = Mapping[str, Scalar]
"""One way of running a tactic: tile sizes, a plan's index. JSON scalars only."""
Launch: TypeAlias = Callable[[], None]
"""Starts the work on the current stream; on a GPU it can be captured in a CUDA graph, so it
allocates nothing, waits for nothing and reads no device memory from the host."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a tactic may know of the device it is for."""

    name: str
    """As torch names it: `cpu`, `cuda:0`."""
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability; (0, 0) on a CPU."""
    multiprocessors: int = 1
    flops: float = 1e11
    """Measured peak of dense float16 matrix products, operations a second."""
    bandwidth: float = 2e10
    """Measured device-memory bandwidth, bytes a second."""

    @property
    def is_cuda(self) -> bool:
        return self.name.startswith("cuda")


class Tactic(abc.ABC):
    """Stateless; its module imports its library inside methods only."""

    name: ClassVar[str]

    @abc.abstractmethod
    def supports(self, operation: Operation, device: Device) -> Support:
        """Whether it can run this operation there; cheap, compiles nothing."""

    @abc.abstractmethod
    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        """What to try, best guess first; at least one where `supports` says yes."""

    @abc.abstractmethod
    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        """Seconds it should take, from sizes alone: the autotuner tries the cheapest first and
        stops early. Right within a factor of about 3; the order matters more than the number."""

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:  # noqa: B027
        """Compile kernels ahead, on several processors where that pays; optional."""

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The inputs with constants in the form that `bind` wants (layout, padding), on the
        device they came on. Entries that are no constants may be None and stay what they are."""
        return list(inputs)

    def workspace(self, operation: Operation, config: Config, device: Device) -> int:
        """Bytes of scratch memory `bind` needs. It holds anything at first, is shared with other
        steps, and is the step's own only while it runs."""
        return 0

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        """Bytes of memory of this step alone, zero before its first run, which it must leave zero
        (the counters of a split reduction)."""
        return 0

    def can_overlap(self, config: Config) -> bool:
        """Whether its kernels may start before the one ahead has ended: they keep the rules of
        `kernels.pdl`."""
        return "pdl" in config

    def early(self, config: Config) -> Config:
        """The same with kernels that start before the one ahead has ended, where they can."""
        return {**config, "pdl": True} if self.can_overlap(config) else config

    def serial(self, config: Config) -> Config:
        """The same with kernels that start when the one ahead has ended."""
        return {**config, "pdl": False} if self.can_overlap(config) else config

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """Positions of inputs on whose memory the first output may lie, where it has their type.

        The promise: each element of such an input is read by the one program that writes the same
        element of the output, before it writes it, and by nobody else. A residual that is added in
        the epilogue is such an input; what a convolution slides its window over is not. None
        unless a tactic says so: a library has to promise it.
        """
        return frozenset()

    @abc.abstractmethod
    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        """A function that runs the operation on these tensors.

        Args:
            inputs: with the strides of `operation`; constants as `pack` gave them.
            outputs: with the strides of `operation`, to be written whole; they overlap no input,
                but that the first may lie on one of `writes_over`.
            workspace: uint8, at least `workspace(...)` bytes, 256-byte aligned; None for 0.
            state: uint8, `state(...)` bytes, 256-byte aligned; None for 0.
        """


def may_write_over(tactic: Tactic, operation: Operation, config: Config) -> frozenset[int]:
    """Positions of the inputs whose memory the first output may be given: computed tensors of its
    type that the tactic writes over. Kernels that start early write nothing before the ones ahead
    have ended."""
    return frozenset(
        position
        for position in tactic.writes_over(operation, config) - operation.constants
        if position < len(operation.inputs) and operation.inputs[position] == operation.outputs[0]
    )
