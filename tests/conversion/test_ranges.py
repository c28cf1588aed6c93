"""Ranges of activations: what was seen, less what a calibrator leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converting import calibration, job, run, small
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.quantize import collect_ranges
from peregrine.conversion.ranges import (
    Histogram,
    entropy_bounds,
    percentile_bounds,
    with_outputs,
)
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph


def _histogram(values):
    made = Histogram(float(np.abs(values).max()))
    made.add(values.astype(np.float32))
    return made


def test_minmax_is_what_the_graph_computes(tmp_path):
    model = small("residual", tmp_path)
    data = calibration(model, tmp_path, 12)
    work = job(model, Graph.U8S8, tmp_path, calibration=data)
    found = collect_ranges(work)
    bounds = found["minmax"]
    names = [name for name in bounds if name != "x"]
    graph = with_outputs(work.prepared, names)
    order = [value.name for value in graph.graph.output]
    seen = [dict(zip(order, run(graph, feeds), strict=True)) for feeds in data.items()]
    for name in names:
        low = min(float(item[name].min()) for item in seen)
        high = max(float(item[name].max()) for item in seen)
        assert bounds[name] == pytest.approx((low, high), rel=1e-5)
    # The others never reach beyond what was seen.
    for other in ("entropy", "percentile"):
        assert found[other].keys() == bounds.keys()
        for name, (low, high) in found[other].items():
            assert bounds[name][0] <= low <= high <= bounds[name][1]


def test_percentile_leaves_an_outlier_out():
    values = np.concatenate([np.random.default_rng(0).normal(size=200_000), [60.0]])
    low, high = percentile_bounds(_histogram(values))
    assert 3 < high < 5
    assert -5 < low < -3


def test_entropy_leaves_a_thin_tail_out():
    values = np.maximum(np.random.default_rng(0).normal(size=200_000), 0)
    assert 2 < entropy_bounds(_histogram(values))[1] < 0.8 * values.max()


def test_calibrators_see_histograms_of_what_is_quantised(tmp_path):
    model = small("dynamic_batch", tmp_path)
    x = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
    (tmp_path / "calibration").mkdir()
    data = Calibration.write(tmp_path / "calibration", model, [{"x": x}], "2000 rows")
    found = collect_ranges(job(model, Graph.U8S8, tmp_path, calibration=data))
    (low, high), (inner_low, inner_high) = (found[c]["x"] for c in ("minmax", "percentile"))
    assert low < inner_low < inner_high < high


def test_a_spike_at_the_end_of_the_range_stays_in():
    values = np.clip(np.random.default_rng(0).normal(2, 4, 200_000), 0, 6)
    assert percentile_bounds(_histogram(values))[1] == pytest.approx(6, rel=0.01)
    assert entropy_bounds(_histogram(values))[1] == pytest.approx(6, rel=0.01)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200),
    st.floats(90, 100, exclude_max=True),
)
def test_percentile_leaves_out_no_more_than_it_says(values, percentile):
    array = np.array(values, np.float32)
    low, high = percentile_bounds(_histogram(array), percentile)
    step = 2 * np.abs(array).max() / 2048 * 1.001
    allowed = len(values) * (100 - percentile) / 200
    assert np.sum(array < low - step) <= allowed
    assert np.sum(array > high + step) <= allowed


def test_a_tensor_of_zeros_has_a_range():
    histogram = _histogram(np.zeros(10))
    assert percentile_bounds(histogram) == (0, 0)
    assert entropy_bounds(histogram) == (0, 0)


def test_infinite_values_are_refused_by_name(tmp_path):
    model = small("dynamic_batch", tmp_path)
    x = np.full((4, 12), np.inf, np.float32)
    (tmp_path / "calibration").mkdir()
    data = Calibration.write(tmp_path / "calibration", model, [{"x": x}], "infinite")
    with pytest.raises(Unsupported, match="no finite range"):
        collect_ranges(job(model, Graph.U8S8, tmp_path, calibration=data))
