"""Tables, figures and page of a study of the paper's size, without running it."""

import dataclasses
import json

import pytest

from peregrine.report import figures
from peregrine.suite.charts import charts
from peregrine.suite.page import page
from peregrine.suite.published import paper, resnet50
from peregrine.suite.render import record, tables, write_study
from peregrine.suite.tables import OURS, PUBLISHED, best_speedup
from peregrine.types import Precision
from suite_example import study

_WHERE = (Precision.FP32, "cuda:0")


@pytest.fixture(scope="module")
def whole():
    return study()


def _lines(table, whose):
    return {
        line.label: [c.value for c in line.cells] for line in table.lines if line.whose == whose
    }


def test_the_published_figures_stand_beside_ours_and_name_their_card(whole):
    one, three, four = tables(whole)
    assert _lines(one, PUBLISHED)["W1 Torch-TensorRT"] == [256, 256, 128, 128, 64, 256, 256, 256]
    assert _lines(one, OURS)["W1 Torch-TensorRT"] == [64, 64, 64, 64, None, 64, 64, 64]
    assert "W0 PyTorch" not in _lines(one, PUBLISHED)
    assert _lines(three, PUBLISHED)["W3 ONNX Runtime"][-3:] == [1.08, 0.000034, 0.02]
    assert _lines(four, PUBLISHED)["Best workflow"] == [
        1.67, 1.64, 1.61, 1.67, 1.68, 1.83, 2.00, 2.05,
    ]  # fmt: skip
    cards = {line.card for t in (one, three, four) for line in t.lines if line.whose == PUBLISHED}
    assert cards == {"NVIDIA Quadro P620, 4 GB"}
    ours = {line.card for t in (one, three, four) for line in t.lines if line.whose == OURS}
    assert ours == {"Example GPU"}


def test_the_second_study_s_table():
    assert resnet50().average_ms == {
        "cpu": {"pytorch": 173.42, "onnxruntime": 40.01},
        "cuda": {"pytorch": 13.13, "onnxruntime": 13.98},
        "tensorrt": {"pytorch": 2.099, "onnxruntime": 3.05, "tensorrt": 1.98},
    }


def test_what_ended_at_memory_says_so(whole):
    one, *_ = tables(whole)
    (line,) = (x for x in one.lines if x.label.startswith("W3") and x.whose == OURS)
    assert line.cells[0].small == ("memory",)
    assert line.cells[0].note == "after batch 128 it was full"
    (whole_line,) = (x for x in one.lines if x.label.startswith("W2") and x.whose == OURS)
    assert whole_line.cells[0].small == ()


def test_a_row_that_ran_and_is_out_says_what_it_is(whole):
    for table in tables(whole):
        (line,) = (x for x in table.lines if x.label.startswith("W1") and x.whose == OURS)
        cell = line.cells[whole.networks.index("resnet152")]
        assert (cell.value, cell.note) == (None, "The engine does not fit.")
        assert cell.small == ("oom",)


def test_a_workflow_that_a_precision_was_not_asked_for_has_no_lines_there():
    two = study(Precision.FP32, Precision.FP16)
    kept = [e for e in two.entries if (e.workflow, e.precision) != ("W3", Precision.FP32)]
    cut = dataclasses.replace(two, entries=tuple(kept))
    assert "W3" not in cut.workflows_in(Precision.FP32, "cuda:0")
    assert "W3" in cut.workflows_in(Precision.FP16, "cuda:0")
    for table in tables(cut):
        ours = {line.label[:2] for line in table.lines if line.whose == OURS}
        assert ("W3" in ours) == ("fp16" in table.id)
    bars = charts(cut, Precision.FP32, "cuda:0")[0].bars
    assert {bar.workflow for bar in bars} == {"W0", "W1", "W2"}


def test_the_best_speedup_is_of_equal_batches_with_its_spread(whole):
    found = best_speedup(whole, "resnet50", *_WHERE)
    assert found.workflow == "W2"
    assert found.ratio == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0 * 0.98 / 1.03)
    assert found.high == pytest.approx(2.0 * 1.03 / 0.98)


def test_no_speedup_without_pytorch(whole):
    others = tuple(e for e in whole.entries if e.workflow != "W0")
    assert best_speedup(dataclasses.replace(whole, entries=others), "resnet50", *_WHERE) is None


def test_figures_are_of_the_paper_s_networks(whole):
    drawn = {chart.id: chart for chart in charts(whole, *_WHERE)}
    assert [drawn[f"figure-{n}"].network for n in (4, 5, 6)] == [
        "resnet152", "resnet34", "resnet50",
    ]  # fmt: skip
    assert len(drawn["figure-2"].bars) == len(drawn["figure-3"].bars) == 8 * 4
    by_batch = dict(next(c for c in drawn["figure-5"].curves if c.workflow == "W3").points)
    assert by_batch == {2**n: 500.0 + 8 * 2**n for n in range(8)}
    (gone,) = (c for c in drawn["figure-4"].curves if c.workflow == "W1")
    assert (gone.points, gone.note) == ((), "The engine does not fit.")


def test_throughput_is_of_the_best_batch_with_its_interval(whole):
    bar = next(b for b in charts(whole, *_WHERE)[1].bars if b.workflow == "W3")
    assert bar.note == "batch 128"
    assert bar.low == pytest.approx(bar.value / 1.03)
    assert bar.high == pytest.approx(bar.value / 0.98)


def test_tables_and_figures_of_each_precision_name_it():
    two = study(Precision.FP32, Precision.TF32)
    assert [t.id for t in tables(two)] == [
        f"table-{n}-{p}-cuda" for p in ("fp32", "tf32") for n in (1, 3, 4)
    ]
    assert all("(tf32, Example GPU)" in t.title for t in tables(two)[3:])
    assert "W0's own line is what tf32 on the device alone changes" in tables(two)[4].lead
    assert set(record(two)["charts"]) == {
        f"figure-{n}-{p}-cuda" for n in range(2, 7) for p in ("fp32", "tf32")
    }


def test_the_page_says_why_something_is_missing_and_escapes_it(whole):
    evil = "<script>alert(1)</script>"
    entries = tuple(
        dataclasses.replace(e, reason=evil, fix=evil) if not e.points else e for e in whole.entries
    )
    text = page(dataclasses.replace(whole, entries=entries, warnings=(evil,)))
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert paper().source.title in text
    assert figures.times(1.67) in text


def test_the_page_names_the_row_that_stands_for_a_workflow(whole):
    assert "W1 Torch-TensorRT is row of W1 on 7 networks." in page(whole)


def test_the_record_holds_raw_figures_tables_and_the_published(whole, tmp_path):
    write_study(whole, tmp_path)
    found = json.loads((tmp_path / "suite-report.json").read_text())
    assert found["format"] == 1
    assert len(found["study"]["entries"]) == 32
    assert found["study"]["entries"][0]["points"][0]["median_ms"] == pytest.approx(0.55)
    assert found["study"]["machines"][0]["gpus"] == list(whole.machines[0].gpus)
    assert found["published"]["largest_batch"]["W1"]["resnet152"] == 64
    assert set(record(whole)["charts"]) == set(found["charts"])
