from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

import example_report
from peregrine.results import CandidateResult, Report, Status
from peregrine.types import Placement

HOSTILE = "evil[CPUExecutionProvider] <script>alert(1)</script> [red]x[/red] & \"q\" 'q' $(id)`id`"


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    return example_report


@pytest.fixture(scope="session")
def report(examples: ModuleType) -> Report:
    return examples.example_report()


@pytest.fixture(scope="session")
def climbed(examples: ModuleType) -> Report:
    """A race of several precisions."""
    return examples.ladder_report()


@pytest.fixture(scope="session")
def hostile(report: Report) -> Report:
    """Markup of HTML, of rich, of the shell and of terminals wherever the race puts words."""
    said = f"{HOSTILE}\x1b[2J\x1b]0;owned\x07\nsecond line [bold]"
    rows = []
    for number, row in enumerate(report.candidates):
        placed = row.placement and Placement("<b>cpu", {"<i>[x]": 3}, detail=said, proof=said)
        rows.append(
            dataclasses.replace(
                row,
                id=f"{HOSTILE} {number}",
                reason=said,
                fix=said,
                disqualified="",
                placement=placed,
                log="<log>",
            )
        )
    names = dict(zip((c.id for c in report.candidates), (c.id for c in rows), strict=True))
    winner = report.winner
    assert winner is not None
    final = tuple(dataclasses.replace(f, candidate=names[f.candidate]) for f in winner.finals)
    tied = tuple(names[id] for id in winner.tie_with)
    rounds = tuple(
        dataclasses.replace(r, candidate=names[r.candidate]) for r in report.final_rounds
    )
    return dataclasses.replace(
        report,
        candidates=tuple(rows),
        winner=dataclasses.replace(
            winner, id=names[winner.id], reason=said, tie_with=tied, finals=final
        ),
        final_rounds=rounds,
        warnings=(said,),
        model=dataclasses.replace(report.model, name="<model>", notes=(said,)),
    )


@pytest.fixture(scope="session")
def edge_cases(report: Report, examples: ModuleType) -> dict[str, Report]:
    """Reports with next to nothing in them."""
    first = report.candidates[0]
    bare = dataclasses.replace(
        report, winner=None, final_rounds=(), warnings=(), versions={}, command="", run_dir=""
    )
    only_winner = dataclasses.replace(
        report.winner, id=first.id, tie_with=(), finals=(), margin=None, margin_ci95=None
    )
    one_sample = dataclasses.replace(
        first.measurements[0], samples_ms=(31.0,), ci95_ms=(31.0, 31.0), peak_mb=None
    )

    def rows(*found: CandidateResult) -> Report:
        return dataclasses.replace(bare, candidates=found)

    return {
        "no candidates": rows(),
        "interrupted": examples.nobody_won(),
        "one candidate": dataclasses.replace(rows(first), winner=only_winner),
        "one sample": rows(dataclasses.replace(first, measurements=(one_sample,))),
        "nothing measured": rows(*(c for c in report.candidates if not c.measurements)),
        "valid, not measured": rows(dataclasses.replace(first, measurements=())),
        "bare row": rows(
            CandidateResult("x fp32", "x", "", first.precision, {}, Status.FAILED)  # no reason
        ),
        "no validation, no placement": rows(
            dataclasses.replace(first, validation=None, placement=None, memory=None, build_s=None)
        ),
        "python model": dataclasses.replace(
            report, command="", model=dataclasses.replace(report.model, source="")
        ),
    }
