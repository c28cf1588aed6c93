import gc
import time

import numpy as np
import pytest

from peregrine.backends.base import Session
from peregrine.harness.clock import (
    Budget,
    measure,
    measure_device,
    measure_host,
    measure_throughput,
    sample,
    timer_cost_ms,
    turn,
    warm_up,
)
from peregrine.results import Boundary
from peregrine.types import Placement, Profile, TensorSpec

MS = 1_000_000


class Simulated:
    """A clock that only the work moves, and work whose durations (ms) are written down."""

    def __init__(self, *durations, then=None):
        self.now = 0
        self.durations = list(durations)
        self.then = then
        self.runs = 0

    def __call__(self):
        return self.now

    def work(self):
        ms = self.durations[self.runs] if self.runs < len(self.durations) else self.then
        self.runs += 1
        self.now += round(ms * MS)


class SimulatedSession(Session):
    """One inference takes `ms`, whether alone or beside others up to `parallelism`; a further
    one waits for room. Bringing data in or out takes `copy_ms`. Breaks of the contract raise."""

    inputs = (TensorSpec("x", "float32", ("batch", 2)),)
    outputs = (TensorSpec("y", "float32", ("batch", 2)),)
    profile = Profile.fixed({"batch": 4})

    def __init__(self, ms, copy_ms=0.0, parallelism=1):
        self.clock = Simulated()
        self.ms, self.copy_ms, self.parallelism = ms, copy_ms, parallelism
        self.bound, self.ends, self.binds = None, [], 0

    def bind(self, feeds):
        assert not self.ends, "bound while inferences were in flight"
        self.bound = feeds["x"].copy()
        self.binds += 1
        self.clock.now += round(self.copy_ms * MS)

    def enqueue(self):
        assert self.bound is not None
        if len(self.ends) == self.parallelism:
            self.clock.now = max(self.clock.now, self.ends.pop(0))
        self.ends.append(self.clock.now + round(self.ms * MS))

    def synchronize(self):
        assert self.ends
        self.clock.now = max(self.clock.now, *self.ends, 0)
        self.ends = []

    def fetch(self):
        assert not self.ends
        self.clock.now += round(self.copy_ms * MS)
        return {"y": self.bound.copy()}

    def placement(self, feeds):
        return Placement("cpu")


FEEDS = {"x": np.ones((4, 2), np.float32)}


class TestWarmUp:
    def test_stops_when_two_windows_agree(self):
        clock = Simulated(*[100, 60, 30, 20, 15], then=10)
        found = warm_up(clock.work, clock=clock)
        # Windows of five: median 30, then 10, then 10 again.
        assert (found.runs, found.stable, found.last_ms) == (15, True, 10)

    def test_a_wobble_of_two_percent_is_settled_and_of_five_is_not(self):
        steady = Simulated(*[10.0, 10.2] * 200)
        assert warm_up(steady.work, max_s=3, clock=steady).stable
        falling = Simulated(*[100 * 0.95**n for n in range(100)])
        assert not warm_up(falling.work, max_s=1, clock=falling).stable

    def test_microseconds_are_not_settled_before_their_windows_are_long_enough(self):
        clock = Simulated(then=0.01)
        found = warm_up(clock.work, clock=clock)
        assert found.stable
        assert found.runs * 0.01 >= 100  # two windows of 50 ms

    def test_a_model_of_a_second_is_settled_after_two_short_windows(self):
        clock = Simulated(1500, then=1000)
        found = warm_up(clock.work, max_s=60, clock=clock)
        assert found.stable
        assert found.runs <= 6

    def test_the_limit_is_kept_even_below_the_fewest_runs(self):
        clock = Simulated(then=30_000)
        found = warm_up(clock.work, min_runs=3, max_s=10, clock=clock)
        assert (found.runs, found.stable, found.last_ms) == (1, False, 30_000)

    def test_the_fewest_runs_are_made(self):
        clock = Simulated(then=20)
        assert warm_up(clock.work, min_runs=40, clock=clock).runs >= 40


class TestSample:
    def test_keeps_every_sample_in_order(self):
        durations = [5.0, 50.0, 4.0, 0.001, 6.0]
        clock = Simulated(*durations)
        assert sample(clock.work, min_runs=5, min_s=0, clock=clock) == pytest.approx(durations)

    @pytest.mark.parametrize(
        ("ms", "count"),
        [
            (1, 1000),  # one second of them
            (100, 50),  # the paper's fifty, though a second is over after ten
            (2000, 30),  # a minute
            (90_000, 1),  # one, though it takes longer than a minute
            (0.01, 10_000),  # the most that are kept
        ],
    )
    def test_goes_on_for_fifty_runs_and_a_second_but_not_beyond_a_minute(self, ms, count):
        clock = Simulated(then=ms)
        assert len(sample(clock.work, clock=clock)) == count

    def test_the_collector_is_off_while_sampling_and_on_again_after(self):
        seen = []
        sample(lambda: seen.append(gc.isenabled()), min_runs=3, min_s=0)
        assert seen == [False] * 3
        assert gc.isenabled()

    def test_the_collector_is_on_again_after_a_failure(self):
        def fail():
            raise RuntimeError("no")

        with pytest.raises(RuntimeError):
            sample(fail)
        assert gc.isenabled()

    def test_a_collector_that_was_off_stays_off(self):
        gc.disable()
        try:
            sample(lambda: None, min_runs=1, min_s=0)
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_a_real_sleep_is_timed_as_what_it_is(self):
        samples = sample(lambda: time.sleep(0.002), min_runs=5, min_s=0)
        assert min(samples) >= 2.0
        assert min(samples) < 50


