"""Suites as a user runs them: races on a CPU, resumed, merged, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from peregrine import api
from peregrine.errors import OptionError, RunDirectoryError
from peregrine.suite.ask import Ask, make_ask
from peregrine.suite.run import begin, finished, run
from peregrine.suite.study import read
from peregrine.types import Precision
from tiny_model import tiny_graph

_QUICK = {"min_runs": 5, "measure_s": 0.01, "measure_max_s": 0.1, "final_rounds": 3}
_IMAGE = "x:float32:Bx3x32x32"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, faults_for_module):
    """Two networks by every workflow, as `suite paper` runs them."""
    path = tmp_path_factory.mktemp("whole") / "study"
    progress, written = api.run_suite(
        "paper",
        path,
        networks=("suite_networks:narrow", "suite_networks:wide"),
        batches=(1, 2),
        device="cpu",
        input_specs=(_IMAGE,),
        **_QUICK,
    )
    return path, progress, written


@pytest.fixture
def networks(tmp_path):
    """Two graphs that ONNX Runtime opens at once."""
    for name in ("first", "second"):
        onnx.save(tiny_graph(), tmp_path / f"{name}.onnx")
    return tuple(str(tmp_path / f"{name}.onnx") for name in ("first", "second"))


def _ask(networks, batches=(1,), **fields):
    asked = {"workflows": ("W3",), "device": "cpu", **_QUICK, **fields}
    return make_ask("paper", networks=networks, batches=batches, **asked)


def _run(ask, path, **options):
    begin(ask, path)
    return run(ask, path, **options)


def test_every_workflow_is_measured_or_says_why_not(whole):
    path, progress, _ = whole
    assert progress.done == ("narrow-cpu", "wide-cpu")
    assert progress.failed == progress.left == ()
    study = read([path])
    assert study.networks == ("narrow", "wide")
    for network in study.networks:
        for workflow in ("W0", "W3"):
            entry = study.entry(network, workflow, Precision.FP32, "cpu")
            assert [p.batch for p in entry.points] == [1, 2]
            assert 0 <= entry.non_equal_percent_1e3 < 10
            assert [p.host_median_ms is None for p in entry.points] == [False, True]
            for point in entry.points:
                low, high = point.ci95_ms
                assert 0 < low <= point.median_ms <= high
                assert point.samples >= 1
                assert point.memory_mb > 0
        for workflow in ("W1", "W2"):
            entry = study.entry(network, workflow, Precision.FP32, "cpu")
            assert entry.points == ()
            assert entry.reason
            assert entry.fix


def test_tables_and_figures_are_complete(whole):
    path, _, written = whole
    record = json.loads((path / "suite-report.json").read_text())
    assert [t["id"] for t in record["tables"]] == [f"table-{n}-fp32-cpu" for n in (1, 3, 4)]
    for shown in record["tables"]:
        assert all(len(line["cells"]) == 2 for line in shown["lines"])
    first, _, speedups = record["tables"]
    by_label = {line["label"]: line for line in first["lines"]}
    assert [c["value"] for c in by_label["W3 ONNX Runtime"]["cells"]] == [2, 2]
    assert [c["value"] for c in by_label["W1 Torch-TensorRT"]["cells"]] == [None, None]
    assert all(c["value"] > 0 for c in speedups["lines"][0]["cells"])
    assert set(record["charts"]) == {f"figure-{n}-fp32-cpu" for n in range(2, 7)}
    assert record["published"]["source"]["card"] == "NVIDIA Quadro P620, 4 GB"
    assert record["study"]["machines"][0]["cpu"]
    assert record["study"]["versions"]["onnxruntime"]
    pictures = [p for p in written if p.suffix == ".png"]
    assert len(pictures) == 5
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    page = (path / "suite.html").read_text()
    for words in ("Table I.", "Table III.", "Table IV.", *(f"Figure {n}." for n in range(2, 7))):
        assert words in page


@pytest.fixture(scope="module")
def both(tmp_path_factory, faults_for_module):
    """A network in two precisions, as `suite paper` runs them."""
    path = tmp_path_factory.mktemp("both") / "study"
    progress, _ = api.run_suite(
        "paper", path, networks=("suite_networks:wide",), batches=(1,), device="cpu",
        precisions=("fp32", "fp16"), input_specs=(_IMAGE,), **{**_QUICK, "final_rounds": 5},
    )  # fmt: skip
    return path, progress


def test_all_precisions_of_a_network_are_one_race(both):
    path, progress = both
    assert progress.done == ("wide-cpu",)
    assert [p.name for p in path.iterdir() if p.is_dir()] == ["wide-cpu"]
    study = read([path])
    assert study.precisions == (Precision.FP32, Precision.FP16)
    base = {Precision.FP32: "pytorch[eager] fp32", Precision.FP16: "pytorch[channels_last] fp16"}
    for precision, name in base.items():
        assert study.entry("wide", "W0", precision, "cpu").candidate == name
        own = study.entry("wide", "W3", precision, "cpu")
        assert own.candidate == f"onnxruntime[CPUExecutionProvider] {precision}"
        # One backend that is not here has one row, which is the answer in each precision.
        assert "not installed" in study.entry("wide", "W1", precision, "cpu").reason
    record = json.loads((path / "suite-report.json").read_text())
    assert [t["id"] for t in record["tables"]] == [
        f"table-{n}-{p}-cpu" for p in base for n in (1, 3, 4)
    ]
    assert set(record["charts"]) == {f"figure-{n}-{p}-cpu" for n in range(2, 7) for p in base}


def test_no_row_leaves_the_final_before_the_end(both):
    report = api.open_report(both[0] / "wide-cpu")
    valid = {row.id for row in report.candidates if row.can_win}
    assert len(valid) == 4
    played = {(turn.candidate, turn.round) for turn in report.final_rounds}
    assert played == {(row, number) for row in valid for number in range(1, 6)}
    assert Ask("paper", ("resnet18",), ("cpu",)).final_rounds == 5


def test_what_others_are_compared_with_comes_first_into_the_final(both):
    lines = (both[0] / "wide-cpu" / "results.jsonl").read_text().splitlines()
    (final,) = (x["record"] for x in map(json.loads, lines) if x["kind"] == "final")
    assert set(final["entrants"][:2]) == {"pytorch[eager] fp32", "pytorch[channels_last] fp16"}


def test_speedups_are_of_one_precision(both):
    path, _ = both
    rounds = api.open_report(path / "wide-cpu").final_rounds
    study = read([path])
    for precision, base in (
        ("fp32", "pytorch[eager] fp32"),
        ("fp16", "pytorch[channels_last] fp16"),
    ):
        entry = study.entry("wide", "W3", Precision(precision), "cpu")
        expected = [
            tuple(float(np.median(turn.samples_ms)) for turn in rounds if turn.candidate == name)
            for name in (base, entry.candidate)
        ]
        assert list(entry.final) == expected


def test_what_is_so_in_every_precision_is_said_once(both):
    page = (both[0] / "suite.html").read_text()
    assert page.count("W1 Torch-TensorRT (fp32, fp16, cpu)") == 1
    for precision in ("fp32", "fp16"):
        assert f'href="#{precision}-cpu"' in page
        assert f'id="{precision}-cpu"' in page


def test_the_final_pairs_w3_with_w0(whole):
    entry = read([whole[0]]).entry("wide", "W3", Precision.FP32, "cpu")
    ratio = entry.lead_speedup
    base, own = (np.asarray(times) for times in entry.final)
    assert ratio.mean == pytest.approx(np.exp(np.log(base / own).mean()))
    assert ratio.low <= ratio.mean <= ratio.high


def test_finished_races_are_kept_and_light(whole):
    path, _, _ = whole
    rows = path / "narrow-cpu" / "results.jsonl"
    before = rows.stat().st_mtime_ns
    progress, _ = api.resume_suite("paper", path)
    assert progress.done == ("narrow-cpu", "wide-cpu")
    assert rows.stat().st_mtime_ns == before
    assert not (rows.parent / "feeds").exists()
    assert not (rows.parent / "artifacts").exists()
    assert [f.name for f in (rows.parent / "model").iterdir()] == ["model.json"]
    # What is left is a run that can be reported on its own.
    assert api.open_report(rows.parent).winner is not None


def test_engines_of_earlier_races_are_no_part_of_a_study(whole):
    path, _, _ = whole
    ask = Ask.load(path)
    assert not any(ask.request(race).engine_cache for race in ask.races())
    report = api.open_report(path / "wide-cpu")
    assert all(row.engine is None for row in report.candidates)


def test_a_memory_limit_stands_for_a_smaller_card(whole, tmp_path):
    path = tmp_path / "limited"
    shutil.copytree(whole[0], path)
    dataclasses.replace(Ask.load(path), limit_memory_mb=1.0).save(path)
    entry = read([path]).entry("wide", "W3", Precision.FP32, "cpu")
    assert entry.points == ()
    assert entry.reason.startswith("memory: batch 1 takes ")


def test_another_machine_s_piece_does_not_merge(whole, tmp_path):
    path = tmp_path / "elsewhere"
    shutil.copytree(whole[0], path)
    for file in path.glob("*/report.json"):
        report = json.loads(file.read_text())
        report["machine"]["cpu"] = "another processor"
        file.write_text(json.dumps(report))
    with pytest.raises(OptionError, match="different machines") as refused:
        read([whole[0], path])
    assert "another processor" in refused.value.why


def test_a_time_limit_stops_before_the_next_network(networks, tmp_path):
    ask = _ask(networks)
    path = tmp_path / "study"
    progress = _run(ask, path, time_limit_s=1e-3)
    assert progress.done == ("first-cpu",)
    assert progress.left == ("second-cpu",)
    assert read([path]).warnings == ("second-cpu (fp32): not run yet",)
    shutil.copytree(path, tmp_path / "other")
    assert run(ask, tmp_path / "other").left == ()
    # What one piece left another has run.
    for order in ([path, tmp_path / "other"], [tmp_path / "other", path]):
        study = read(order)
        assert study.warnings == ()
        assert [len(e.points) for e in study.entries] == [1, 1]


def test_pieces_merge_networks_and_batches(networks, tmp_path):
    first, second = networks
    pieces = [tmp_path / name for name in ("a", "b", "c")]
    _run(_ask((first,), (1,)), pieces[0])
    _run(_ask((second,), (1, 2)), pieces[1])
    _run(_ask((first,), (4,)), pieces[2])
    written = api.report_suite(pieces, tmp_path / "merged")
    assert all(p.is_file() and p.parent == tmp_path / "merged" for p in written)
    study = read(pieces)
    assert study.networks == ("first", "second")
    assert study.batches == (1, 2, 4)
    found = {e.network: [p.batch for p in e.points] for e in study.entries}
    assert found == {"first": [1, 4], "second": [1, 2]}


def test_pieces_merge_precisions(networks, tmp_path):
    pieces = [tmp_path / name for name in ("a", "b")]
    _run(_ask(networks), pieces[0])
    _run(_ask(networks, precisions=("fp16",)), pieces[1], time_limit_s=1e-3)
    # What one precision has run is no excuse for the other.
    assert read(pieces).warnings == ("second-cpu (fp16): not run yet",)
    api.resume_suite("paper", pieces[1])
    study = read(pieces)
    assert study.warnings == ()
    assert study.precisions == (Precision.FP32, Precision.FP16)
    for piece, precision in zip(pieces, study.precisions, strict=True):
        for network in study.networks:
            where = (network, "W3", precision, "cpu")
            assert study.entry(*where) == read([piece]).entry(*where)
            assert study.entry(*where).points


def test_a_race_of_one_precision_of_an_earlier_version_is_named(networks, tmp_path):
    path = tmp_path / "study"
    begin(_ask(networks[:1]), path)
    (path / "first-fp32-cpu").mkdir()
    (warning,) = read([path]).warnings
    assert "first-cpu (fp32): not run yet; first-fp32-cpu is of a version" in warning


def test_of_the_same_network_twice_the_later_counts(networks, tmp_path):
    pieces = [tmp_path / name for name in ("a", "b")]
    for piece in pieces:
        _run(_ask(networks[:1]), piece)
    for order in (pieces, pieces[::-1]):
        merged = read(order).entries[0].points[0]
        later = max(order, key=lambda p: read([p]).finished)
        assert merged == read([later]).entries[0].points[0]


def test_a_killed_suite_goes_on_where_it_was(networks, tmp_path):
    path = tmp_path / "study"
    command = [
        sys.executable, "-m", "peregrine", "suite", "paper", "--out", str(path), "--device", "cpu",
        "--workflows", "W3", "--batches", "1", "--runs", "5", "--quiet",
        "--networks", ",".join(networks),
    ]  # fmt: skip
    process = subprocess.Popen(command, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (path / "second-cpu" / "run.json").is_file():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished(path / "first-cpu")
    assert not finished(path / "second-cpu")
    before = (path / "first-cpu" / "results.jsonl").read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Left for later" not in done.stdout
    assert (path / "first-cpu" / "results.jsonl").read_bytes() == before
    assert finished(path / "second-cpu")
    assert [len(e.points) for e in read([path]).entries] == [1, 1]


def test_a_network_that_cannot_be_loaded_does_not_end_the_suite(networks, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    progress, _ = api.run_suite(
        "paper", tmp_path / "study", networks=(str(broken), networks[0]), batches=(1,),
        device="cpu", workflows=("W3",), **_QUICK,
    )  # fmt: skip
    assert progress.failed == ("broken-cpu",)
    assert progress.done == ("first-cpu",)
    study = read([tmp_path / "study"])
    entry = study.entry("broken", "W3", Precision.FP32, "cpu")
    assert entry.points == ()
    assert entry.reason in study.warnings[0]
    assert "broken" in (tmp_path / "study" / "suite.html").read_text()


def test_the_resnet50_table(networks, tmp_path):
    _, written = api.run_suite(
        "resnet50", tmp_path / "study", networks=networks[:1], device="cpu", **_QUICK
    )
    record = json.loads(written[0].read_text())
    (shown,) = record["tables"]
    cells = {line["label"]: [c["value"] for c in line["cells"]] for line in shown["lines"]}
    assert cells["CPU"][1] > 0
    assert cells["CPU"][2] is None
    assert cells["CUDA"] == cells["TensorRT"] == [None, None, None]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"networks": ("resnet19",)}, "resnet18"),
        ({"workflows": ("W4",)}, "W4"),
        ({"workflows": ("W0:fp61",)}, "fp16"),
        ({"precisions": (Precision.INT8,)}, "int8"),
        ({"precisions": ("auto",)}, "auto"),
        ({"batches": (2, 1)}, "smallest first"),
        ({"batches": (0, 1)}, "smallest first"),
        ({"networks": ("a:net", "b:net")}, "one directory"),
    ],
)
def test_what_cannot_be_meant(fields, words):
    with pytest.raises(OptionError) as refused:
        make_ask("paper", **{"device": "cpu", **fields})
    assert words in str(refused.value)


def test_a_workflow_of_gpus_alone_on_a_cpu():
    with pytest.raises(OptionError, match="None of these workflows is for cpu"):
        make_ask("resnet50", device="cpu", workflows=("onnxruntime-cuda",))


def test_directories_that_hold_something_else(networks, tmp_path):
    ask = _ask(networks)
    begin(ask, tmp_path / "study")
    begin(ask, tmp_path / "study")
    with pytest.raises(RunDirectoryError, match="asked for otherwise"):
        begin(_ask(networks, (1, 2)), tmp_path / "study")
    with pytest.raises(RunDirectoryError, match="no suite"):
        begin(ask, tmp_path)
    with pytest.raises(RunDirectoryError, match="not a suite's directory"):
        read([tmp_path])
    with pytest.raises(OptionError, match="holds the suite paper"):
        api.resume_suite("resnet50", tmp_path / "study")
    with pytest.raises(OptionError, match="no directory in common"):
        api.report_suite([tmp_path / "study", tmp_path / "study"])
    begin(_ask(networks, limit_memory_mb=100.0), tmp_path / "small")
    with pytest.raises(OptionError, match="memory limits"):
        read([tmp_path / "study", tmp_path / "small"])


def test_the_command_needs_a_directory():
    done = subprocess.run(
        [sys.executable, "-m", "peregrine", "suite", "paper"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--out DIR" in done.stderr


def test_a_race_that_was_killed_shows_what_it_had_measured(whole, tmp_path):
    path = tmp_path / "killed"
    shutil.copytree(whole[0], path)
    race_directory = path / "wide-cpu"
    for file in ("report.json", "report.html"):
        (race_directory / file).unlink()
    rows = (race_directory / "results.jsonl").read_text().splitlines(keepends=True)
    final = next(i for i, line in enumerate(rows) if '"final"' in line.partition(",")[0])
    (race_directory / "results.jsonl").write_text("".join(rows[: final + 1]))
    study = read([path])
    before = read([whole[0]])
    for workflow in ("W0", "W3"):
        where = ("wide", workflow, Precision.FP32, "cpu")
        shown, measured = (s.entry(*where).points for s in (study, before))
        assert [(p.batch, p.median_ms, p.samples) for p in shown] == [
            (p.batch, p.median_ms, p.samples) for p in measured
        ]
        assert study.entry(*where).final == ()
    assert study.warnings == ()  # every row says how it ended


def test_a_race_that_was_killed_before_a_precision_says_which(both, tmp_path):
    path = tmp_path / "killed"
    shutil.copytree(both[0], path)
    for file in ("report.json", "report.html"):
        (path / "wide-cpu" / file).unlink()
    rows = (path / "wide-cpu" / "results.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in rows if '"fp16"' not in line or '"plan"' in line.partition(",")[0]]
    (path / "wide-cpu" / "results.jsonl").write_text("".join(kept[:-1]))
    study = read([path])
    assert study.warnings == ("wide-cpu (fp16): interrupted",)
    assert study.entry("wide", "W0", Precision.FP32, "cpu").points
    assert study.entry("wide", "W0", Precision.FP16, "cpu").reason == "interrupted"


def test_a_threshold_of_one_s_own_reaches_the_race(networks):
    ask = _ask(networks, precisions=("fp16",), thresholds={"top1_agreement": 0.0}, workflows=())
    (first, _) = ask.races()
    assert ask.request(first).thresholds == {"top1_agreement": 0.0}


def test_the_native_engine_is_a_workflow_by_name(networks, tmp_path):
    ask = _ask(networks[:1], workflows=("W3", "native"))
    assert _run(ask, tmp_path / "suite").done
    study = read([tmp_path / "suite"])
    assert study.workflows == ("W3", "native")
    entry = study.entry("first", "native", Precision.FP32, "cpu")
    assert entry.candidate == "native fp32"
    assert entry.points
    assert "native" not in {w.key for w in _ask(networks, workflows=()).chosen}


def test_a_workflow_in_one_precision_of_the_suite(networks, tmp_path):
    words = ("native:fp16", "w0", "w0:fp32")
    ask = _ask(networks[:1], precisions=("fp32", "fp16"), workflows=words)
    assert [(w.key, w.precisions) for w in ask.chosen] == [
        ("W0", ()),
        ("native", (Precision.FP16,)),
    ]
    assert ask.request(ask.races()[0]).only == (
        "pytorch[eager] fp32", "pytorch[channels_last] fp16", "native fp16"
    )  # fmt: skip
    ask.save(tmp_path)
    assert Ask.load(tmp_path) == ask
    study = read([tmp_path])
    assert study.entry("first", "native", Precision.FP32, "cpu") is None
    assert study.entry("first", "native", Precision.FP16, "cpu").reason
