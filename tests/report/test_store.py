"""report.json: what is written comes back, and what is damaged is said to be."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest

from peregrine.errors import RunDirectoryError
from peregrine.report.schema import published, report_schema
from peregrine.report.store import read_json, to_json, write_json
from peregrine.results import Report, Status


def test_a_report_comes_back_as_it_was(report: Report, tmp_path: Path) -> None:
    write_json(report, tmp_path / "report.json")
    back = read_json(tmp_path)
    assert to_json(back) == to_json(report)
    assert back.winner == report.winner
    assert back.final_rounds == report.final_rounds
    assert back.candidates[0] == report.candidates[0]  # precision, tuples, thresholds and all


def test_a_report_of_a_version_that_said_less_is_read(report: Report, tmp_path: Path) -> None:
    old = json.loads(to_json(report))
    for row in old["candidates"]:
        del row["sweep_ended_by"], row["absent"]
    gone = next(row for row in old["candidates"] if row["backend"] == "tensorrt")
    gone["log"] = "logs/probe-tensorrt.log"
    (tmp_path / "report.json").write_text(json.dumps(old))
    first, *others = read_json(tmp_path).candidates
    assert first == dataclasses.replace(report.candidates[0], sweep_ended_by=None)
    assert first.sweep_stopped
    assert [row.id for row in others if row.absent] == [gone["id"]]


def test_nan_survives_as_nan_and_an_unlimited_threshold_as_infinite(
    report: Report, tmp_path: Path
) -> None:
    write_json(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text.replace("are NaN", "")
    assert "Infinity" not in text
    invalid = next(c for c in read_json(tmp_path).candidates if c.status is Status.INVALID)
    assert invalid.validation is not None
    assert math.isnan(invalid.validation.scaled_error)
    assert math.isnan(invalid.validation.outputs[0].max_abs)
    assert invalid.validation.thresholds["non_equal_percent"] == math.inf
    assert invalid.validation.nan_count == 8000


def test_the_published_schema_is_current() -> None:
    assert published() == report_schema(), "run: python -m peregrine.report.schema"


def test_every_report_validates(
    report: Report, hostile: Report, edge_cases: dict[str, Report]
) -> None:
    schema = published()
    jsonschema.Draft202012Validator.check_schema(schema)
    for each in (report, hostile, *edge_cases.values()):
        jsonschema.validate(json.loads(to_json(each)), schema)


def test_the_schema_refuses_what_is_no_report(report: Report) -> None:
    good = json.loads(to_json(report))
    missing = {key: value for key, value in good.items() if key != "machine"}
    wrong = good | {"candidates": [good["candidates"][0] | {"status": "fine"}]}
    null = good | {"candidates": [good["candidates"][0] | {"id": None}]}
    for bad in (missing, wrong, null):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, published())


def test_the_promised_fields_are_there() -> None:
    definitions = published()["$defs"]
    promised = {
        "Report": "model machine versions reference candidates winner",
        "CandidateResult": "id backend precision options status reason fix validation placement "
        "build_s load_s first_run_ms memory max_batch measurements",
        "Validation": "passed non_equal_percent scaled_error cosine max_abs top1_agreement",
        "Memory": "host_peak_mb device_peak_mb",
        "Measurement": "batch boundary latency_ms ci95_ms throughput_per_s samples_ms",
        "LatencyMs": "p50 p90 p95 p99 mean std min max",
        "Winner": "id objective margin tie_with",
    }
    for name, fields in promised.items():
        assert set(fields.split()) <= set(definitions[name]["required"]), name
    statuses = "ok invalid undecided unavailable unsupported failed timeout oom"
    assert set(definitions["Status"]["enum"]) == set(statuses.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"format": 1, "model"', "not JSON"),
        (b"\x00\xff\x00", "not JSON"),
        (b"[1, 2]", "not a report"),
        (b'{"format": 1}', "model"),
        (b'{"format": 99}', "format 99"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=said) as caught:
        read_json(tmp_path / "report.json")
    assert caught.value.fix


def test_a_truncated_report_is_refused(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(report, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunDirectoryError, match="not JSON"):
        read_json(path)


def test_a_missing_report_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"report\.json"):
        read_json(tmp_path)


def test_a_failed_write_keeps_the_earlier_report(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(report, path)
    before = path.read_bytes()
    (tmp_path / ".report.json.part").mkdir()  # in the way, even for root
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_json(dataclasses.replace(report, command="other"), path)
    assert path.read_bytes() == before


def test_samples_stay_on_one_line_and_strings_are_left_alone(report: Report) -> None:
    odd = dataclasses.replace(report, warnings=("[\n 1,\n 2 ]", "[ 3 ]"))
    text = to_json(odd)
    assert json.loads(text)["warnings"] == list(odd.warnings)
    assert len(text.splitlines()) < 8000
