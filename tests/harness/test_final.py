import pytest

from peregrine.harness.final import Reload, process_of, with_reload
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
