"""Memory of processes, in MiB, as the kernel counts it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import psutil

MIB = 2.0**20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Start a new peak for this process, so that building and running are told apart.

    Returns False where the kernel does not offer it (`/proc/self/clear_refs`, value 5, see
    proc(5)); peaks are then those since the process began.
    """
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float:
    """Peak resident memory of this process since the last `reset_peak`.

    VmHWM is used rather than `ru_maxrss`, which a child inherits from its parent over exec and
    which would charge a small worker with a big parent's peak.
    """
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass  # not Linux: the portable, coarser figure below
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


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


def prefer_as_oom_victim() -> None:
    """Ask the kernel to kill this process first when memory ends, before the race itself."""
    try:
        Path(f"/proc/{os.getpid()}/oom_score_adj").write_text("1000")
    except OSError:
        return  # not Linux, or not allowed: only a preference
