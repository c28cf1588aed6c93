"""Times of inferences that are to be compared: in turns, so that a change of clocks meets all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from peregrine.compiler.lowered import Lowered
from peregrine.compiler.runtime import Executable
from peregrine.turns import my_turn

_ROUNDS = 7
_ROUND_S = 0.004
"""Seconds of back-to-back inferences in a round."""


@contextmanager
def settled(*plans: Lowered, device: str) -> Iterator[list[Executable]]:
    """The plans on the device, each run until it replays its CUDA graph; closed at the end.

    Raises:
        torch.OutOfMemoryError: they don't fit beside each other.
    """
    executables: list[Executable] = []
    try:
        for lowered in plans:
            executables.append(Executable(lowered.plan, lowered.weights, device))
            executables[-1].settle()
        yield executables
    finally:
        for executable in executables:
            executable.close()


def in_turns(*starts: Callable[[], None]) -> list[float]:
    """The median time of an inference of each, seconds on the GPU, back to back."""
    with my_turn():
        rough = max(_timed(starts[0], 3), 1e-6)
        count = max(3, min(100, int(_ROUND_S / rough)))
        rounds = [[_timed(start, count) for start in starts] for _ in range(_ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _timed(start: Callable[[], None], count: int) -> float:
    """Seconds of one of `count` inferences back to back."""
    import torch

    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(count):
        start()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count
