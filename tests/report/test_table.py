"""The terminal's table: whole at any width, and never read as markup."""

from __future__ import annotations

import dataclasses
import io
import re
from types import ModuleType

import pytest
from rich.cells import cell_len
from rich.console import Console

from peregrine.report import figures, words
from peregrine.report.standings import standings
from peregrine.report.table import render
from peregrine.results import Comparison, EngineOrigin, Report


def shown(report: Report, width: int, *, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )  # fmt: skip
    render(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_id_reason_and_fix_is_there_whole(report: Report, width: int) -> None:
    text = squeezed(shown(report, width))
    for c in report.candidates:
        assert squeezed(c.id) in text
        assert squeezed(c.reason) in text
        assert squeezed(c.fix) in text
        assert squeezed(c.disqualified) in text
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_but_commands_passes_the_edge(report: Report, width: int) -> None:
    for line in shown(report, width).splitlines():
        copied = line.strip().startswith(("peregrine build", "session", "outputs", "runs/"))
        assert copied or cell_len(line) <= width, line


def test_figures_stand_below_their_titles(report: Report) -> None:
    lines = shown(report, 120).splitlines()
    titles = next(line for line in lines if "p50 ms" in line)
    row = lines[next(n for n, line in enumerate(lines) if line.startswith("1=  openvino[lat")) + 1]
    end = titles.index("p50 ms") + len("p50 ms")
    shown_first = standings(report).rows[0].headline.latency_ms
    assert row[:end].split()[-1] == figures.number(shown_first.p50)
    assert row[: titles.index("p99 ms") + 6].split()[-1] == figures.number(shown_first.p99)


def test_what_a_reader_needs_is_said(report: Report) -> None:
    text = squeezed(shown(report, 100))
    for part in (
        "A tie, taken by openvino[latency] fp32", "less memory (309 against 331 MiB)",
        "95% interval 26.9% to 27.6%", "after 412 inferences", "load average 1.9",
        'session = peregrine.load("efficientnet_lite0.bundle")', 'session.run({"x": x})',
        "report.html", "pretrained (efficientnet", "PyTorch fp32 eager", "1 graph break",
        "OpenVINO 101 + CPU 12, 4 copies, fell back",
    ):  # fmt: skip
        assert squeezed(part) in text, part


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (
            EngineOrigin(True, "2026-11-20T09:15:00+00:00", 0.7),
            "engine from the cache: built in 18.2 s on 2026-11-20, loaded in 0.70 s (26.0\u00d7)",
        ),
        (
            EngineOrigin(False, missed="driver 580.1 there, 581.0 here"),
            "engine built anew: driver 580.1 there, 581.0 here",
        ),
    ],
)
def test_a_row_says_where_its_engine_is_from(
    report: Report, origin: EngineOrigin, said: str
) -> None:
    rows = [
        dataclasses.replace(c, build_s=18.2, engine=origin) if c.measurements else c
        for c in report.candidates
    ]
    found = dataclasses.replace(report, candidates=tuple(rows))
    assert squeezed(shown(found, 100)).count(squeezed(said)) == len(standings(found).rows)


def test_hostile_words_are_shown_as_they_are(hostile: Report) -> None:
    text = shown(hostile, 100, colour=True)
    assert "\x1b[2J" not in text
    assert "\x1b]0;" not in text
    plain = squeezed(re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert squeezed("evil[CPUExecutionProvider] <script>alert(1)</script> [red]x[/red]") in plain
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_edge_cases_render(edge_cases: dict[str, Report], examples: ModuleType) -> None:
    said = {name: shown(report, 80) for name, report in edge_cases.items()}
    assert "No winner" in said["no candidates"]
    assert "interrupted" in said["interrupted"]
    assert "pytorch[eager] fp32 wins" in said["one candidate"]
    assert "31.0" in said["one sample"]
    assert "not measured" in said["valid, not measured"]
    assert "see its log" in said["bare row"]


def test_a_row_that_only_noise_ties_is_not_called_a_tie() -> None:
    near = Comparison("a", 1.02, (0.99, 1.05), True, 5.0)
    far = Comparison("b", 7.0, (0.3, 142.0), True, 35.0)
    slower = Comparison("c", 1.5, (1.4, 1.6), False, 7.0)
    assert [words.level(c) for c in (near, far, slower)] == ["tie", "not told apart", ""]


def test_a_missing_runtime_is_said_once_for_all_its_precisions(report: Report) -> None:
    missing = next(c for c in report.candidates if c.backend == "tensorrt")
    lower = dataclasses.replace(missing, id="tensorrt fp16")
    whole = dataclasses.replace(report, candidates=(*report.candidates, lower))
    text, alone = (squeezed(shown(r, 100)) for r in (whole, report))
    assert squeezed(lower.id) in text
    assert text.count(squeezed(missing.reason)) == alone.count(squeezed(missing.reason)) == 1
