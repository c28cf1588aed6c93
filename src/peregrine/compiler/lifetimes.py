"""How long the tensors of a plan are needed, and which of them take another's place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from peregrine.compiler.memory import Block
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


def arena_blocks(
    steps: Sequence[Step],
    tensors: Mapping[str, Tensor],
    outputs: Sequence[str],
    roots: Mapping[str, str],
    sizes: Mapping[str, int],
) -> dict[str, Block]:
    """The memory that the arena's tensors need, if each had its own.

    Args:
        outputs: of the plan.
        roots: of each tensor in the arena the one whose memory it is a slice of, itself if of none.
        sizes: bytes of each root.

    Returns:
        Of each root its block: from the first step that writes into it to the last that may read
        it; in the order of the first steps.
    """
    ends = last_uses(steps, tensors, outputs)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in step.outputs:
            if name in roots:
                root = roots[name]
                first.setdefault(root, index)
                last[root] = max(last.get(root, index), ends.get(name, index))
        for name in step.inputs:
            if name in roots:
                root = roots[name]
                last[root] = max(last[root], ends[name])
    return {root: Block(root, sizes[root], first[root], last[root]) for root in first}


def written_over(
    steps: Sequence[Step],
    blocks: Mapping[str, Block],
    roots: Mapping[str, str],
    may: Sequence[Collection[str]],
) -> dict[int, str]:
    """The steps whose first output takes the place of an input, with the name of that input.

    Both are whole blocks: what is a slice of another tensor, or is filled by several steps, stays
    where it is. The step is the last to read the input, and reads it as nothing else.

    Args:
        blocks, roots: as in `arena_blocks`.
        may: of each step the names of the inputs that its tactic can write over
            (`tactics.base.may_write_over`).
    """
    writers = Counter(roots[name] for step in steps for name in step.outputs if name in roots)
    found = {}
    for index, (step, names) in enumerate(zip(steps, may, strict=True)):
        output = step.outputs[0]
        if roots.get(output) != output or writers[output] != 1:
            continue
        read = Counter(roots[name] for name in step.inputs if name in roots)
        for name in names:
            whole = roots.get(name) == name and read[name] == 1
            if whole and blocks[name].last == index:
                found[index] = name
                break
    return found


def merged(
    steps: Sequence[Step], blocks: Mapping[str, Block]
) -> tuple[list[Block], dict[str, str]]:
    """The blocks with one for each chain of tensors that were written over each other
    (`Step.over`), and of each block the one whose place it has."""
    homes: dict[str, str] = {name: name for name in blocks}
    for step in steps:
        if step.over:
            homes[step.outputs[0]] = homes[step.over]
    found: dict[str, Block] = {}
    for name, home in homes.items():
        own, other = blocks[name], found.get(home, blocks[home])
        first, last = min(own.first, other.first), max(own.last, other.last)
        found[home] = Block(home, max(own.bytes, other.bytes), first, last)
    return list(found.values()), homes
