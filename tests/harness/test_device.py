"""The watch over a GPU: against a simulated card that is never wrong, against the real absence of
one, and on a real one."""

import itertools
import os
import time

import numpy as np
import pytest

from harness.test_clock import FEEDS, Simulated, SimulatedSession
from peregrine.harness.clock import Budget, measure, warm_up
from peregrine.harness.cuda_events import time_by_events
from peregrine.harness.device import BY_GROWTH, BY_PROCESS, DeviceWatch, clocks_settled
from peregrine.harness.nvml import Nvml, Reading, throttle_words
from peregrine.results import Boundary

MS = 1_000_000
BUDGET = Budget(min_runs=50, min_s=1.0)


class SimulatedGpu:
    """A card that draws `watts` by the clock of `clock`, whose energy counter moves every
    `step_ms`; it has no counter where that is None. A reading takes `cost_ms`."""

    def __init__(self, clock, watts=300.0, step_ms=20.0, cost_ms=1.0, readings=None):
        self.clock, self.watts, self.step_ms, self.cost_ms = clock, watts, step_ms, cost_ms
        self.readings = readings or itertools.repeat(Reading(sm_clock_mhz=1980, power_w=310))
        self.seen = []

    def read(self, pid):
        assert pid == os.getpid()
        self.seen.append(self.clock.now)
        self.clock.now += round(self.cost_ms * MS)
        return next(self.readings)

    def energy_mj(self):
        if self.step_ms is None:
            return None
        steps = self.clock.now // round(self.step_ms * MS)
        return round(steps * self.step_ms * self.watts)


def watched(session, gpu, batch=4, boundary=Boundary.DEVICE, budget=BUDGET):
    """A measurement in simulated time alone: the thread, which lives in real time, never looks."""
    watch = DeviceWatch(gpu, period_s=3600)
    return measure(session, FEEDS, batch, boundary, budget, device=watch, clock=session.clock)


class TestConditions:
    def test_energy_is_power_times_the_time_of_an_inference(self):
        session = SimulatedSession(ms=4)
        found = watched(session, SimulatedGpu(session.clock, watts=300))
        # 4 ms at 300 W; readings of 1 ms ten times a second are paid for by the same inferences.
        assert found.device.energy_j == pytest.approx(1.2, rel=0.02)
        assert found.device.power_mean_w == pytest.approx(300, rel=0.01)
        assert found.device.energy_by == "energy counter"

    @pytest.mark.parametrize("step_ms", [5, 20, 100, 240])
    def test_a_coarse_counter_does_not_bias_a_short_span(self, step_ms):
        session = SimulatedSession(ms=1)
        gpu = SimulatedGpu(session.clock, watts=500, step_ms=step_ms, cost_ms=0.0)
        found = watched(session, gpu, budget=Budget(min_runs=10, min_s=0.3))
        assert found.device.energy_j == pytest.approx(0.5, rel=0.03)

    def test_slow_inferences_are_not_repeated_to_wait_for_the_counter(self):
        session = SimulatedSession(ms=2000)
        found = watched(session, SimulatedGpu(session.clock), budget=Budget(max_s=20))
        assert len(found.samples_ms) == 10
        assert found.device.energy_j == pytest.approx(600, rel=0.02)

    def test_without_a_counter_energy_comes_from_the_power(self):
        session = SimulatedSession(ms=4)
        gpu = SimulatedGpu(session.clock, step_ms=None, cost_ms=0)
        found = watched(session, gpu)
        assert found.device.energy_by == "mean power x time"
        assert found.device.power_mean_w == 310
        assert found.device.energy_j == pytest.approx(0.004 * 310, rel=0.01)

    def test_a_counter_that_stands_still_is_none(self):
        session = SimulatedSession(ms=4)
        found = watched(session, SimulatedGpu(session.clock, watts=0))
        assert found.device.energy_by == "mean power x time"

    def test_readings_are_summed_up(self):
        seen = [
            Reading(sm_clock_mhz=1980, temperature_c=50, throttle=0x1),
            Reading(sm_clock_mhz=1755, temperature_c=61, throttle=0x4, memory_clock_mhz=3201),
            Reading(sm_clock_mhz=1965, temperature_c=60, throttle=0x20),
        ]
        first = Reading(sm_clock_mhz=9999)  # before the runtime was loaded
        session = SimulatedSession(ms=10)
        gpu = SimulatedGpu(
            session.clock, step_ms=None, cost_ms=2, readings=iter([first, *seen, *seen * 9])
        )
        found = watched(session, gpu, budget=Budget(min_runs=20, min_s=0.29))
        device = found.device
        assert device.readings == 3
        assert (device.sm_clock_min_mhz, device.sm_clock_median_mhz) == (1755, 1965)
        assert (device.temperature_max_c, device.memory_clock_mhz) == (61, 3201)
        assert device.throttle == ("software power cap", "software thermal slowdown")
        assert (device.power_mean_w, device.energy_j, device.energy_by) == (None, None, "")
        assert device.reading_ms == pytest.approx(2)

    def test_no_timed_inference_has_a_reading_in_it(self):
        session = SimulatedSession(ms=3)
        gpu = SimulatedGpu(session.clock, cost_ms=7)
        found = watched(session, gpu)
        assert found.samples_ms == pytest.approx([3.0] * len(found.samples_ms))
        assert 5 <= found.device.readings <= 11

    def test_a_reading_is_at_most_every_tenth_of_a_second(self):
        session = SimulatedSession(ms=0.5)
        gpu = SimulatedGpu(session.clock, cost_ms=1)
        watched(session, gpu)
        gaps = np.diff(gpu.seen[1:])  # the first is the watch's own, at its start
        assert min(gaps) >= 100 * MS


