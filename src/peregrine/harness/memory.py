"""This process's own memory, in MiB, as the kernel counts it. Standard library only: it runs
in workers."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

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


def prefer_as_oom_victim() -> None:
    """Ask the kernel to kill this process first when memory ends, before the race itself."""
    try:
        Path(f"/proc/{os.getpid()}/oom_score_adj").write_text("1000")
    except OSError:
        return  # not Linux, or not allowed: only a preference
