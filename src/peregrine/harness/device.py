"""Watches a worker's GPU: its clocks until they have settled, its state and energy while something
is measured, and the memory that the worker takes on it.

How it keeps from disturbing. While inferences are timed it looks between two of them, at most ten
times a second, so that no timed inference has a reading in it; what a reading takes is in the
record (`DeviceConditions.reading_ms`). During the first run and the warm-up, which nothing is
ranked by, a thread looks 20 times a second, so that memory held only within an inference is seen.

Energy. The GPU's counter covers the whole card and moves in steps, so a span begins and ends at
one, where inferences are short enough to wait for it by running some more of them; every inference
in the span counts.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peregrine.harness.nvml import Gpu, Nvml, Reading, throttle_words
from peregrine.results import DeviceConditions

_THREAD_PERIOD_S = 0.05
_LOOK_PERIOD_NS = 100_000_000
_CLOCK_WINDOW = 3
_CLOCK_WITHIN = 0.03
_CLOCK_PATIENCE_S = 3.0
_TICK_POLL_S = 0.005
_TICK_PATIENCE_S = 0.25
_TICK_LONGEST_RUN_MS = 50.0
"""A span of longer inferences is long enough not to mind a tick."""

BY_PROCESS = "NVML, this process"
BY_GROWTH = "NVML, growth of the GPU's used memory"


class DeviceWatch:
    """What a worker knows of its GPU. Made before its runtime is loaded, so that the memory that
    others hold is known. Without NVML every method does nothing, and every figure is None."""

    def __init__(
        self, gpu: Gpu | None, reason: str = "", *, period_s: float = _THREAD_PERIOD_S
    ) -> None:
        """Watch `gpu`; `reason` says why there is none. The thread looks every `period_s`."""
        self._gpu = gpu
        self._period_s = period_s
        self._reason = reason
        self._pid = os.getpid()
        self._baseline_mb = gpu.read(self._pid).used_mb if gpu else None
        self._process_peak_mb: float | None = None
        self._used_peak_mb: float | None = None

    @classmethod
    def open(cls, device: str) -> DeviceWatch:
        """Watch what CUDA calls `device`, by NVML."""
        return cls(*Nvml.open(device))

    def reset_peak(self) -> None:
        """Start new peaks. What is allocated now counts again at the next look."""
        self._process_peak_mb = self._used_peak_mb = None

    def look(self) -> Reading | None:
        """One reading, its memory kept where it is a new peak."""
        if self._gpu is None:
            return None
        reading = self._gpu.read(self._pid)
        self._process_peak_mb = _larger(self._process_peak_mb, reading.process_mb)
        self._used_peak_mb = _larger(self._used_peak_mb, reading.used_mb)
        return reading

    @property
    def peak_mb(self) -> float | None:
        """Peak of this process since `reset_peak`, MiB, by the way that `memory` names."""
        if self._process_peak_mb is not None:
            return self._process_peak_mb
        if self._used_peak_mb is None or self._baseline_mb is None:
            return None
        return max(0.0, self._used_peak_mb - self._baseline_mb)

    def memory(self) -> dict[str, Any]:
        """The fields of `results.Memory` that are about the device, since `reset_peak`."""
        self.look()
        if self._process_peak_mb is not None:
            by = BY_PROCESS
        elif self.peak_mb is not None:
            by = BY_GROWTH
        else:
            by = f"not known: {self._reason or 'NVML does not tell'}"
        return {
            "device_peak_mb": self.peak_mb,
            "device_memory_by": by,
            "device_used_peak_mb": self._used_peak_mb,
            "device_baseline_mb": self._baseline_mb,
        }

    @contextmanager
    def beside(self, told: Callable[[Reading], object] = lambda _: None) -> Iterator[None]:
        """Look again and again from a thread, while something runs that is not ranked by."""
        if self._gpu is None:
            yield
            return
        done = threading.Event()

        def go_on_looking() -> None:
            while not done.wait(self._period_s):
                reading = self.look()
                if reading is not None:
                    told(reading)

        thread = threading.Thread(target=go_on_looking, name="device-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def conditions(self, clock: Callable[[], int] = time.perf_counter_ns) -> Conditions:
        """A record of one measurement that is about to be taken."""
        return Conditions(self, self._gpu, self._reason, clock)


class Conditions:
    """One measurement's: `warming` around its warm-up, `begin`, `look` after every inference,
    `end`, then `record`."""

    def __init__(
        self, watch: DeviceWatch, gpu: Gpu | None, reason: str, clock: Callable[[], int]
    ) -> None:
        self._watch = watch
        self._gpu = gpu
        self._reason = reason
        self._clock = clock
        self._clocks: list[float] = []
        """SM clocks seen during the warm-up."""
        self._no_clock = False
        self._warming_since = clock()
        self._settled: bool | None = None
        self._readings: list[Reading] = []
        self._costs_ns: list[int] = []
        self._due = 0
        self._began: tuple[int, float | None] = (0, None)
        self._ended: tuple[int, float | None] = (0, None)
        self._extra = 0

    @contextmanager
    def warming(self) -> Iterator[None]:
        """Around the warm-up: keeps the SM clocks that `ready` goes by."""
        self._warming_since = self._clock()
        with self._watch.beside(self._keep_clock):
            yield
        self._settled = clocks_settled(self._clocks) if self._clocks else None

    def _keep_clock(self, reading: Reading) -> None:
        self._no_clock = reading.sm_clock_mhz is None
        if reading.sm_clock_mhz is not None:
            self._clocks.append(reading.sm_clock_mhz)

    def ready(self) -> bool:
        """Whether the SM clock has settled, or is not worth waiting for any longer."""
        if self._gpu is None or self._no_clock or clocks_settled(self._clocks):
            return True
        return self._clock() - self._warming_since >= _CLOCK_PATIENCE_S * 1e9

    def begin(self, once: Callable[[], object], run_ms: float) -> None:
        """The span of the energy begins; `once` takes about `run_ms`."""
        if self._gpu is None:
            return
        self._to_a_tick(once, run_ms)
        self._began = (self._clock(), self._gpu.energy_mj())
        self._due = self._began[0]

    def look(self) -> None:
        """Between two inferences: a reading, where the last is a tenth of a second old."""
        if self._gpu is None:
            return
        now = self._clock()
        if now < self._due:
            return
        reading = self._watch.look()
        assert reading is not None
        after = self._clock()
        self._readings.append(reading)
        self._costs_ns.append(after - now)
        self._due = after + _LOOK_PERIOD_NS

    def end(self, once: Callable[[], object], run_ms: float) -> None:
        """The span of the energy ends."""
        if self._gpu is None:
            return
        self._extra = self._to_a_tick(once, run_ms)
        self._ended = (self._clock(), self._gpu.energy_mj())

    def _to_a_tick(self, once: Callable[[], object], run_ms: float) -> int:
        """Run `once` until the energy counter moves; how often that was."""
        assert self._gpu is not None
        before = self._gpu.energy_mj()
        if before is None or run_ms > _TICK_LONGEST_RUN_MS:
            return 0
        runs = 0
        polled = started = self._clock()
        while True:
            once()
            runs += 1
            now = self._clock()
            if now - polled < _TICK_POLL_S * 1e9:
                continue
            polled = now
            if self._gpu.energy_mj() != before or now - started >= _TICK_PATIENCE_S * 1e9:
                return runs

    def record(self, inferences: int) -> DeviceConditions:
        """What was seen; `inferences` is how many ran between `begin` and `end`, those that the
        span itself added left out."""
        if self._gpu is None:
            return DeviceConditions(readings=0, reason=self._reason)
        readings = self._readings
        sm_clocks = _known(r.sm_clock_mhz for r in readings)
        memory_clocks = _known(r.memory_clock_mhz for r in readings)
        temperatures = _known(r.temperature_c for r in readings)
        bits = 0
        for reading in readings:
            bits |= reading.throttle
        power_w, by = self._power()
        energy_j = None
        if power_w is not None:
            span_s = (self._ended[0] - self._began[0]) / 1e9
            energy_j = power_w * span_s / max(1, inferences + self._extra)
        return DeviceConditions(
            readings=len(readings),
            sm_clock_min_mhz=min(sm_clocks, default=None),
            sm_clock_median_mhz=statistics.median(sm_clocks) if sm_clocks else None,
            memory_clock_mhz=statistics.median(memory_clocks) if memory_clocks else None,
            temperature_max_c=max(temperatures, default=None),
            power_mean_w=power_w,
            energy_j=energy_j,
            energy_by=by,
            throttle=throttle_words(bits),
            clock_settled=self._settled,
            reading_ms=statistics.median(self._costs_ns) / 1e6 if self._costs_ns else None,
        )

    def _power(self) -> tuple[float | None, str]:
        """Mean power over the span, watts, and how it is known."""
        (began, before_mj), (ended, after_mj) = self._began, self._ended
        # A counter that stood still is one that this card does not really have.
        if before_mj is not None and after_mj is not None and after_mj > before_mj:
            return (after_mj - before_mj) / 1e3 / (max(1, ended - began) / 1e9), "energy counter"
        powers = _known(r.power_w for r in self._readings)
        return (statistics.fmean(powers), "mean power x time") if powers else (None, "")


def clocks_settled(clocks_mhz: Sequence[float]) -> bool:
    """Whether the last clocks seen, and those just before, have medians within 3%: a card at its
    power limit goes up and down by a step or two for ever."""
    if len(clocks_mhz) < 2 * _CLOCK_WINDOW:
        return False
    last = statistics.median(clocks_mhz[-_CLOCK_WINDOW:])
    before = statistics.median(clocks_mhz[-2 * _CLOCK_WINDOW : -_CLOCK_WINDOW])
    return abs(last - before) <= _CLOCK_WITHIN * before


def _larger(peak: float | None, now: float | None) -> float | None:
    return now if peak is None or (now is not None and now > peak) else peak


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
