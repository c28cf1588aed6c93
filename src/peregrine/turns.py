"""What is timed on a GPU is timed alone: who times there holds a lock on a file meanwhile.

A race holds it while it has inferences timed. A backend that chooses its kernels by timing them
takes the turn itself, around each timing: compilers then work while others are timed. A race tells
its workers which file it is; where nobody tells, nobody else is there to wait for.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "PEREGRINE_TURNS"
"""Of the environment: the file of the GPU that this process works on."""

_held = False
_waits: list[tuple[float, float]] = []


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for the lock, and hold it. It ends with its process. Where the file cannot be had,
    another user's or no disk, there are no turns."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):  # no fcntl on Windows
            import fcntl

            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def my_turn() -> Iterator[None]:
    """Time something on this process's GPU, alone. Within itself it waits for nothing."""
    global _held
    path = os.environ.get(VARIABLE)
    if _held or not path:
        yield
        return
    began = time.monotonic()
    with holding(Path(path)):
        _waits.append((began, time.monotonic()))
        _held = True
        try:
            yield
        finally:
            _held = False


def given(held: bool) -> None:
    """Say whether someone else holds the turn for this process."""
    global _held
    _held = held


def waits(since: float) -> list[tuple[float, float]]:
    """When this process has waited for its turns, from a time of `time.monotonic` on."""
    return [(begin, end) for begin, end in _waits if end > since]
