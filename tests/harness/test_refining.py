"""Coarse first, then only around what wins."""

import pytest

from peregrine.harness.assemble import assemble, findings
from peregrine.harness.race import race
from peregrine.harness.refining import WITHIN, why_not
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.objective import Objective
from peregrine.results import Boundary, CandidateResult, LatencyMs, Measurement, Status
from peregrine.types import Candidate, Precision
from tiny_model import make_tiny


def row(name, ms, *, variant="", precision=Precision.FP32, status=Status.OK, batch=1):
    measured = {batch: ms} if not isinstance(ms, dict) else ms
    found = tuple(
        Measurement(
            at, boundary, LatencyMs(value, value, value, value, value, 0, value, value),
            (value, value), at / value, (value,), 3, True,
        )
        for at, value in measured.items()
        for boundary in Boundary
    )  # fmt: skip
    found = found if status is Status.OK else ()
    candidate = Candidate(name, variant, precision)
    return CandidateResult(candidate.id, name, variant, precision, {}, status, measurements=found)


FINE = Candidate("b", "other")
OBJECTIVE = Objective.latency()


def test_a_setting_near_the_fastest_is_raced_and_a_far_one_is_not():
    leader = row("a", 1.0)
    assert why_not(FINE, [leader, row("b", 0.99 * WITHIN)], OBJECTIVE) == ""
    assert why_not(FINE, [leader, row("b", 2.0)], OBJECTIVE) == (
        "b fp32 took 2.0 times as long as a fp32"
    )


def test_one_batch_where_it_is_near_is_enough():
    rows = [row("a", {1: 1.0, 8: 5.0}), row("b", {1: 4.0, 8: 5.5})]
    assert why_not(FINE, rows, OBJECTIVE) == ""


def test_other_precisions_are_no_measure_of_it():
    assert why_not(FINE, [row("a", 1.0, precision=Precision.FP16), row("b", 9.0)], OBJECTIVE) == ""


def test_rows_of_its_own_variant_decide_where_there_are_any():
    rows = [row("a", 1.0), row("b", 1.0, variant="this"), row("b", 3.0, variant="other")]
    assert why_not(FINE, rows, OBJECTIVE)
    assert why_not(FINE, rows[:2], OBJECTIVE) == ""


def test_what_does_not_run_by_its_first_setting_gets_its_second():
    assert why_not(FINE, [row("a", 1.0), row("b", 9.0, status=Status.FAILED)], OBJECTIVE) == ""


def test_where_a_runtime_is_not_available_no_setting_helps():
    said = why_not(FINE, [row("a", 1.0), row("b", 9.0, status=Status.UNAVAILABLE)], OBJECTIVE)
    assert said == "b fp32 is not available here"


@pytest.mark.usefixtures("faults")
def test_a_race_leaves_out_what_cannot_win_and_says_so(tmp_path):
    quick = {"min_runs": 5, "measure_s": 0.05, "measure_max_s": 2.0, "final_rounds": 5}
    asked = Request(source="tiny", backends=("settings",), **quick)
    report = race(asked, tmp_path / "run", loader=make_tiny)
    ids = [c.id for c in report.candidates]
    assert ids == [
        *(f"settings[{variant}] fp32" for variant in ("quick", "slow", "fussy")),
        *(f"settings[{variant}] fp32 other" for variant in ("quick", "fussy")),
    ]
    (said,) = [w for w in report.warnings if w.startswith("Not raced")]
    assert "settings[slow] fp32 other" in said
    assert "times as long as settings[" in said
    run = RunDirectory.read(tmp_path / "run")
    assert assemble(run) == report
    # They save nothing: each was built again for the final, and none was loaded.
    assert {r.id for r in findings(run).reloads} == set(ids) - {"settings[fussy] fp32"}
    assert all(r.load_s is None and not r.error for r in findings(run).reloads)

    named = Request(source="tiny", backends=("settings",), only=("settings[slow]*",), **quick)
    report = race(named, tmp_path / "named", loader=make_tiny)
    assert [c.id for c in report.candidates] == [
        "settings[slow] fp32",
        "settings[slow] fp32 other",
    ]