class TestMeasure:
    def test_the_host_boundary_pays_for_copies_and_the_device_boundary_does_not(self):
        session = SimulatedSession(ms=5, copy_ms=1)
        host = measure(session, FEEDS, 4, Boundary.HOST, clock=session.clock)
        session = SimulatedSession(ms=5, copy_ms=1)
        device = measure(session, FEEDS, 4, Boundary.DEVICE, clock=session.clock)
        assert host.latency_ms.p50 == pytest.approx(7)
        assert device.latency_ms.p50 == pytest.approx(5)
        assert session.binds == 1
        assert (host.boundary, device.boundary) == (Boundary.HOST, Boundary.DEVICE)

    def test_a_measurement_says_what_it_was(self):
        session = SimulatedSession(ms=8)
        found = measure(session, FEEDS, 4, Boundary.HOST, Budget(min_s=0), clock=session.clock)
        assert found.throughput_per_s == pytest.approx(4 / 0.008)
        assert found.samples_ms == pytest.approx([8.0] * 50)
        assert found.ci95_ms == pytest.approx((8, 8))
        assert (found.batch, found.parallelism, found.stable) == (4, 1, True)
        assert found.warmup >= 10

    def test_a_slow_model_is_cut_and_shows_how_many_samples_it_got(self):
        session = SimulatedSession(ms=10_000)
        found = measure(session, FEEDS, 4, Boundary.HOST, clock=session.clock)
        assert len(found.samples_ms) == 6
        assert not found.stable

    def test_parallel_sessions_get_parallel_throughput_and_single_latency(self):
        session = SimulatedSession(ms=10, parallelism=3)
        found = measure(session, FEEDS, 4, Boundary.DEVICE, clock=session.clock)
        assert found.latency_ms.p50 == pytest.approx(10)
        assert found.throughput_per_s == pytest.approx(3 * 4 / 0.010)
        assert found.parallelism == 3

    def test_short_names_by_the_real_clock(self):
        budget = Budget(min_runs=3, min_s=0, warmup_s=0.01)
        session = SimulatedSession(ms=0)
        assert measure_host(session, FEEDS, 4, budget).boundary is Boundary.HOST
        assert measure_device(session, FEEDS, 4, budget).boundary is Boundary.DEVICE


class TestThroughput:
    def test_counts_items_of_whole_windows(self):
        session = SimulatedSession(ms=10, parallelism=4)
        budget = Budget(min_runs=50, min_s=0.1)
        found = measure_throughput(
            session, FEEDS, 4, 16, Boundary.DEVICE, budget, clock=session.clock
        )
        assert found.per_s == pytest.approx(4 * 16 / 0.010)
        assert found.inferences == 64  # four windows of sixteen
        assert found.seconds == pytest.approx(0.16)
        assert session.binds == 1

    def test_the_host_boundary_copies_once_a_window(self):
        session = SimulatedSession(ms=10, copy_ms=0.5, parallelism=4)
        found = measure_throughput(session, FEEDS, 4, 1, Boundary.HOST, clock=session.clock)
        assert found.per_s == pytest.approx(16 / (0.040 + 2 * 0.0005))

    def test_is_cut_at_its_limit(self):
        session = SimulatedSession(ms=9_000, parallelism=2)
        found = measure_throughput(session, FEEDS, 2, 1, clock=session.clock)
        assert found.inferences == 16  # the second window of 36 s passes the minute


class TestTurn:
    def test_fills_its_seconds_after_a_short_warm_up(self):
        session = SimulatedSession(ms=5)
        found = turn(session, FEEDS, 4, Boundary.HOST, runs=5, seconds=0.25, clock=session.clock)
        assert found["samples_ms"] == pytest.approx([5.0] * 50)
        assert found["throughput_per_s"] == pytest.approx(800)

    def test_a_slow_model_gets_its_runs_or_is_cut(self):
        for ms, count in ((500, 5), (2000, 2)):
            session = SimulatedSession(ms=ms)
            found = turn(
                session, FEEDS, 1, Boundary.DEVICE, runs=5, seconds=0.25, clock=session.clock
            )
            assert len(found["samples_ms"]) == count

    def test_offline_turns_keep_several_in_flight(self):
        session = SimulatedSession(ms=10, parallelism=2)
        arguments = {"runs": 5, "seconds": 0.25, "clock": session.clock}
        one = turn(session, FEEDS, 1, Boundary.DEVICE, **arguments)
        two = turn(session, FEEDS, 1, Boundary.DEVICE, offline=True, **arguments)
        assert two["throughput_per_s"] == pytest.approx(2 * one["throughput_per_s"])


def test_reading_the_clock_costs_next_to_nothing():
    assert 0 < timer_cost_ms() < 0.05
