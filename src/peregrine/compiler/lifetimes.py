"""How long the tensors of a plan are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peregrine.compiler.plan import Place, Step, Tensor


def last_uses(
    steps: Sequence[Step], tensors: Mapping[str, Tensor], outputs: Sequence[str]
) -> dict[str, int]:
    """The last step that may read each tensor. What a step allocated itself may be a view of what
    the step read, which then lives as long."""
    ends = dict.fromkeys(outputs, len(steps))
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        views = [o for o in step.outputs if o and tensors[o].place is Place.STEP]
        end = max([index, *(ends.get(o, index) for o in views)])
        for name in step.inputs:
            if name:
                ends[name] = max(ends.get(name, 0), end)
    return ends
