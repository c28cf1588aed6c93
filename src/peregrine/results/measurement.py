"""What was measured of one session: times, memory, and the GPU meanwhile."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Boundary(enum.StrEnum):
    """What a measured inference spans."""

    HOST = "host"
    """From numpy arrays to numpy arrays."""
    DEVICE = "device"
    """Inputs and outputs stay on the device."""


@dataclass(frozen=True, slots=True)
class LatencyMs:
    """Order statistics of all kept samples, milliseconds. Percentiles are of the samples."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class DeviceConditions:
    """A GPU while one measurement was taken on it, by NVML. None is what it does not tell.

    Every figure is the whole card's, other processes included. Readings fall between two timed
    inferences, ten a second at most, and never into one.
    """

    readings: int
    reason: str = ""
    """Why there are no figures: no driver, or no NVML in the worker's interpreter."""
    sm_clock_min_mhz: float | None = None
    sm_clock_median_mhz: float | None = None
    memory_clock_mhz: float | None = None
    """Median."""
    temperature_max_c: float | None = None
    power_mean_w: float | None = None
    """Energy over time where the GPU counts energy, else the mean of NVML's power readings."""
    energy_j: float | None = None
    """Joules an inference of the batch takes, by all that the card draws meanwhile."""
    energy_by: str = ""
    """`energy counter` or `mean power x time`."""
    throttle: tuple[str, ...] = ()
    """What held the clocks down at any reading, e.g. `software power cap`."""
    clock_settled: bool | None = None
    """Whether the SM clock had settled before the first sample; None where it is not known."""
    reading_ms: float | None = None
    """What a reading took, median: time between two inferences that the GPU stood still."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One batch at one boundary, single stream: one inference at a time."""

    batch: int
    boundary: Boundary
    latency_ms: LatencyMs
    ci95_ms: tuple[float, float]
    """Bootstrap 95% interval of the median."""
    throughput_per_s: float
    """Items a second: of `parallelism` inferences kept in flight, else of the single stream."""
    samples_ms: tuple[float, ...]
    warmup: int
    """Inferences run and not counted before the first sample."""
    stable: bool
    """Whether the warm-up had settled before its limit."""
    parallelism: int = 1
    peak_mb: float | None = None
    """Peak host memory of the worker while this was measured."""
    device_peak_mb: float | None = None
    """Peak device memory of the worker's process; see `Memory.device_memory_by`."""
    device: DeviceConditions | None = None
    """None where it ran on no GPU."""
    events_ms: LatencyMs | None = None
    """Some more inferences by the GPU's own clock, between two CUDA events on the session's
    stream: what of `latency_ms` at the device boundary is not launching and waiting. None at
    the host boundary, and for a runtime that does not show its stream."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of the worker process."""

    host_peak_mb: float
    """While running at the first measured batch, build excluded: in a process that loaded the
    saved artefact where the row came to the final, else in the one that built it."""
    device_peak_mb: float | None = None
    """Of the worker's process on the GPU, its CUDA context included, while running at the first
    measured batch."""
    host_build_peak_mb: float | None = None
    """None where the engine was not built in this race."""
    host_baseline_mb: float | None = None
    """The interpreter before it loaded the runtime."""
    device_memory_by: str = ""
    """Where `device_peak_mb` comes from: `NVML, this process`; `NVML, growth of the GPU's used
    memory` where NVML does not list the process (in a container it may know it by another
    number); or why it is not known. Empty where it ran on no GPU."""
    device_used_peak_mb: float | None = None
    """Of all processes on the GPU meanwhile: what `nvidia-smi` shows."""
    device_baseline_mb: float | None = None
    """The same before the worker loaded the runtime."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Several sessions of one candidate side by side in one process, each in a thread of its own
    that starts its next inference when the last one is done."""

    candidate: str
    sessions: int
    batch: int
    boundary: Boundary
    threads: int | None = None
    """Compute threads of each session: the machine's, shared out. None on a GPU."""
    throughput_per_s: float = 0.0
    """Items a second of all sessions together."""
    latency_ms: LatencyMs | None = None
    """Of every inference of every session."""
    samples_ms: tuple[float, ...] = ()
    peak_mb: float | None = None
    """Peak host memory of the process."""
    device_peak_mb: float | None = None
    error: str = ""
    """Why there are no figures: it cannot run beside itself, its outputs were wrong, memory."""