class TestClockSettles:
    def test_it_waits_for_the_clock_and_not_for_a_wobble_of_a_step(self):
        assert not clocks_settled([1980] * 5)
        assert clocks_settled([1980] * 6)
        assert not clocks_settled([345, 345, 345, 1980, 1980, 1980])
        assert clocks_settled([1755, 1770, 1740, 1740, 1770, 1755])
        assert not clocks_settled([1400, 1500, 1600, 1700, 1800, 1900])

    def test_a_warm_up_goes_on_until_it_is_ready(self):
        clock = Simulated(then=10)
        found = warm_up(clock.work, ready=lambda: clock.now > 900 * MS, clock=clock)
        assert found.stable
        assert 900 < found.runs * 10 < 1100
        never = Simulated(then=10)
        assert not warm_up(never.work, ready=lambda: False, max_s=2, clock=never).stable

    def test_a_real_thread_sees_the_clock_rise(self):
        """In real time: what is asserted is what was seen, never how long it took."""
        clocks = itertools.chain([345] * 5, itertools.repeat(1980))
        gpu = SimulatedGpu(Simulated(), readings=(Reading(sm_clock_mhz=c) for c in clocks))
        conditions = DeviceWatch(gpu, period_s=0.01).conditions()
        with conditions.warming():
            while not conditions.ready():
                time.sleep(0.001)
        assert len(gpu.seen) >= 1 + 6
        assert conditions.record(1).clock_settled

    def test_a_clock_that_never_settles_is_waited_for_three_seconds(self):
        clock = Simulated()
        gpu = SimulatedGpu(Simulated())
        conditions = DeviceWatch(gpu, period_s=3600).conditions(clock)
        with conditions.warming():
            clock.now = 2_999 * MS
            assert not conditions.ready()
            clock.now = 3_000 * MS
            assert conditions.ready()
        assert conditions.record(1).clock_settled is None  # none was seen

    def test_a_card_that_tells_no_clock_is_not_waited_for(self):
        gpu = SimulatedGpu(Simulated(), readings=itertools.repeat(Reading()))
        conditions = DeviceWatch(gpu, period_s=0.001).conditions(Simulated())
        with conditions.warming():
            while len(gpu.seen) < 3:
                time.sleep(0.001)
            assert conditions.ready()


class TestMemory:
    def test_the_process_where_nvml_lists_it_else_growth(self):
        readings = [
            Reading(used_mb=900.0),  # before the runtime: others'
            Reading(used_mb=1500.0),
            Reading(used_mb=1300.0),
            Reading(used_mb=1400.0, process_mb=480.0),
        ]
        watch = DeviceWatch(SimulatedGpu(Simulated(), readings=iter(readings)))
        watch.look()
        assert watch.memory() == {
            "device_peak_mb": 600.0,
            "device_memory_by": BY_GROWTH,
            "device_used_peak_mb": 1500.0,
            "device_baseline_mb": 900.0,
        }
        found = watch.memory()
        assert (found["device_peak_mb"], found["device_memory_by"]) == (480.0, BY_PROCESS)

    def test_a_new_peak_forgets_the_old_one(self):
        readings = [Reading(used_mb=mb) for mb in (100.0, 900.0, 300.0)]
        watch = DeviceWatch(SimulatedGpu(Simulated(), readings=iter(readings)))
        watch.look()
        watch.reset_peak()
        assert watch.memory()["device_peak_mb"] == 200.0

    def test_memory_of_others_that_is_freed_is_not_below_nothing(self):
        readings = [Reading(used_mb=mb) for mb in (800.0, 300.0)]
        watch = DeviceWatch(SimulatedGpu(Simulated(), readings=iter(readings)))
        assert watch.memory()["device_peak_mb"] == 0.0

    def test_a_thread_sees_what_is_held_only_meanwhile(self):
        gpu = SimulatedGpu(Simulated(), readings=(Reading(used_mb=m) for m in _rise_and_fall()))
        watch = DeviceWatch(gpu)
        with watch.beside():
            while len(gpu.seen) < 4:
                time.sleep(0.01)
        looks = len(gpu.seen)
        time.sleep(0.15)
        assert len(gpu.seen) == looks, "the thread went on"
        assert watch.memory()["device_peak_mb"] == 400.0


