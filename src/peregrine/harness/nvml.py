"""One GPU as NVML sees it: clocks, power, temperature, energy, memory.

NVML (https://docs.nvidia.com/deploy/nvml-api/) comes with the driver; `nvidia-ml-py` is its
binding. Either may be missing, in a foreign interpreter above all: `Nvml.open` then says why, and
nothing else of the race minds. A figure that a GPU or its driver does not tell is None.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from peregrine.hardware import visible_gpu

_MIB = 2.0**20

_GPU_IDLE = 0x1
THROTTLE_WORDS = {
    0x2: "application clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}
"""NVML's clocks event reasons (`nvmlClocksEventReasons`) that hold clocks down. That a GPU is idle
(0x1) is one as well, and left out: it says that nothing was asked of it at that moment."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU. Memory is MiB."""

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: int = 0
    """NVML's bits, see `throttle_words`."""
    used_mb: float | None = None
    """Of all processes, as `nvidia-smi` shows it."""
    process_mb: float | None = None
    """Of the process asked for; None where NVML does not list it."""


class Gpu(Protocol):
    """What is asked of a GPU: `Nvml`, or something that plays one."""

    def read(self, pid: int) -> Reading:
        """Everything but the energy, now."""

    def energy_mj(self) -> float | None:
        """Millijoules since the driver was loaded; None where the GPU has no such counter."""


class Nvml:
    """One GPU through NVML. Made by `open`."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def open(cls, device: str) -> tuple[Nvml | None, str]:
        """The GPU that CUDA calls `device` (`cuda:0`) in this process; else None, and why not.

        Indexes count as CUDA counts them, under CUDA_VISIBLE_DEVICES.
        """
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None, "nvidia-ml-py is not installed in this interpreter"
        if not hasattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons"):
            return None, "nvidia-ml-py is older than 12.560 in this interpreter"
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return None, f"NVML does not start: {error}"
        _, _, index = device.partition(":")
        gpu = visible_gpu(int(index or 0))
        if gpu is None:
            return None, f"NVML knows no {device} under CUDA_VISIBLE_DEVICES"
        try:
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)), ""
        except nvml.NVMLError as error:
            return None, f"NVML does not open {gpu.name}: {error}"

    def read(self, pid: int) -> Reading:
        """Everything but the energy, now. The clock comes first: it falls when work ends."""
        nvml = self._nvml
        sm_clock = self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)
        throttle = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if throttle is None:  # a driver before release 535 knows it by its older name
            throttle = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_clock_mhz=sm_clock,
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            throttle=throttle or 0,
            used_mb=self._used_mb(),
            process_mb=self._process_mb(pid),
        )

    def energy_mj(self) -> float | None:
        """Millijoules since the driver was loaded; None where the GPU has no such counter."""
        counted: int | None = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return counted

    def free_mb(self) -> float | None:
        """Memory that no process holds now, MiB."""
        info = self._memory()
        return None if info is None else info.free / _MIB

    def _used_mb(self) -> float | None:
        info = self._memory()
        return None if info is None else info.used / _MIB

    def _memory(self) -> Any:
        # Version 2 counts apart what the driver keeps for itself, as nvidia-smi does.
        info = self._ask("nvmlDeviceGetMemoryInfo", self._nvml.nvmlMemory_v2)
        return info or self._ask("nvmlDeviceGetMemoryInfo")

    def _process_mb(self, pid: int) -> float | None:
        for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or ():
            if process.pid == pid and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory / _MIB)
        return None

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What NVML answers; None where this GPU or driver does not know the question."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def throttle_words(bits: int) -> tuple[str, ...]:
    """Clocks event reasons as words; bits that have none are shown as a number."""
    known = [word for bit, word in THROTTLE_WORDS.items() if bits & bit]
    rest = bits & ~_GPU_IDLE
    for bit in THROTTLE_WORDS:
        rest &= ~bit
    return (*known, *([f"reason {rest:#x}"] if rest else []))
