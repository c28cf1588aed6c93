"""The order of the rows, and what is said of the outcome."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

from peregrine.report import figures
from peregrine.report.standings import finals, standings
from peregrine.report.verdict import usage, verdict
from peregrine.results import Report, Status
from peregrine.types import Precision


def test_winner_then_ties_then_finalists_then_speed(report: Report) -> None:
    placed = standings(report)
    ids = [row.result.id for row in placed.rows]
    assert report.winner is not None
    assert ids[:2] == [report.winner.id, *report.winner.tie_with]
    assert [row.rank for row in placed.rows] == [1, 2, 3, 4, 5, 6, 7, None]
    rest = [row.headline.latency_ms.p50 for row in placed.rows[3:-1]]
    assert rest == sorted(rest)
    assert placed.rows[-1].result.disqualified


def test_a_final_outranks_the_single_run(report: Report) -> None:
    """The winner of the final stays first when its own earlier run was slower."""
    assert report.winner is not None
    slow = tuple(
        dataclasses.replace(c, measurements=report.candidates[0].measurements)
        if c.id == report.winner.id
        else c
        for c in report.candidates
    )
    placed = standings(dataclasses.replace(report, candidates=slow))
    assert placed.rows[0].result.id == report.winner.id


def test_what_is_invalid_is_told_first_and_never_ranked(report: Report) -> None:
    placed = standings(report)
    assert placed.out[0].status is Status.INVALID
    assert placed.out[-1].status is Status.UNAVAILABLE
    assert len(placed.out) == sum(not c.can_win for c in report.candidates)


def test_what_never_ran_for_one_reason_is_told_once(report: Report) -> None:
    missing = next(c for c in report.candidates if c.backend == "tensorrt")
    lower = dataclasses.replace(missing, id="tensorrt fp16", precision=Precision.FP16)
    otherwise = dataclasses.replace(lower, id="tensorrt bf16", fix="Another fix.")
    invalid = next(c for c in report.candidates if c.status is Status.INVALID)
    wrong = [dataclasses.replace(invalid, id=f"wrong {n}") for n in range(2)]
    measured = next(c for c in report.candidates if c.disqualified)
    barred = [dataclasses.replace(measured, id=f"barred {n}") for n in range(2)]
    rows = (*report.candidates, lower, otherwise, *wrong, *barred)
    placed = standings(dataclasses.replace(report, candidates=rows))
    groups = [tuple(c.id for c in alike) for alike in placed.out_alike]
    assert (missing.id, lower.id) in groups
    assert (otherwise.id,) in groups
    assert all((c.id,) in groups for c in barred)
    assert sorted(id for group in groups for id in group) == sorted(c.id for c in placed.out)


def test_speed_is_against_eager_at_the_same_batch(report: Report) -> None:
    placed = standings(report)
    assert placed.baseline_name == "PyTorch eager"
    eager = next(r for r in placed.rows if r.result is placed.baseline)
    assert eager.speedup == 1
    top, tied, *_ = placed.rows
    assert top.speedup == pytest.approx(eager.headline.latency_ms.p50 / top.headline.latency_ms.p50)
    assert tied.final is not None
    assert tied.speedup == pytest.approx(top.speedup / tied.final.ratio)  # not by its single run
    without = dataclasses.replace(report, candidates=report.candidates[2:])
    assert "slowest" in standings(without).baseline_name


def test_throughput_ranks_by_the_best_batch(report: Report) -> None:
    asked = dataclasses.replace(report, objective="throughput", winner=None, final_rounds=())
    rows = [r for r in standings(asked).rows if r.rank]
    rates = [r.headline.throughput_per_s for r in rows]
    assert rates == sorted(rates, reverse=True)
    assert {r.headline.batch for r in rows} == {32}


def test_memory_ranks_by_the_peak(report: Report) -> None:
    asked = dataclasses.replace(report, objective="memory", winner=None, final_rounds=())
    peaks = [r.result.memory.host_peak_mb for r in standings(asked).rows if r.rank]
    assert peaks == sorted(peaks)


def test_the_winner_is_its_own_measure_in_the_final(report: Report) -> None:
    found = finals(report)
    assert report.winner is not None
    assert found[0].candidate == report.winner.id
    assert (found[0].ratio, found[0].ci95) == (1.0, (1.0, 1.0))
    assert len(found) == 3
    assert finals(dataclasses.replace(report, winner=None)) == ()


def test_a_tie_is_named_as_a_tie(report: Report, examples: ModuleType) -> None:
    tied = verdict(report)
    assert tied.title == "A tie, taken by openvino[latency] fp32"
    assert "openvino[throughput] fp32 is level with it" in tied.margin
    assert "less memory" in tied.why
    won = verdict(examples.example_report(tie=False))
    assert won.title == "openvino[latency] fp32 wins"
    assert "longer (95% interval" in won.margin
    assert "level" not in won.margin


def test_no_winner_says_why(edge_cases: dict[str, Report]) -> None:
    assert "--resume" in verdict(edge_cases["interrupted"]).why
    assert "doctor" in verdict(edge_cases["no candidates"]).why
    assert "none may win: " in verdict(edge_cases["nothing measured"]).why
    alone = edge_cases["one candidate"]
    assert "Nothing else was valid" in verdict(alone).margin
    other = dataclasses.replace(
        alone.candidates[0], id="fell back", disqualified="fell back: 3 nodes on the CPU"
    )
    both = dataclasses.replace(alone, candidates=(*alone.candidates, other))
    assert "No other valid row may win, fell back among them" in verdict(both).margin


def test_break_even_counts_inferences_or_says_never(report: Report) -> None:
    assert "after 412 inferences" in verdict(report).break_even
    never = tuple(dataclasses.replace(c, break_even=None) for c in report.candidates)
    assert "never repaid" in verdict(dataclasses.replace(report, candidates=never)).break_even
    assert report.winner is not None
    quick = tuple(
        dataclasses.replace(c, build_s=0.01) if c.id == report.winner.id else c
        for c in report.candidates
    )
    said = verdict(dataclasses.replace(report, candidates=quick)).break_even
    assert said == "It is also the quickest to build: 0.01 s."


def test_usage_is_python_that_compiles(report: Report, hostile: Report) -> None:
    for each in (report, hostile):
        use = usage(each)
        assert use is not None
        compile("\n".join(use.python), "usage", "exec")
    assert usage(dataclasses.replace(report, winner=None)) is None


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.number(0.1384), "0.138"),
        (figures.number(12.345), "12.3"),
        (figures.number(1234.5), "1,234"),
        (figures.number(0.00012345), "0.000123"),
        (figures.number(float("nan")), "NaN"),
        (figures.number(None), "–"),  # noqa: RUF001
        (figures.interval(7.0412, 7.0433), "7.041–7.043"),  # noqa: RUF001
        (figures.percent(0.0), "0%"),
        (figures.percent(0.0004), "<0.01%"),
        (figures.percent(99.9996), "99.99%"),
        (figures.percent(100.0), "100%"),
        (figures.percent(12.5), "12.5%"),
        (figures.share(0.071), "7.1%"),
        (figures.error(0.0), "0"),
        (figures.error(2.34e-7), "2.3e-07"),
        (figures.cosine(0.99999999), "0.9999999"),
        (figures.seconds(192.4), "3 min 12 s"),
        (figures.memory(20480), "20.0 GiB"),
        (figures.clock(3723.9), "1:02:03"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected
