"""The arena: one block of memory that all activations share, each at an offset.

Two tensors may lie on the same bytes where no step has both alive. Finding the smallest arena is
offline dynamic storage allocation, which is NP-hard (Garey and Johnson, 1979, problem SR2);
placing the blocks one after the other at the lowest or tightest gap, the largest first, comes close
(Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). Which order
is best depends on the network, so several are tried, and a search of bounded length improves the
best of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Bytes: what `cudaMalloc` promises, and more than any vector load asks for."""
_SEARCH = 1_000_000
"""Bound of the search: pairs of blocks looked at, about half a second."""
_PATIENCE = 400
"""Changes in a row that did not help, after which the search starts from the best again."""


@dataclass(frozen=True, slots=True)
class Block:
    """Memory that is needed from step `first` to step `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.bytes < 0 or self.last < self.first:
            raise ValueError(f"no such block: {self}")

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each block lies."""

    offsets: Mapping[str, int]
    """Bytes from the arena's start, multiples of `ALIGNMENT`."""
    arena: int
    """Bytes to allocate, a multiple of `ALIGNMENT`."""
    lower_bound: int
    """The most bytes that are alive at one step: no layout needs less."""
    sum_of_blocks: int
    """Bytes if nothing were shared."""


def plan_arena(blocks: Sequence[Block]) -> Layout:
    """Offsets at which no two blocks overlap that are alive together.

    The same blocks in the same order give the same layout. Takes under a second; quadratic in the
    number of blocks that are alive together.

    Raises:
        ValueError: two blocks have one name.
    """
    if len({block.name for block in blocks}) != len(blocks):
        raise ValueError("two blocks have one name")
    sized = [block for block in blocks if block.bytes]
    best = _smallest(sized)
    offsets = {block.name: 0 for block in blocks if not block.bytes}
    offsets.update(zip((block.name for block in sized), best.offsets, strict=True))
    return Layout(
        offsets=offsets,
        arena=best.size,
        lower_bound=_most_alive(sized, lambda block: block.bytes),
        sum_of_blocks=sum(block.bytes for block in sized),
    )


def alive(blocks: Sequence[Block], steps: int) -> tuple[int, ...]:
    """Bytes that are needed at each of the steps from 0."""
    changes = _alive(blocks, lambda block: block.bytes)
    found, now = [], 0
    for step in range(steps):
        now = changes.get(step, now)
        found.append(now)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Placed:
    """Offsets in the order of the blocks, and where the last byte ends."""

    offsets: tuple[int, ...]
    size: int


