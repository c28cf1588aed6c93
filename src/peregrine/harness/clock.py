"""Holds the clock: warms a session up and times it, at the host and at the device boundary.

What a sample is. One inference between two readings of `time.perf_counter_ns`, nothing else:
deciding whether to go on happens between samples. The garbage collector is off meanwhile, and
every sample is kept. Very short inferences are not averaged in inner loops, which would hide
their tail: reading the clock costs well under 0.1 us (`timer_cost_ms`), under 1% of anything
above 10 us, and `noise_warnings` says so where it is more.

How long it takes. `Budget.min_runs` (the paper's 50) and `min_s` are both met, unless `max_s`
or `max_runs` comes first: a model of 10 s a run gets 6 samples in 60 s, and the record, which
keeps all of them, shows that it were 6.
"""

from __future__ import annotations

import gc
import statistics as stdlib_statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from peregrine.backends.base import Session
from peregrine.harness.cuda_events import time_by_events
from peregrine.harness.device import DeviceWatch
from peregrine.harness.statistics import PAPER_RUNS, bootstrap_ci_of_median, latency_ms
from peregrine.results import Boundary, Measurement
from peregrine.types import Feeds

Clock = Callable[[], int]
"""Nanoseconds from an arbitrary start, never going back."""

_STABLE_WITHIN = 0.03
_WINDOW_RUNS = 5
_WINDOW_NS = 50_000_000
_SLOW_WINDOW_RUNS = 2
_SLOW_WINDOW_NS = 500_000_000
_TURN_STRETCH = 16
_WINDOW_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to warm up and to sample. Times are seconds."""

    min_runs: int = PAPER_RUNS
    min_s: float = 1.0
    max_s: float = 60.0
    """Ends sampling even before `min_runs`; at least one sample is always taken."""
    max_runs: int = 10_000
    warmup_s: float = 10.0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a warm-up ended: runs made, whether they had settled, and how long the last ones took."""

    runs: int
    stable: bool
    last_ms: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """Inferences kept in flight: items a second, and what that was counted from."""

    per_s: float
    inferences: int
    seconds: float


def warm_up(
    once: Callable[[], object],
    *,
    min_runs: int = 3,
    max_s: float = 10.0,
    ready: Callable[[], bool] = lambda: True,
    clock: Clock = time.perf_counter_ns,
) -> WarmUp:
    """Call `once` until it has settled and `ready` says so too, or for `max_s` seconds.

    Settled: the medians of two successive windows are within 3% of each other. A window is at
    least 5 runs and 50 ms, so that a model of microseconds is not called settled before the
    clocks and caches are; for slow models, 2 runs are enough once they fill half a second.
    `max_s` is kept even where that means fewer than `min_runs`; one run is always made.
    """
    runs = 0
    start = before = clock()
    window: list[int] = []
    spent = 0
    previous: float | None = None
    while True:
        once()
        now = clock()
        runs += 1
        window.append(now - before)
        spent += now - before
        if (len(window) >= _WINDOW_RUNS and spent >= _WINDOW_NS) or (
            len(window) >= _SLOW_WINDOW_RUNS and spent >= _SLOW_WINDOW_NS
        ):
            median = stdlib_statistics.median(window)
            settled = previous is not None and abs(median - previous) <= _STABLE_WITHIN * previous
            if settled and runs >= min_runs and ready():
                return WarmUp(runs, True, median / 1e6)
            previous, window, spent = median, [], 0
        if now - start >= max_s * 1e9:
            last = stdlib_statistics.median(window) if window else previous or 0.0
            return WarmUp(runs, False, last / 1e6)
        before = clock()


