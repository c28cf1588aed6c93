"""Memory of the workers and of the machine, in MiB, as the race sees it from outside."""

from __future__ import annotations

from pathlib import Path

import psutil

from peregrine.harness.memory import MIB


def tree_mb(process: psutil.Process, *, children: bool = True) -> float:
    """Resident memory of a process and, unless told otherwise, of all it started."""
    try:
        total = process.memory_info().rss
        for child in process.children(recursive=True) if children else ():
            total += _rss(child)
    except psutil.Error:
        return 0.0
    return total / MIB


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it ended between the listing and the look
        return 0


def available_mb() -> float:
    """Memory that can be used now without swapping, within this control group's limit."""
    free = psutil.virtual_memory().available
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limit = int(Path(limit_file).read_text())
            used = int(Path(used_file).read_text())
        except (OSError, ValueError):  # no such group, or "max": unlimited
            continue
        free = min(free, max(0, limit - used))
    return free / MIB
