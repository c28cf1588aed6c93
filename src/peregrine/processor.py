"""The processor's name and vector extensions. Read from the system, by the standard library."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

_PROBE_TIMEOUT_S = 20.0

VECTOR_FLAGS = frozenset(
    {
        *("sse4_2", "avx", "avx2", "avx_vnni", "f16c", "fma"),
        *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16"),
        *("sve", "sve2", "svei8mm", "svebf16", "sme"),
    }
)
"""Extensions that decide which kernels a runtime picks, in Linux's spelling."""

_MACOS_SPELLING = {
    "avx1.0": "avx",
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "fma": "fma",
    "f16c": "f16c",
    "sse4.2": "sse4_2",
}


@functools.cache
def cpu_name() -> str:
    """The processor's marketing name, or the architecture where the system tells no more."""
    if sys.platform == "darwin":
        name = tool_output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
        return name or platform.machine()
    info = _cpuinfo()
    # ARM kernels give numbers in place of a name; lscpu knows their meaning.
    name = info.get("model name") or info.get("Model") or _lscpu_name()
    return name or platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """Those of `VECTOR_FLAGS` that the processor has, sorted."""
    if sys.platform == "darwin":
        listed = tool_output(["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"])
        found = {_MACOS_SPELLING.get(word, word) for word in listed.lower().split()}
        if platform.machine() == "arm64":
            found |= {"asimd", "asimdhp", "fphp", "asimddp"}  # every Apple silicon has these
    else:
        info = _cpuinfo()
        found = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(sorted(found & VECTOR_FLAGS))


def tool_output(command: list[str]) -> str:
    """What a system tool prints; empty when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _cpuinfo() -> dict[str, str]:
    """The first value of each key in /proc/cpuinfo."""
    info: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    return info


def _lscpu_name() -> str:
    match = re.search(r"^Model name:\s*(.+)$", tool_output(["lscpu"]), re.MULTILINE)
    return match[1].strip() if match else ""