def sample(
    once: Callable[[], object],
    *,
    min_runs: int = PAPER_RUNS,
    min_s: float = 1.0,
    max_s: float = 60.0,
    max_runs: int = 10_000,
    between: Callable[[], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> list[float]:
    """Time single calls of `once`: milliseconds each, in order, all of them kept.

    Goes on until there are `min_runs` samples and `min_s` seconds have passed; `max_s` or
    `max_runs` end it in any case, after at least one sample. `between` is called after each
    sample, untimed.
    """
    taken: list[int] = []
    with collector_off():
        began = clock()
        enough, limit = began + int(min_s * 1e9), began + int(max_s * 1e9)
        while True:
            start = clock()
            once()
            end = clock()
            taken.append(end - start)
            if between is not None:
                between()
            count = len(taken)
            if end >= limit or count >= max_runs or (end >= enough and count >= min_runs):
                break
    return [ns / 1e6 for ns in taken]


def measure(
    session: Session,
    feeds: Feeds,
    batch: int,
    boundary: Boundary,
    budget: Budget | None = None,
    *,
    device: DeviceWatch | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Measurement:
    """Warm a session up and time it, single stream; `feeds` hold `batch` items.

    Host boundary: `session.run(feeds)`, from numpy arrays to numpy arrays. Device boundary:
    `enqueue` + `synchronize` on inputs bound once. Where `session.parallelism` is above 1,
    `throughput_per_s` is that of as many inferences in flight (see `measure_throughput`), and
    the latency still that of one inference at a time. `peak_mb` is left to who can see it.

    On a GPU, which `device` watches, the warm-up also goes on until the SM clock has settled, at
    most 3 s for that; and at the device boundary some more inferences are timed by CUDA events.
    """
    budget = budget or Budget()
    once = single_inference(session, feeds, boundary)
    conditions = device.conditions(clock) if device is not None else None
    if conditions is None:
        warm = warm_up(once, max_s=budget.warmup_s, clock=clock)
    else:
        with conditions.warming():
            warm = warm_up(once, max_s=budget.warmup_s, ready=conditions.ready, clock=clock)
        conditions.begin(once, warm.last_ms)
    samples = sample(
        once,
        min_runs=budget.min_runs,
        min_s=budget.min_s,
        max_s=budget.max_s,
        max_runs=budget.max_runs,
        between=conditions.look if conditions is not None else None,
        clock=clock,
    )
    by_events: list[float] | None = None
    if conditions is not None:
        conditions.end(once, warm.last_ms)
        if boundary is Boundary.DEVICE:
            by_events = time_by_events(session, runs=budget.min_runs, max_s=budget.min_s)
    parallelism = max(1, session.parallelism)
    per_s = _single_stream_per_s(samples, batch)
    if parallelism > 1:
        per_s = measure_throughput(
            session, feeds, parallelism, batch, boundary, budget, clock=clock
        ).per_s
    return Measurement(
        batch=batch,
        boundary=boundary,
        latency_ms=latency_ms(samples),
        ci95_ms=bootstrap_ci_of_median(samples),
        throughput_per_s=per_s,
        samples_ms=tuple(samples),
        warmup=warm.runs,
        stable=warm.stable,
        parallelism=parallelism,
        device_peak_mb=device.peak_mb if device is not None else None,
        device=conditions.record(len(samples)) if conditions is not None else None,
        events_ms=latency_ms(by_events) if by_events else None,
    )


def measure_host(
    session: Session, feeds: Feeds, batch: int, budget: Budget | None = None
) -> Measurement:
    """`measure` at the host boundary."""
    return measure(session, feeds, batch, Boundary.HOST, budget)


def measure_device(
    session: Session, feeds: Feeds, batch: int, budget: Budget | None = None
) -> Measurement:
    """`measure` at the device boundary."""
    return measure(session, feeds, batch, Boundary.DEVICE, budget)


def turn(
    session: Session,
    feeds: Feeds,
    batch: int,
    boundary: Boundary,
    *,
    runs: int,
    seconds: float,
    offline: bool = False,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Any]:
    """One turn of an interleaved final: `samples_ms` and `throughput_per_s`, as in `FinalRound`.

    Another candidate ran just before, so caches are cold: one run, and a tenth of `seconds`,
    pass before the first sample. Then samples until there are `runs` of them and `seconds`
    have passed, cut at 16 times `seconds` for a slow model. With `offline` the throughput of
    `session.parallelism` inferences in flight is taken as long again, where that is above 1.
    """
    once = single_inference(session, feeds, boundary)
    warm_until = clock() + int(seconds * 1e8)
    once()
    while clock() < warm_until:
        once()
    budget = Budget(min_runs=runs, min_s=seconds, max_s=_TURN_STRETCH * seconds)
    samples = sample(once, min_runs=runs, min_s=budget.min_s, max_s=budget.max_s, clock=clock)
    per_s = _single_stream_per_s(samples, batch)
    if offline and session.parallelism > 1:
        per_s = measure_throughput(
            session, feeds, session.parallelism, batch, boundary, budget, clock=clock
        ).per_s
    return {"samples_ms": samples, "throughput_per_s": per_s}


def measure_throughput(
    session: Session,
    feeds: Feeds,
    parallelism: int,
    batch: int,
    boundary: Boundary = Boundary.HOST,
    budget: Budget | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
) -> Throughput:
    """Items a second with `parallelism` inferences in flight, after one untimed window.

    A window starts 4 times `parallelism` inferences, each as soon as there is room for it, and
    waits for all, so that starting and running dry weigh little. At the host boundary the
    inputs come in and the last outputs go out once a window rather than once an inference: on
    a CPU, which this is for, a runtime reads and writes host arrays in place. Ends when
    `min_runs` inferences and `min_s` are met, or at `max_s`.
    """
    budget = budget or Budget()
    host = boundary is Boundary.HOST
    size = _WINDOW_ROUNDS * parallelism

    def window() -> None:
        if host:
            session.bind(feeds)
        for _ in range(size):
            session.enqueue()
        session.synchronize()
        if host:
            session.fetch()

    if not host:
        session.bind(feeds)
    window()
    done = 0
    with collector_off():
        start = clock()
        while True:
            window()
            done += size
            spent = clock() - start
            if spent >= budget.max_s * 1e9 or done >= budget.max_runs:
                break
            if spent >= budget.min_s * 1e9 and done >= budget.min_runs:
                break
    seconds = max(spent, 1) / 1e9
    return Throughput(done * batch / seconds, done, seconds)


def timer_cost_ms(clock: Clock = time.perf_counter_ns) -> float:
    """What two readings of the clock cost a sample, in ms: the median of 1000 empty ones, or
    the clock's resolution where that is coarser."""
    empty = []
    for _ in range(1000):
        start = clock()
        empty.append(clock() - start)
    resolution = time.get_clock_info("perf_counter").resolution * 1e3
    return max(stdlib_statistics.median(empty) / 1e6, resolution)


def single_inference(session: Session, feeds: Feeds, boundary: Boundary) -> Callable[[], object]:
    """What is timed at a boundary; binds the inputs where they stay on the device."""
    if boundary is Boundary.HOST:
        return partial(session.run, feeds)
    session.bind(feeds)
    enqueue, synchronize = session.enqueue, session.synchronize

    def once() -> None:
        enqueue()
        synchronize()

    return once


def _single_stream_per_s(samples: Sequence[float], batch: int) -> float:
    return len(samples) * batch / max(sum(samples) / 1e3, 1e-9)


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside; what there is already is collected first."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
