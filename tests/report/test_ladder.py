"""The precision ladder: its figures, and what every rendering says of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from rich.cells import cell_len
from rich.console import Console

from peregrine.report import figures, words
from peregrine.report.command import reproduce
from peregrine.report.conversions import made_graphs
from peregrine.report.html import page
from peregrine.report.html.plot import _key_places
from peregrine.report.ladder import Ladder, Rung, drawable, drop, judgement, ladder
from peregrine.report.png import write_ladder_png
from peregrine.report.render_all import write_all
from peregrine.report.reproduce import script
from peregrine.report.schema import published
from peregrine.report.standings import standings
from peregrine.report.store import read_json, to_json, write_json
from peregrine.report.table import render
from peregrine.report.verdict import verdict
from peregrine.results import CandidateResult, Report, Status, Verdict
from peregrine.types import Precision

REPAIRED = "onnxruntime[CPUExecutionProvider] int8 u8s8+repaired"
README_TABLE = Path(__file__).parents[2] / "benchmarks" / "readme_table.py"


def climb(report: Report) -> Ladder:
    found = ladder(report, standings(report))
    assert found is not None
    return found


def rung(report: Report, id: str) -> Rung:
    return next(r for r in climb(report).rungs if r.result.id == id)


def row(report: Report, id: str) -> CandidateResult:
    found = report.candidate(id)
    assert found is not None
    return found


def shown(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, legacy_windows=False)
    render(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def flat(text: str) -> str:
    return re.sub(r"\s+", "", text)


def text_of(source: str) -> str:
    body = source.partition("</style>")[2].partition("<script>")[0]
    return flat(re.sub(r"<[^>]*>", "", body))


def changed(report: Report, id: str, **values: object) -> Report:
    rows = (dataclasses.replace(c, **values) if c.id == id else c for c in report.candidates)
    return dataclasses.replace(report, candidates=tuple(rows))


def test_a_workflow_goes_from_fp32_down_and_a_repair_stands_below_what_it_repairs(
    climbed: Report,
) -> None:
    names = {w.name: [r.name for r in w.rungs] for w in climb(climbed).workflows}
    assert names["openvino[latency]"] == ["fp32", "bf16", "int8 nncf"]
    assert names["onnxruntime[CPUExecutionProvider]"] == [
        "fp32", "fp16", "int8 s8s8", "int8 u8s8", "int8 u8s8+repaired",
    ]  # fmt: skip
    assert "tensorrt" not in names  # nothing of it ran
    assert next(iter(names)) == "openvino[latency]"  # the winner's


def test_ratios_are_of_speed(climbed: Report) -> None:
    found, placed = climb(climbed), standings(climbed)
    p50 = {r.result.id: r.headline.latency_ms.p50 for r in placed.rows}
    assert found.best is not None
    assert found.default is not None
    assert found.best.result.id == "openvino[latency] fp32"
    assert found.default.result.id == "onnxruntime[CPUExecutionProvider] fp32"
    bf16 = rung(climbed, "openvino[latency] bf16")
    assert bf16.over_default == pytest.approx(p50[found.default.result.id] / p50[bf16.result.id])
    # Two finalists: by the final's ratio, not by two medians of their own.
    first = rung(climbed, "openvino[latency] int8 nncf")
    base = next(r for r in placed.rows if r.result.id == "openvino[latency] fp32")
    assert base.final is not None
    assert first.over_own == first.over_best == pytest.approx(base.final.ratio)


def test_a_row_that_was_not_timed_has_no_ratio(climbed: Report) -> None:
    failed = rung(climbed, "onnxruntime[CPUExecutionProvider] int8 u8s8")
    assert (failed.row, failed.over_own, failed.over_best) == (None, None, None)
    assert failed not in [r for r, _ in drawable(climb(climbed))]


def test_a_plot_of_fp32_alone_is_none(report: Report) -> None:
    assert len([r for r in climb(report).rungs if r.row]) > 2
    assert drawable(climb(report)) == []  # its only fp16 row failed
    assert 'class="chart scatter"' not in page(report)
    assert "Precision ladder" in page(report)


def test_a_workflow_without_valid_fp32_has_none_to_compare_with(climbed: Report) -> None:
    report = changed(climbed, "pytorch[eager] fp32", status=Status.INVALID)
    assert rung(report, "pytorch[eager] bf16").over_own is None
    assert rung(climbed, "pytorch[eager] bf16").over_own == pytest.approx(31 / 22.4, rel=0.01)


def test_a_race_of_one_precision_has_no_ladder(climbed: Report, tmp_path: Path) -> None:
    rows = tuple(c for c in climbed.candidates if c.precision is Precision.FP32)
    one = dataclasses.replace(climbed, candidates=rows, winner=None, final_rounds=())
    assert ladder(one, standings(one)) is None
    assert "Precision ladder" not in shown(one, 100)
    assert "Precision ladder" not in page(one)
    assert not write_ladder_png(one, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_undecided_comes_after_valid_and_before_barred(climbed: Report) -> None:
    rows = standings(climbed).rows
    status = [(r.result.status, bool(r.result.disqualified)) for r in rows]
    valid = [(Status.OK, False)] * 12
    assert status == [*valid, *[(Status.UNDECIDED, False)] * 2, (Status.OK, True)]
    assert [r.rank for r in rows[12:]] == [None, None, None]
    assert rows[12].headline.latency_ms.p50 < rows[13].headline.latency_ms.p50


def test_an_undecided_row_that_was_allowed_to_win_is_first(climbed: Report) -> None:
    assert climbed.winner is not None
    won = changed(climbed, climbed.winner.id, status=Status.UNDECIDED)
    placed = standings(won)
    assert (placed.rows[0].result.id, placed.rows[0].rank) == (climbed.winner.id, 1)
    assert climbed.winner.id not in [c.id for c in placed.out]


def test_the_verdict_names_what_was_faster_but_undecided(climbed: Report) -> None:
    assert verdict(climbed).undecided == ""
    slow = row(climbed, "pytorch[eager] bf16")
    id = "openvino[throughput] int8 nncf"
    assert climbed.winner is not None
    faster = changed(climbed, id, measurements=tuple(
        dataclasses.replace(m, latency_ms=dataclasses.replace(m.latency_ms, p50=1.0))
        for m in row(climbed, id).measurements
    ))  # fmt: skip
    said = verdict(faster).undecided
    assert said.startswith(f"{id} ran at 2.")
    assert "about 840 more images would decide" in said
    assert said in shown(faster, 400)
    nobody = dataclasses.replace(climbed, candidates=(slow,), winner=None, final_rounds=())
    assert "1 undecided" in verdict(nobody).why
    assert "--allow-undecided" in verdict(nobody).why


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_says_it_all_within_its_width(climbed: Report, width: int) -> None:
    text = shown(climbed, width)
    for line in text.splitlines():
        copied = line.strip().startswith(("peregrine build", "session", "outputs", "runs/"))
        assert copied or cell_len(line) <= width, line
    for part in (
        "Precision ladder", "12.5 (6.4 to 18.6)", "top-1 of the reference: 75% on the same 80",
        "undecided: about 840 more images would decide",
        "repaired: 2 layers kept in fp32, 1.04\N{MULTIPLICATION SIGN} the time of the unrepaired",
        "not repaired: with 12 layers in fp32 it still fails",
        "no use here: it takes 1.06 times the time of its fp32",
        "scaled error: minmax 1.2e-01, entropy 6.1e-02, percentile 3.4e-02",
        "kept in fp32: /blocks.0/conv_dw/Conv (Conv): outliers", "from the cache (14.2 s",
        "40 photos calibrate, the other 80 judge",
    ):  # fmt: skip
        assert flat(part) in flat(text), part


def test_a_ladder_line_is_one_line_where_it_fits(climbed: Report) -> None:
    (line,) = [
        x for x in shown(climbed, 120).splitlines() if x.startswith("    int8 u8s8+repaired")
    ]
    assert line.split() == [
        "int8", "u8s8+repaired", "3.28", "2.74×", "2.05×", "2.77×", "75%", "0", "(-0.9", "to",  # noqa: RUF001
        "0.9)", "ok", "4.9", "MiB", "14.2", "s",
    ]  # fmt: skip


def test_without_labels_agreement_and_error_stand_instead(examples: ModuleType) -> None:
    report = examples.ladder_report(labels=False)
    text = shown(report, 120).partition("Precision ladder")[2]
    titles = next(line for line in text.splitlines() if "p50 ms" in line).split()
    assert {"agrees", "error", "verdict"} <= set(titles)
    assert "drop" not in titles
    assert "scaled error against the reference (logarithmic)" in page(report)


def test_the_page_says_it_all(climbed: Report) -> None:
    text = text_of(page(climbed))
    for part in (
        "Precision ladder", "Speed-up is against onnxruntime[CPUExecutionProvider] fp32",
        "max drop 1", "12.5 (6.4 to 18.6)", "? undecided", "about 420 more images would decide",
        "Not drawn, for a failing row is not timed: onnxruntime[CPUExecutionProvider] int8 s8s8",
        "no use here: it takes 1.06", "repaired: 2 layers kept in fp32", "not repaired: with 12",
        "Conversions", "percentile", "6.1e-02", "/conv_head/Conv", "Repairs", "1 step", "2 steps",
        "48.0 s of at most 2 min", "40 photos calibrate", "read by",
        "in fp32 alone", "Accuracy guard", "Interval: paired score interval (Tango 1998)",
        "Judged on real inputs alone",
    ):  # fmt: skip
        assert flat(part) in text, part


def test_the_plot_has_a_point_a_measured_row_with_its_interval(climbed: Report) -> None:
    plot = re.search(r'<figure class="chart scatter">(.*?)</figure>', page(climbed), re.S)
    assert plot is not None
    spots = re.findall(r'<span class="spot series (\w+)"', plot[1])
    drawn = drawable(climb(climbed))
    assert len(spots) == len(drawn)
    assert spots.count("undecided") == 2
    wide = [r for r, _ in drawn if r.guard is not None and r.guard.ci95[0] < r.guard.ci95[1]]
    assert plot[1].count('class="whisker series"') == len(wide) == 6
    assert plot[1].count("var(--int8)") > 3
    assert len(re.findall('class="maxdrop"', plot[1])) == 1


def test_random_calibration_is_marked_everywhere(climbed: Report) -> None:
    id = "openvino[throughput] int8 nncf"
    loud = flat(f"{words.RANDOM}: {id}.")
    assert flat(shown(climbed, 100)).count(loud) == 2
    source = page(climbed)
    assert 'class="alarm"' in source
    assert loud in text_of(source)
    assert words.RANDOM in script(climbed, row(climbed, id))
    real = tuple(
        dataclasses.replace(c, conversion=c.conversion and dataclasses.replace(
            c.conversion, random_calibration=False))
        for c in climbed.candidates
    )  # fmt: skip
    quiet = dataclasses.replace(climbed, candidates=real)
    assert words.RANDOM not in page(quiet) + shown(quiet, 400)
    assert 'class="alarm"' not in page(quiet)


def test_graphs_are_told_once_with_their_readers(climbed: Report) -> None:
    twin = dataclasses.replace(row(climbed, "openvino[latency] int8 nncf"), id="twin")
    assert twin.conversion is not None
    cached = dataclasses.replace(twin, conversion=dataclasses.replace(twin.conversion, cached=True))
    found = made_graphs(dataclasses.replace(climbed, candidates=(cached, *climbed.candidates)))
    assert [g.made.graph for g in found] == [
        "fp16", "nncf", "nncf", "s8s8", "u8s8", "u8s8+repaired"
    ]  # fmt: skip
    assert [r.id for r in found[1].rows] == ["twin", "openvino[latency] int8 nncf"]
    assert not found[1].made.cached  # what it took, where one of the rows knows
    assert found[2].made.random_calibration


def test_a_script_races_what_is_repaired_before_the_repair(climbed: Report) -> None:
    failed = "onnxruntime[CPUExecutionProvider] int8 u8s8"
    assert reproduce(climbed, REPAIRED)[-4:] == ["--only", failed, "--only", REPAIRED]
    assert reproduce(climbed, failed)[-2:] == ["--only", failed]
    text = script(climbed, row(climbed, REPAIRED))
    assert "graphs/u8s8+repaired" in text
    assert "Calibrated on 40 of 120 photos in photos/." in text
    python = script(dataclasses.replace(climbed, command=""), row(climbed, REPAIRED))
    assert "int8 u8s8+repaired" in python
    assert f"only=({failed!r}".replace("'", "") in python.replace("'", "").replace('"', "")
    assert "graph" not in script(climbed, row(climbed, "openvino[latency] fp32"))


def test_it_is_kept_and_validates(climbed: Report, tmp_path: Path) -> None:
    write_json(climbed, tmp_path / "report.json")
    assert read_json(tmp_path).candidates == climbed.candidates
    jsonschema.validate(json.loads(to_json(climbed)), published())


def test_everything_is_written(climbed: Report, examples: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, report in enumerate((climbed, examples.ladder_report(labels=False))):
        written = write_all(report, tmp_path / str(number))
        (picture,) = [path for path in written if path.name == "ladder.png"]
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_hostile_words_of_a_conversion_are_only_words(climbed: Report, tmp_path: Path) -> None:
    said = "<script>alert(1)</script> [red]x[/red] \x1b[2J $x$ $(id)\nline"
    made = row(climbed, REPAIRED).conversion
    judged = row(climbed, REPAIRED).validation
    assert made is not None
    assert judged is not None
    assert judged.guard is not None
    layers = tuple(dataclasses.replace(k, node=said, reason=said) for k in made.kept)
    tried = tuple(dataclasses.replace(t, calibrator=said) for t in made.tried)
    conversion = dataclasses.replace(
        made, by=said, calibration=said, calibrator=said, tried=tried, converted={said: 1},
        kept=layers, notes=(said,),
    )  # fmt: skip
    guard = dataclasses.replace(judged.guard, measure=said, unit=said)
    evil = changed(climbed, REPAIRED, conversion=conversion, useless=said, validation=(
        dataclasses.replace(judged, guard=guard)))  # fmt: skip
    # The measure names columns, so that every row must have it.
    evil = dataclasses.replace(evil, candidates=tuple(
        dataclasses.replace(c, validation=c.validation and dataclasses.replace(
            c.validation, guard=c.validation.guard and guard))
        for c in evil.candidates
    ))  # fmt: skip
    assert page(evil).count("<script") == 1
    for text in (page(evil), shown(evil, 100), script(evil, row(evil, REPAIRED))):
        assert "\x1b" not in text
    assert flat("[red]x[/red]") in flat(shown(evil, 100))
    for path in write_all(evil, tmp_path):
        assert path.is_file()


@pytest.mark.parametrize(
    ("status", "guarded", "expected"),
    [
        (Status.OK, Verdict.OK, "ok"),
        (Status.INVALID, Verdict.FAILED, "failed"),
        (Status.UNDECIDED, Verdict.UNDECIDED, "undecided: about 1,200 more images would decide"),
        (Status.OK, Verdict.UNDECIDED, "undecided: about 1,200 more images would decide"),
        (Status.TIMEOUT, Verdict.OK, "timeout"),
    ],
)
def test_a_judgement_is_of_accuracy(
    climbed: Report, status: Status, guarded: Verdict, expected: str
) -> None:
    base = row(climbed, REPAIRED)
    assert base.validation is not None
    assert base.validation.guard is not None
    guard = dataclasses.replace(base.validation.guard, verdict=guarded, more_items=1200)
    judged = dataclasses.replace(base.validation, guard=guard)
    assert judgement(dataclasses.replace(base, status=status, validation=judged)) == expected


def test_figures_of_a_drop(climbed: Report) -> None:
    assert drop(None) == figures.MISSING
    assert drop(rung(climbed, "openvino[latency] bf16").guard) == "-0.3 (-1.1 to 0.5)"
    assert [figures.points(v) for v in (0.0, -0.001, 12.5, -1.234, 100.0)] == [
        "0", "0", "12.5", "-1.23", "100",
    ]  # fmt: skip


def test_keys_of_near_points_stand_apart() -> None:
    spots = [(100.0, 500.0), (104.0, 500.0), (109.0, 500.0), (900.0, 20.0)]
    places = _key_places(spots)
    for number, (x, y) in enumerate(places):
        assert all(abs(x - a) > 15 or abs(y - b) > 30 for a, b in places[:number])


def readme_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", README_TABLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_block_is_a_whole_table(climbed: Report) -> None:
    made = readme_table()
    lines = made.ladder_block(climbed, "docs/a.png").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(climb(climbed).rungs)
    assert {line.count("|") for line in table} == {11}
    assert any("| 12.5 (6.4 to 18.6) |" in line and "failed: " not in line for line in table)
    assert words.RANDOM in "\n".join(lines)


def test_the_readme_is_changed_between_markers_alone() -> None:
    made = readme_table()
    text = "a\n<!-- ladder: begin -->\nold\n<!-- ladder: end -->\nb\n"
    assert made.replaced(text, "ladder", "new") == text.replace("old", "new")
    with pytest.raises(SystemExit, match="measured: begin"):
        made.replaced(text, "measured", "new")
