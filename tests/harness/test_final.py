import dataclasses
import math

import pytest

from peregrine.harness.device import BY_GROWTH, BY_PROCESS
from peregrine.harness.final import Reload, Room, free_device_mb, process_of, with_reload
from peregrine.results import Boundary, CandidateResult, LatencyMs, Measurement, Memory, Status
from peregrine.types import Precision


def test_rounds_are_spread_over_fresh_processes():
    processes = [process_of(number) for number in range(1, 18)]
    assert processes == [0] * 5 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


def _row() -> CandidateResult:
    latency = LatencyMs(1, 1, 1, 1, 1, 0, 1, 1)
    found = [
        Measurement(batch, Boundary.HOST, latency, (1, 1), 1, (1.0,), 3, True, peak_mb=600.0)
        for batch in (1, 8)
    ]
    return CandidateResult(
        "a", "a", "", Precision.FP32, {}, Status.OK, memory=Memory(600.0), measurements=tuple(found)
    )


def test_memory_is_that_of_a_process_that_only_loaded_the_artefact():
    row = with_reload(_row(), Reload("a", 0.5, 9.0, "", 1, 300.0))
    assert row.load_s == 0.5
    assert row.memory.host_peak_mb == 300.0
    assert [m.peak_mb for m in row.measurements] == [300.0, 600.0]


def test_at_another_batch_only_that_batch_is_corrected():
    row = with_reload(_row(), Reload("a", 0.5, 9.0, "", 8, 300.0))
    assert row.memory.host_peak_mb == 600.0
    assert [m.peak_mb for m in row.measurements] == [600.0, 300.0]


@pytest.mark.parametrize("why", ["left the final: killed", "The artefact is of another version."])
def test_a_row_that_cannot_come_back_may_not_win(why):
    assert why in with_reload(_row(), Reload("a", None, None, why)).disqualified


def test_a_row_that_found_no_room_is_not_blamed():
    row = _row()
    assert with_reload(row, Reload("a", None, None, "not enough memory to join the final")) == row


def _on_gpu() -> CandidateResult:
    row = _row()
    peaks = {1: 700.0, 8: 1900.0}
    return dataclasses.replace(
        row,
        memory=Memory(600.0, 700.0, None, None, BY_GROWTH, 5700.0, 5000.0),
        measurements=tuple(
            dataclasses.replace(m, device_peak_mb=peaks[m.batch]) for m in row.measurements
        ),
    )


def test_device_memory_is_that_of_a_process_that_only_loaded_the_artefact():
    back = Reload("a", 0.5, 9.0, "", 1, 300.0, 450.0, BY_PROCESS, 9450.0, 9000.0)
    row = with_reload(_on_gpu(), back)
    assert row.memory == Memory(300.0, 450.0, None, None, BY_PROCESS, 9450.0, 9000.0)
    assert [m.device_peak_mb for m in row.measurements] == [450.0, 1900.0]


def test_device_memory_at_another_batch_is_that_batch_s_alone():
    row = with_reload(_on_gpu(), Reload("a", 0.5, 9.0, "", 8, 300.0, 450.0, BY_PROCESS))
    assert row.memory == _on_gpu().memory
    assert [m.device_peak_mb for m in row.measurements] == [700.0, 450.0]


def test_device_memory_that_the_final_cannot_tell_stays():
    row = with_reload(_on_gpu(), Reload("a", 0.5, 9.0, "", 1, 300.0, None, "not known: no NVML"))
    assert row.memory == dataclasses.replace(_on_gpu().memory, host_peak_mb=300.0)
    assert [m.device_peak_mb for m in row.measurements] == [700.0, 1900.0]


def test_a_final_takes_what_the_device_has_room_for():
    room = Room(host_mb=1e6, device_mb=4000.0)
    assert [room.take(_on_gpu(), batch) for batch in (8, 8, 8, 1, 1)] == [
        True,
        True,
        False,  # 200 MiB are left
        False,
        False,
    ]
    assert (room.host_mb, room.device_mb) == (1e6 - 1200, 200)


def test_a_final_takes_what_the_host_has_room_for():
    room = Room(host_mb=1000.0, device_mb=math.inf)
    assert [room.take(_row(), 1), room.take(_row(), 1)] == [True, False]


def test_a_batch_that_was_not_watched_counts_as_the_first():
    room = Room(host_mb=1e6, device_mb=800.0)
    assert room.take(_on_gpu(), 32)
    assert room.device_mb == 100


def test_no_device_is_full_on_a_cpu():
    assert free_device_mb("cpu") == math.inf


@pytest.mark.gpu
def test_a_device_has_memory_that_ends():
    assert 100 < free_device_mb("cuda:0") < 1e6
