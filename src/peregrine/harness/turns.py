"""Races on one GPU take turns: what is timed there is timed alone.

Two races on the same GPU, or the rows that one race builds side by side, would measure each other.
A worker has its turn (`peregrine.turns`) while its inferences are timed, and while a backend that
searches kernels somewhere within a library builds or first runs. Builds of others go on meanwhile:
they take the GPU for moments, which medians bear.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peregrine.hardware import visible_gpu
from peregrine.harness.rundir import slug
from peregrine.turns import holding


class Turns:
    """When a worker may use its device."""

    def __init__(self, device: str, *, times_kernels: bool = False) -> None:
        """
        Args:
            device: as torch names it; on a CPU nobody waits.
            times_kernels: all that the worker does is for itself alone.
        """
        self.path = _lock_file(device) if device.startswith("cuda") else None
        self._always = times_kernels

    def needed(self, *, timed: bool) -> bool:
        """Whether a command waits for its turn; `timed`: it times inferences."""
        return self.path is not None and (timed or self._always)

    @contextmanager
    def take(self, *, timed: bool) -> Iterator[None]:
        """Wait for the turn, where one is needed, and hold it."""
        if self.path is None or not self.needed(timed=timed):
            yield
            return
        with holding(self.path):
            yield


def _lock_file(device: str) -> Path:
    gpu = visible_gpu(int(device.partition(":")[2] or 0))
    name = gpu.uuid if gpu is not None else device
    return Path(tempfile.gettempdir()) / f"peregrine-{os.getuid()}-{slug(name)}.lock"
