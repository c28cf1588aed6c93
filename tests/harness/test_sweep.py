"""Sweeps over batches, and the largest batch, on ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from peregrine.errors import OptionError
from peregrine.harness.race import race
from peregrine.harness.request import Request
from peregrine.model.load import load
from peregrine.objective import Objective
from peregrine.results import SweepEnd

_ONLY = ("onnxruntime[CPUExecutionProvider] fp32",)
_QUICK = {"min_runs": 5, "measure_s": 0.05, "final_rounds": 3, "only": _ONLY}


def _conv(size: int) -> onnx.ModelProto:
    """One 3x3 convolution of 8 channels; a row takes 32 * size^2 bytes in, as many out."""
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32) / 9
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, size, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _race(path, size=16, graph=None, **fields):
    model = graph or _conv(size)
    request = Request(source="conv", **{**_QUICK, **fields})
    report = race(request, path, loader=lambda directory: load(model, directory))
    row = report.candidate(_ONLY[0])
    assert row is not None
    return report, row


def test_a_sweep_doubles_until_its_end_and_every_batch_is_judged(tmp_path):
    _, row = _race(tmp_path / "run", sweep=(1, 2, 4, 8, 16))
    swept = [m.batch for m in row.measurements if m.boundary == "host"]
    assert swept == sorted(set(swept))
    assert set(swept) <= {1, 2, 4, 8, 16}
    assert len(swept) >= 3
    assert row.sweep_ended_by is SweepEnd.SATURATION or swept[-1] == 16
    assert all(m.peak_mb > 0 for m in row.measurements)


def test_a_sweep_that_memory_ended_says_so(tmp_path):
    _, row = _race(tmp_path / "run", size=256, sweep=(192,), worker_memory_mb=420)
    assert row.can_win
    assert row.sweep_ended_by is SweepEnd.MEMORY
    assert "after batch 1" in row.sweep_stopped


def test_throughput_is_decided_at_each_rows_best_batch(tmp_path):
    report, row = _race(tmp_path / "run", sweep=(1, 2, 4, 8), objective=Objective.throughput())
    host = [m for m in row.measurements if m.boundary == "host"]
    best = max(host, key=lambda m: m.throughput_per_s)
    assert report.winner.batch == best.batch


def test_the_largest_batch_is_found_under_a_memory_limit(tmp_path):
    _, row = _race(
        tmp_path / "run", size=256, find_max_batch=True, max_batch_cap=256, worker_memory_mb=420
    )
    assert row.max_batch_limited_by == "memory"
    # 2 MiB in and 2 MiB out a row, within what a process leaves of 420 MiB.
    assert 8 < row.max_batch < 150


def test_the_objective_s_memory_limit_ends_the_search_for_the_largest_batch(tmp_path):
    objective = Objective.latency(max_memory_mb=420)
    _, row = _race(
        tmp_path / "run", size=256, find_max_batch=True, max_batch_cap=256, objective=objective
    )
    assert row.can_win
    assert row.max_batch_limited_by == "memory"
    assert 8 < row.max_batch < 150


def test_where_no_batch_is_within_the_limit_none_is_the_largest(tmp_path):
    objective = Objective.latency(max_memory_mb=4)
    _, row = _race(tmp_path / "run", find_max_batch=True, max_batch_cap=8, objective=objective)
    assert (row.max_batch, row.max_batch_limited_by) == (0, "memory")
    assert "at most 4 MB is allowed" in row.disqualified


def test_the_search_for_the_largest_batch_ends_at_its_cap(tmp_path):
    _, row = _race(tmp_path / "run", find_max_batch=True, max_batch_cap=24)
    assert row.max_batch == 24
    assert row.max_batch_limited_by == "cap"


def test_rows_that_depend_on_their_batch_are_not_swept_by_repetition(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        "centre",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    # A batch of one is all zeros here, so the race is at three.
    report, row = _race(
        tmp_path / "run",
        graph=model,
        batches=(3,),
        sweep=(1, 2, 4),
        objective=Objective.latency(batch=3),
    )
    assert row.sweep_ended_by is SweepEnd.NOT_SWEPT
    assert "depends on its batch" in row.sweep_stopped
    assert report.winner is not None


def test_a_model_that_fixes_its_batch_takes_no_other(tmp_path):
    graph = _conv(8)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    report, _ = _race(tmp_path / "run", graph=graph)
    assert report.winner is not None
    with pytest.raises(OptionError, match="fixes its batch"):
        _race(tmp_path / "other", graph=graph, batches=(8,))


@pytest.mark.parametrize("batches", [(1, 8), (8, 1)])
def test_named_batches_are_each_measured_in_full(tmp_path, batches):
    report, row = _race(tmp_path / "run", batches=batches)
    assert {m.batch for m in row.measurements} == set(batches)
    assert all(len(m.samples_ms) >= 5 for m in row.measurements)
    assert len({words for words in report.reference.inputs if "batch 8" in words}) >= 1
