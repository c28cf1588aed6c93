"""Steps in a row that are done for a part of the images at a time.

Where a plan needs the most memory there is a large tensor that one step makes for the next: a stem
and the pooling behind it, a pointwise convolution and the depthwise one that it widens the image
for. In parts, only a part of that tensor is ever there. Small enough, it stays in the L2 cache and
is not moved through memory at all; too small, the parts leave multiprocessors idle. Which of both
it is, the clock says: whole plans are timed, since a step by itself finds its input in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from peregrine.compiler.in_turns import in_turns, settled
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.memory import ALIGNMENT
from peregrine.compiler.passes.slice_batch import BATCHWISE, Chain
from peregrine.compiler.plan import Place, Plan, Step
from peregrine.compiler.tactics.base import Device

Slices: TypeAlias = Mapping[Chain, int]
Clock: TypeAlias = Callable[[Lowered, Lowered], tuple[float, float]]
"""The times of two plans, in one unit."""

PARTS = (16, 2)
"""In how many parts the images are tried to be done."""
_CHAINS = 3
"""That are tried, the one around the largest tensor first."""
_LARGE = 0.3
"""Of the arena, from which on a tensor between two steps is worth a try."""
_ALONG = 0.1
"""Of the largest tensor of a chain, from which on the next one belongs to it."""
_SMALLEST = 32 << 20
"""Bytes of an arena that is left as it is."""
_LESS = 0.95
"""Of the arena, below which it is smaller."""
_SLOWER, _FASTER = 1.002, 0.99
"""Of the plan's time, up to which it is not slower and below which it is faster."""


def sliced(whole: Lowered, lowered: Callable[[Slices], Lowered], clock: Clock) -> Lowered:
    """The plan with chains of steps done in parts, where that takes less memory and no more time,
    or less time and no more memory.

    Args:
        whole: the plan without.
        lowered: makes the plan with these slices.
        clock: of the device.
    """
    best, slices, seen = whole, dict[Chain, int](), set[Chain]()
    for _ in range(_CHAINS):
        # Names of before: what is in parts already stays so.
        known = (
            c for c in chains(best.plan) if c not in seen and set(c) <= set(whole.plan.tensors)
        )
        chain = next(known, None)
        if chain is None:
            break
        seen.add(chain)
        for parts in PARTS:
            if _divides(best.plan, chain, parts):
                tried = lowered({**slices, chain: parts})
                if _is_better(tried, best, clock):
                    best = tried
                    slices[chain] = parts
                    break
    return best


def chains(plan: Plan) -> Iterator[Chain]:
    """Steps of which each makes a tensor for the next alone, around the large ones, the largest
    first; none on a device where steps are not timed."""
    arena = plan.memory.arena
    if arena < _SMALLEST or all(step.chosen.ms is None for step in plan.steps):
        return
    between = [_between(plan, index) for index in range(len(plan.steps) - 1)]
    order = sorted(range(len(between)), key=lambda index: (-between[index], index))
    for index in order:
        if between[index] >= _LARGE * arena:
            least, first, last = _ALONG * between[index], index, index
            while first > 0 and between[first - 1] >= least:
                first -= 1
            while last + 1 < len(between) and between[last + 1] >= least:
                last += 1
            yield plan.steps[first].outputs[0], plan.steps[last + 1].outputs[0]


def _divides(plan: Plan, chain: Chain, parts: int) -> bool:
    """Whether the images can be dealt out, and each part of what is read and of what is written
    begins where a tensor of its own could."""
    first = next(step for step in plan.steps if step.outputs[0] == chain[0])
    ends = [plan.tensors[name] for name in (first.inputs[0], chain[1])]
    return all(
        tensor.shape is not None
        and tensor.shape[0] % parts == 0
        and tensor.type.bytes // parts % ALIGNMENT == 0
        for tensor in ends
    )


def _between(plan: Plan, index: int) -> int:
    """Bytes of what a step makes for the next step alone, where both can be sliced; else 0."""
    step, after = plan.steps[index : index + 2]
    if not (_can_be_sliced(step) and _can_be_sliced(after)):
        return 0
    name = step.outputs[0]
    readers = [s for s in plan.steps if name in s.inputs]
    tensor = plan.tensors[name]
    alone = readers == [after] and after.inputs[0] == name and tensor.place is Place.ARENA
    return tensor.type.bytes if alone else 0


def _can_be_sliced(step: Step) -> bool:
    """As the pass sees it: each image by itself, and nothing computed read but the images."""
    operation = step.operation
    others = range(1, len(operation.inputs))
    return (
        operation.operator in BATCHWISE
        and len(step.outputs) == 1
        and all(i in operation.constants for i in others if operation.inputs[i] is not None)
    )


def _is_better(tried: Lowered, than: Lowered, clock: Clock) -> bool:
    now, before = tried.plan.memory.arena, than.plan.memory.arena
    if now > before:
        return False
    seconds, were = clock(tried, than)
    return seconds < _FASTER * were or (seconds <= _SLOWER * were and now <= _LESS * before)


def by_running(device: Device) -> Clock:
    """A clock of a GPU: both plans as CUDA graphs, in turns."""

    def clock(one: Lowered, other: Lowered) -> tuple[float, float]:
        import torch

        try:
            with settled(one, other, device=device.name) as executables:
                found = in_turns(*(executable.start for executable in executables))
                return found[0], found[1]
        except torch.OutOfMemoryError:
            return math.inf, 0.0

    return clock


def by_steps(one: Lowered, other: Lowered) -> tuple[float, float]:
    """The sums of what the steps took by themselves, in milliseconds."""
    first, second = (
        math.fsum(step.chosen.ms or 0.0 for step in lowered.plan.steps) for lowered in (one, other)
    )
    return first, second
