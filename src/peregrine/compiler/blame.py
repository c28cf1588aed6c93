"""Which step of a plan is the first to be wrong: alone, or only among its neighbours.

A tactic competes only after its outputs were right on random inputs, and still a plan can be wrong:
by a kernel that is wrong for these sizes of numbers, by memory that is used again too early, by a
kernel that starts before the one ahead has ended. So each step is compared with `torch_ops` on the
very tensors that it reads, and then the steps so far, as one CUDA graph, with what they gave one by
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peregrine.compiler.capture import capture
from peregrine.compiler.lower import Choice
from peregrine.compiler.operation import Operation
from peregrine.compiler.plan import Place, Step, Timed
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device

if TYPE_CHECKING:
    import torch

_COMPUTED = (Place.ARENA, Place.OUTPUT, Place.STEP)
_GRAPHS = 3
"""Replays of a graph, each on inputs of its own: a read of what was there before then shows."""


class InTorch:
    """Chooses `torch_ops` for everything."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def prepare(self, operations: Iterable[Operation]) -> None:
        list(operations)  # they are drafted as they are asked for

    def choose(self, operation: Operation) -> Choice:
        tactic = registry.torch_ops()
        return Choice(tactic, Timed(tactic=tactic.name))


@dataclass(frozen=True, slots=True)
class Blamed:
    """A step and how far its outputs are off, ||out - ref|| / ||ref||, the worst of them."""

    step: Step
    alone: float
    """Against `torch_ops` on the same inputs."""
    in_graph: float | None = None
    """As the last step of a CUDA graph, against the same steps launched one by one; None where
    there is none."""


def blame(
    executable: Executable, reference: Executable, feeds: Iterable[Mapping[str, torch.Tensor]]
) -> Iterator[Blamed]:
    """The steps in order, each as it is checked.

    Args:
        executable: to be judged; its inputs are written to.
        reference: the same steps by `torch_ops`: `build.rebuild` with `InTorch`.
        feeds: inputs by the names of the plan's tensors; the first is what steps are judged on
            alone, all are in graphs.

    Raises:
        ValueError: the two plans have other steps.
    """
    steps = executable.plan.steps
    if [s.outputs for s in steps] != [s.outputs for s in reference.plan.steps]:
        raise ValueError("the reference has other steps than the plan")
    sets = list(feeds)
    _feed(executable, sets[0])
    _feed(reference, sets[0])
    graphs = executable.plan.capturable and executable.device.type == "cuda"
    for index, step in enumerate(steps):
        for name in step.inputs:
            if name and executable.plan.tensors[name].place in _COMPUTED:
                reference.read(name).copy_(executable.read(name))
        reference.launch(slice(index, index + 1))
        executable.launch(slice(index, index + 1))
        outputs = [name for name in step.outputs if name]
        alone = max(_error(executable.read(n), reference.read(n)) for n in outputs)
        yield Blamed(step, alone, _in_graph(executable, index, sets) if graphs else None)
        if graphs:  # the inputs of the next step, as they were
            _feed(executable, sets[0])
            executable.launch(slice(index + 1))


def _in_graph(executable: Executable, last: int, sets: list[Mapping[str, torch.Tensor]]) -> float:
    """How far the outputs of step `last` differ where the steps up to it are one CUDA graph."""
    import torch

    names = [name for name in executable.plan.steps[last].outputs if name]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(executable.device)
    with capture(graph):
        executable.launch(slice(last + 1))
    worst = 0.0
    for replay in range(_GRAPHS):
        _feed(executable, sets[replay % len(sets)])
        executable.launch(slice(last + 1))
        expected = [executable.read(name).clone() for name in names]
        _feed(executable, sets[(replay + 1) % len(sets)])
        graph.replay()  # leaves something else everywhere
        _feed(executable, sets[replay % len(sets)])
        graph.replay()
        found = [executable.read(name) for name in names]
        worst = max(worst, *map(_error, found, expected))
    return worst


def _feed(executable: Executable, feeds: Mapping[str, torch.Tensor]) -> None:
    for name, buffer in executable.inputs.items():
        buffer.copy_(feeds[name])


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    import torch

    wide = expected.double()
    off, norm = torch.linalg.vector_norm(found.double() - wide), torch.linalg.vector_norm(wide)
    ratio = float(off / norm) if float(norm) else float(off)
    return ratio if ratio == ratio else float("inf")