class _Placer:
    """Places blocks in an order; what does not change between orders is worked out once."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.sizes = [aligned(block.bytes) for block in blocks]
        self.meeting = _meeting(blocks)
        self.floor = _most_alive(blocks, lambda block: aligned(block.bytes))
        self.work = len(blocks) + sum(map(len, self.meeting))

    def place(self, order: Sequence[int], tightest: bool) -> _Placed:
        """Each block in its turn goes to the lowest gap that it fits in, or to the tightest."""
        offsets = [-1] * len(self.sizes)
        for i in order:
            taken = sorted(
                (offsets[j], offsets[j] + self.sizes[j]) for j in self.meeting[i] if offsets[j] >= 0
            )
            offsets[i] = _gap(taken, self.sizes[i], tightest)
        ends = [offset + size for offset, size in zip(offsets, self.sizes, strict=True)]
        return _Placed(tuple(offsets), max(ends, default=0))


def _meeting(blocks: Sequence[Block]) -> list[list[int]]:
    """Of each block, those that are alive together with it."""
    found: list[list[int]] = [[] for _ in blocks]
    alive: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda i: blocks[i].first):
        alive = [j for j in alive if blocks[j].last >= blocks[i].first]
        for j in alive:
            found[i].append(j)
            found[j].append(i)
        alive.append(i)
    return found


def _gap(taken: Sequence[tuple[int, int]], size: int, tightest: bool) -> int:
    """The offset for a block beside spans sorted by their starts, which may overlap each other."""
    end, chosen, spare = 0, -1, 0
    for start, stop in taken:
        room = start - end - size
        if room >= 0 and (chosen < 0 or room < spare):
            chosen, spare = end, room
            if not tightest:
                break
        end = max(end, stop)
    return chosen if chosen >= 0 else end


def _smallest(blocks: Sequence[Block]) -> _Placed:
    """The best of all orders and of the search from the best of them."""
    placer = _Placer(blocks)
    best, best_order, best_tightest = _Placed((), 0), [0], False
    for order in _orders(blocks):
        for tightest in (True, False):
            found = placer.place(order, tightest)
            if not best.offsets or found.size < best.size:
                best, best_order, best_tightest = found, order, tightest
    return _search(placer, best, best_order, best_tightest)


def _orders(blocks: Sequence[Block]) -> Iterator[list[int]]:
    """By size, by lifetime, by both, by the fullest step, and by first use."""
    indices = range(len(blocks))
    alive = _alive(blocks, lambda block: block.bytes)
    # The steps that need the most are settled first (greedy by breadth).
    fullest = [max(alive[s] for s in range(b.first, b.last + 1) if s in alive) for b in blocks]

    def by(rank: Callable[[int], tuple[int, ...]]) -> list[int]:
        return sorted(indices, key=rank)

    yield by(lambda i: (-blocks[i].bytes, -blocks[i].steps, blocks[i].first))
    yield by(lambda i: (-blocks[i].steps, -blocks[i].bytes, blocks[i].first))
    yield by(lambda i: (-blocks[i].bytes * blocks[i].steps, blocks[i].first))
    yield by(lambda i: (-fullest[i], -blocks[i].bytes, blocks[i].first))
    yield by(lambda i: (blocks[i].first, -blocks[i].bytes))
    yield by(lambda i: (-blocks[i].last, -blocks[i].bytes))


def _search(placer: _Placer, best: _Placed, order: list[int], tightest: bool) -> _Placed:
    """Move blocks that end at the arena's end to an earlier turn, while that does not make the
    arena larger. Ends at the lower bound, or when its budget is spent."""
    chance = random.Random(0)
    kept = list(order)
    now, now_order, stuck = best, list(order), 0
    for _ in range(_SEARCH // max(1, placer.work)):
        if best.size <= placer.floor:
            break
        tried = list(now_order)
        ends = zip(now.offsets, placer.sizes, strict=True)
        last = [i for i, (offset, size) in enumerate(ends) if offset + size == now.size]
        at = tried.index(chance.choice(last))
        moved = tried.pop(at)
        # One block in four is any other: the highest may be in nobody's way.
        if chance.random() < 0.25:
            tried.insert(at, moved)
            moved = tried.pop(chance.randrange(len(tried)))
            at = len(tried)
        tried.insert(chance.randrange(at + 1), moved)
        found = placer.place(tried, tightest)
        stuck = 0 if found.size < now.size else stuck + 1
        if found.size <= now.size:
            now, now_order = found, tried
        if now.size < best.size:
            best, kept = now, list(now_order)
        if stuck > _PATIENCE:
            now, now_order, stuck, tightest = best, list(kept), 0, not tightest
    return best


def _alive(blocks: Sequence[Block], size: Callable[[Block], int]) -> dict[int, int]:
    """Step -> bytes alive, for the steps at which something begins or ends: no other has more."""
    change: dict[int, int] = {}
    for block in blocks:
        change[block.first] = change.get(block.first, 0) + size(block)
        change[block.last + 1] = change.get(block.last + 1, 0) - size(block)
    total, found = 0, {}
    for step in sorted(change):
        total += change[step]
        found[step] = total
    return found


def _most_alive(blocks: Sequence[Block], size: Callable[[Block], int]) -> int:
    return max(_alive(blocks, size).values(), default=0)


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