def _rise_and_fall():
    yield from (100.0, 100.0, 500.0)
    yield from itertools.repeat(100.0)


def test_reasons_are_words():
    assert throttle_words(0x1) == ()  # idle: nothing was asked of it
    assert throttle_words(0x44) == ("software power cap", "hardware thermal slowdown")
    assert throttle_words(0x4001) == ("reason 0x4000",)


def _has_gpu():
    return Nvml.open("cuda:0")[0] is not None


class TestAbsence:
    """What happens here and now, without a driver."""

    @pytest.mark.skipif(_has_gpu(), reason="there is a GPU")
    def test_everything_is_unknown_and_the_reason_is_said(self):
        watch = DeviceWatch.open("cuda:0")
        session = SimulatedSession(ms=1)
        found = measure(session, FEEDS, 4, Boundary.DEVICE, device=watch, clock=session.clock)
        assert found.device.readings == 0
        assert "NVML" in found.device.reason or "nvidia-ml-py" in found.device.reason
        assert found.device_peak_mb is None
        assert found.device.energy_j is None
        memory = watch.memory()
        assert memory["device_peak_mb"] is None
        assert memory["device_memory_by"] == f"not known: {found.device.reason}"

    def test_every_question_is_one_that_the_binding_knows(self):
        """A misspelt name would raise here; without a card each answer is merely unknown."""
        pynvml = pytest.importorskip("pynvml")
        nothing = Nvml(pynvml, pynvml.c_nvmlDevice_t())
        assert nothing.read(os.getpid()) == Reading()
        assert nothing.energy_mj() is None

    def test_an_interpreter_without_the_binding_says_so(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
        assert Nvml.open("cuda:0") == (None, "nvidia-ml-py is not installed in this interpreter")

    def test_a_session_without_a_stream_has_no_events(self):
        session = SimulatedSession(ms=1)
        session.bind(FEEDS)
        assert time_by_events(session, runs=3, max_s=1) is None
        assert not session.ends

    @pytest.mark.skipif(_has_gpu(), reason="there is a GPU")
    def test_without_a_driver_there_are_no_events(self):
        session = SimulatedSession(ms=1)
        session.cuda_stream = lambda: 0
        session.bind(FEEDS)
        assert time_by_events(session, runs=3, max_s=1) is None


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def test_a_reading_is_full_and_plausible(self):
        gpu, reason = Nvml.open("cuda:0")
        assert gpu is not None, reason
        found = gpu.read(os.getpid())
        assert 100 < found.sm_clock_mhz < 5000
        assert 100 < found.memory_clock_mhz < 20_000
        assert 5 < found.power_w < 2000
        assert 10 < found.temperature_c < 100
        assert found.used_mb >= 0
        assert gpu.energy_mj() > 0

    def test_a_gigabyte_is_seen(self, torch):
        torch.zeros(1, device="cuda")
        watch = DeviceWatch.open("cuda:0")
        before = watch.memory()
        held = torch.zeros(1 << 28, device="cuda")
        torch.cuda.synchronize()
        after = watch.memory()
        assert after["device_memory_by"] == before["device_memory_by"]
        grown = after["device_peak_mb"] - before["device_peak_mb"]
        assert grown == pytest.approx(held.numel() * 4 / 2**20, abs=64)

    def test_work_costs_more_than_idling_and_events_agree_with_the_clock(self, torch):
        session = Product(torch)
        found = measure(
            session, FEEDS, 4, Boundary.DEVICE, Budget(), device=DeviceWatch.open("cuda:0")
        )
        device = found.device
        assert device.energy_by == "energy counter"
        # NVML's power is a mean over the last second, of which this is only a part.
        assert device.energy_j == pytest.approx(
            device.power_mean_w * found.latency_ms.mean / 1e3, rel=0.4
        )
        assert device.sm_clock_median_mhz >= device.sm_clock_min_mhz > 100
        assert device.readings >= 5
        assert device.clock_settled is not None
        assert 0 < found.events_ms.p50 <= found.latency_ms.p50 * 1.05


class Product(SimulatedSession):
    """A matrix product of some milliseconds on a stream of its own."""

    def __init__(self, torch):
        super().__init__(ms=0)
        self.stream = torch.cuda.Stream()
        self.torch = torch
        self.a = torch.rand(8192, 8192, device="cuda")
        self.out = torch.empty_like(self.a)

    def bind(self, feeds):
        self.torch.cuda.synchronize()

    def enqueue(self):
        with self.torch.cuda.stream(self.stream):
            self.torch.mm(self.a, self.a, out=self.out)

    def synchronize(self):
        self.stream.synchronize()

    def cuda_stream(self):
        return self.stream.cuda_stream
