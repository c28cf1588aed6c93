"""Races on one GPU take turns: what is timed there is timed alone.

Two races on the same GPU, or the rows that one race builds side by side, would measure each other.
A lock on a file, one for each GPU, is held while inferences are timed, and while a backend that
chooses kernels by timing them builds or first runs. Builds of others go on meanwhile: they take
processors, and the GPU for moments, which medians bear.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peregrine.hardware import visible_gpu
from peregrine.harness.rundir import slug


class Turns:
    """When a worker may use its device."""

    def __init__(self, device: str, *, times_kernels: bool = False) -> None:
        """
        Args:
            device: as torch names it; on a CPU nobody waits.
            times_kernels: all that the worker does is for itself alone.
        """
        self._path = _lock_file(device) if device.startswith("cuda") else None
        self._always = times_kernels

    @contextmanager
    def take(self, *, timed: bool) -> Iterator[None]:
        """Wait for the turn, where one is needed, and hold it. Ends with its process."""
        if self._path is None or not (timed or self._always):
            yield
            return
        with contextlib.ExitStack() as stack:
            # Where the file cannot be had, another user's or no disk, there are no turns.
            with contextlib.suppress(OSError):
                file = stack.enter_context(self._path.open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock_file(device: str) -> Path:
    gpu = visible_gpu(int(device.partition(":")[2] or 0))
    name = gpu.uuid if gpu is not None else device
    return Path(tempfile.gettempdir()) / f"peregrine-{os.getuid()}-{slug(name)}.lock"
