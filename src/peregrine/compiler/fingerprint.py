"""What timings and engines are valid for: the device, its driver, the libraries."""

from __future__ import annotations

import functools
import hashlib
import importlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from peregrine.processor import cpu_name

_LIBRARIES = ("torch", "triton", "nvidia-cudnn-frontend")
_RUNS = ("attributes", "operation", "operators", "plan", "runtime")
"""The modules beside tactics that decide what a plan means."""


def fingerprint(device: str) -> dict[str, str]:
    """Field -> value of a device as torch names it (`cpu`, `cuda:0`); empty where there is no such
    thing. Two machines with the same fingerprint run the same kernels equally fast."""
    import torch

    found = {"device": device.partition(":")[0], "arch": platform.machine()}
    if found["device"] == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": str(facts.multi_processor_count),
            "driver": driver(),
            "cuda": torch.version.cuda or "",
            "cudnn": str(cudnn or ""),
        }
    else:
        found["cpu"] = cpu_name()
    return found | {name: _version(name) for name in _LIBRARIES}


@functools.cache
def code() -> str:
    """A hash of the source that an engine runs by: other tactics may pack weights another way."""
    home = Path(__file__).parent
    paths = [home / f"{name}.py" for name in _RUNS]
    for room in ("kernels", "tactics", "torch_ops"):
        paths += sorted((home / room).rglob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def differences(built: Mapping[str, str], here: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(field, value it was built with, value here) of the fields that differ, in order; a field
    that one of them has not is empty there."""
    fields = dict.fromkeys([*built, *here])
    found = [(field, built.get(field, ""), here.get(field, "")) for field in fields]
    return [(field, there, now) for field, there, now in found if there != now]


def driver() -> str:
    """NVIDIA's driver, as the kernel module says its version; empty where it does not."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return _driver_by_nvml()


def _driver_by_nvml() -> str:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - absent, or any of its errors: the driver is not known
        return ""
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    finally:
        nvml.nvmlShutdown()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
