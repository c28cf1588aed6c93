"""What machine this is: processor, memory, GPUs. Read from the system, never through torch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from peregrine.processor import cpu_flags, cpu_name, tool_output
from peregrine.results import MachineRecord
from peregrine.types import physical_cores

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU. Text as the driver gives it, e.g. capability "9.0", cuda "13.0"."""

    name: str
    uuid: str
    capability: str
    memory_mb: float
    driver: str
    cuda: str
    """The newest CUDA that the driver can run."""
    power_limit_w: float | None = None
    """What the card is held to now, watts."""
    max_sm_clock_mhz: float | None = None

    def __str__(self) -> str:
        limits = []
        if self.power_limit_w is not None:
            limits.append(f"at most {self.power_limit_w:.0f} W")
        if self.max_sm_clock_mhz is not None:
            limits.append(f"SM clock up to {self.max_sm_clock_mhz:.0f} MHz")
        facts = [f"capability {self.capability}", f"{self.memory_mb:.0f} MiB", *limits]
        facts += [f"driver {self.driver}", f"CUDA {self.cuda}"]
        return f"{self.name} ({', '.join(facts)})"


def machine() -> MachineRecord:
    """This machine, as a report records it."""
    return MachineRecord(
        cpu=cpu_name(),
        physical_cores=physical_cores(),
        logical_cores=_logical_cores(),
        memory_mb=memory_mb(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        gpus=tuple(map(str, gpus())),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        cpu_flags=cpu_flags(),
    )


def memory_mb() -> float:
    """Memory that this process may use, MiB: the machine's, or its control group's limit."""
    import psutil

    limits = [float(psutil.virtual_memory().total), *_cgroup_limits(Path("/"))]
    return min(limits) / _MIB


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine in the driver's order; empty when there is no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return tuple(_gpus_from_smi())
    return tuple(_gpus_from_nvml(nvml))


def visible_gpu(index: int) -> Gpu | None:
    """The GPU that CUDA calls `index`, under CUDA_VISIBLE_DEVICES; None if there is none."""
    found = gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = []
        for word in filter(None, map(str.strip, visible.split(","))):
            if word.isdigit() and int(word) < len(found):
                chosen.append(found[int(word)])
            elif match := [gpu for gpu in found if gpu.uuid.startswith(word)]:
                chosen.append(match[0])
            else:
                break  # CUDA ignores everything after the first entry it does not know
        found = tuple(chosen)
    return found[index] if index < len(found) else None


def _logical_cores() -> int:
    with contextlib.suppress(AttributeError):  # macOS has no affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_limits(root: Path) -> Iterator[float]:
    """Memory limits in bytes of this process's control group and those above it.

    `root` is where the file system begins. Version 2 has one hierarchy at /sys/fs/cgroup and
    says "max" for none; version 1 has one per controller and says a number past any memory.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = base / group.lstrip("/")
        for directory in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file here, or "max"
                yield float((directory / file).read_text())
            if directory == base:
                break


def _gpus_from_nvml(nvml: ModuleType) -> Iterable[Gpu]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []  # the library is there, a driver is not

    def ask(function: str, *arguments: object) -> float | None:
        """A figure that some GPUs do not tell."""
        try:
            return float(getattr(nvml, function)(*arguments))
        except nvml.NVMLError:
            return None

    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
            found.append(
                Gpu(
                    name=nvml.nvmlDeviceGetName(handle),
                    uuid=nvml.nvmlDeviceGetUUID(handle),
                    capability=f"{major}.{minor}",
                    memory_mb=nvml.nvmlDeviceGetMemoryInfo(handle).total / _MIB,
                    driver=driver,
                    cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
                    power_limit_w=None if limit_mw is None else limit_mw / 1e3,
                    max_sm_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
                )
            )
        return found
    finally:
        nvml.nvmlShutdown()


def _gpus_from_smi() -> Iterator[Gpu]:
    fields = "name,uuid,compute_cap,memory.total,driver_version,enforced.power.limit,clocks.max.sm"
    rows = tool_output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    header = tool_output(["nvidia-smi"]) if rows else ""
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", header)
    for row in rows.splitlines():
        values = [value.strip() for value in row.split(",")]
        if len(values) != 7:  # not a GPU's row: what nvidia-smi prints when the driver is gone
            continue
        name, uuid, capability, memory, driver, power, clock = values
        yield Gpu(
            name=name,
            uuid=uuid,
            capability=capability,
            memory_mb=_figure(memory) or 0.0,
            driver=driver,
            cuda=cuda[1] if cuda else "",
            power_limit_w=_figure(power),
            max_sm_clock_mhz=_figure(clock),
        )


def _figure(text: str) -> float | None:
    """A figure of nvidia-smi's, which says `[N/A]` for none."""
    return float(text) if text.replace(".", "", 1).isdigit() else None
