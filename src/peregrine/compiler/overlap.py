"""Programmatic dependent launch of a whole plan: kept where the outputs stay the same and it pays.

Kernels that keep the rules of `kernels.pdl` may start before the one ahead of them has ended. What
can go wrong there is a read of what is not written yet. A tactic's own check cannot see that, since
it reads the same inputs again and again; so the plan is compared with itself as a whole, as it will
run: as CUDA graphs, with inputs that change from one inference to the next, bit by bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from peregrine.compiler.in_turns import in_turns, settled
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.plan import Plan, Step
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device

if TYPE_CHECKING:
    import torch

_INFERENCES = 16
"""That are compared."""
_FASTER = 0.99
"""Of the plan's time, below which it is faster."""
_GAIN_MS = 5e-4
"""The most that starting early was worth to a kernel, on an H200."""


def overlapped(lowered: Lowered, device: Device) -> Lowered:
    """The plan with kernels that start early, or as it is where that is not faster, or not right.

    Takes the device memory of a second plan meanwhile, and compiles the kernels that it changes.
    A plan whose outputs do not repeat bit by bit stays as it is.
    """
    import torch

    plan = starting_early(lowered.plan)
    if plan == lowered.plan or not plan.capturable or device.capability < (9, 0):
        return lowered
    if not may_pay(plan):
        return lowered
    _compile(lowered.plan, plan, device)
    changed = replace(lowered, plan=plan)
    try:
        with settled(lowered, changed, device=device.name) as (now, early):
            if not (now.is_captured and early.is_captured and agree(now, early)):
                return lowered
            seconds, early_seconds = in_turns(now.start, early.start)
            return changed if early_seconds < _FASTER * seconds else lowered
    except torch.OutOfMemoryError:
        return lowered


def may_pay(plan: Plan) -> bool:
    """Whether its kernels are short enough, by what the autotuner measured, that starting them
    early can make the plan plainly faster."""
    spent = sum(step.chosen.ms or 0.0 for step in plan.steps)
    return _GAIN_MS * len(plan.steps) > (1 - _FASTER) * spent


def starting_early(plan: Plan) -> Plan:
    """All kernels early that can be, but for those beside a library's.

    cuDNN launches some of its own kernels that way (the edges of a captured graph show it) and they
    read at once: they trust that the kernel ahead lets them start only when its results are there,
    while ours let the next one start early, and it waits by itself. Behind a library's kernel that
    has not waited, the end of the kernel ahead does not mean the end of all before it.
    """
    able = [registry.get(step.chosen.tactic).can_overlap(step.chosen.config) for step in plan.steps]
    steps = []
    for index, step in enumerate(plan.steps):
        if all(able[max(0, index - 1) : index + 2]):
            config = registry.get(step.chosen.tactic).early(step.chosen.config)
            chosen = msgspec.structs.replace(step.chosen, config=dict(config))
            step = msgspec.structs.replace(step, chosen=chosen)
        steps.append(step)
    return msgspec.structs.replace(plan, steps=tuple(steps))


def agree(one: Executable, other: Executable) -> bool:
    """Whether two plans give the same outputs, bit by bit, for random inputs that change each
    time; numbers that are none count as equal."""
    for _ in range(_INFERENCES):
        for name, buffer in one.inputs.items():
            if buffer.dtype.is_floating_point:
                buffer.normal_()
            else:
                buffer.random_(0, 2)
            other.inputs[name].copy_(buffer)
        one.start()
        other.start()
        if not all(map(_same, one.outputs(), other.outputs())):
            return False
    return True


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _compile(was: Plan, plan: Plan, device: Device) -> None:
    """Compile, on all processors, the kernels of steps that have changed."""
    changed = [new for old, new in zip(was.steps, plan.steps, strict=True) if new is not old]
    with ThreadPoolExecutor(max_workers=len(changed)) as pool:
        for done in [pool.submit(_compile_step, step, device) for step in changed]:
            done.result()


def _compile_step(step: Step, device: Device) -> None:
    tactic = registry.get(step.chosen.tactic)
    tactic.compile(step.operation, [step.chosen.config], device)
