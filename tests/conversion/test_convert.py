"""The one door: a whole model directory, made once, or a refusal in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from converting import calibration, small, worst_error
from one_node import one_node
from peregrine.conversion import cache
from peregrine.conversion.convert import convert
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import KeptLayer

ONNX_GRAPHS = [graph for graph in Graph if graph is not Graph.NNCF]


@pytest.mark.parametrize("graph", ONNX_GRAPHS)
def test_the_result_is_a_model_like_the_users(graph, tmp_path):
    model = small("residual", tmp_path)
    made = convert(model, graph, tmp_path / "out", calibration=calibration(model, tmp_path, 8))
    opened = Model.open(tmp_path / "out")
    assert opened.graph == made.graph == str(graph)
    assert opened.inputs == model.inputs
    assert opened.outputs == model.outputs
    assert opened.module is None
    assert opened.sha256 not in ("", model.sha256)
    onnx.checker.check_model(str(opened.onnx_path))
    assert made.precision is graph.precision
    assert made.by
    assert not made.cached
    assert made.random_calibration is graph.calibrated
    assert bool(made.calibration) is graph.calibrated
    if graph is not Graph.BF16:  # for which ONNX Runtime has no kernels on a CPU
        assert 0 < worst_error(model, opened.onnx_path) < 0.06


def test_the_second_time_it_comes_from_the_cache(tmp_path):
    model = small("conv", tmp_path)
    data = calibration(model, tmp_path, 8)
    first = convert(model, Graph.U8S8, tmp_path / "a", calibration=data)
    second = convert(model, Graph.U8S8, tmp_path / "b", calibration=data)
    assert not first.cached
    assert dataclasses.replace(second, cached=False) == first
    assert second.cached
    content = [(tmp_path / name / "model.onnx").read_bytes() for name in "ab"]
    assert content[0] == content[1]
    named = convert(model, Graph.U8S8, tmp_path / "c", calibration=data, calibrator="entropy")
    assert not named.cached


def test_a_corrupt_cache_entry_is_made_again(tmp_path):
    model = small("conv", tmp_path)
    data = calibration(model, tmp_path, 8)
    convert(model, Graph.U8S8, tmp_path / "a", calibration=data, calibrator="minmax")
    root = cache.root()
    assert root is not None
    (entry,) = root.iterdir()
    content = bytearray((entry / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "model.onnx").write_bytes(content)
    again = convert(model, Graph.U8S8, tmp_path / "b", calibration=data, calibrator="minmax")
    assert not again.cached
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (
        tmp_path / "b" / "model.onnx"
    ).read_bytes()


def test_a_repaired_graph_is_named_so_and_remembers_what_was_kept(tmp_path):
    model = small("residual", tmp_path)
    layer = KeptLayer("/conv1/Conv", "Conv", "outliers", 0.5)
    made = convert(
        model,
        Graph.U8S8,
        tmp_path / "out",
        calibration=calibration(model, tmp_path, 8),
        keep=[layer],
        calibrator="minmax",
        name="u8s8+repaired",
    )
    assert made.graph == Model.open(tmp_path / "out").graph == "u8s8+repaired"
    assert made.kept == (layer,)
    assert made.left == {"Conv": 1}


@pytest.mark.parametrize("graph", [graph for graph in Graph if graph.calibrated])
def test_ranges_without_data_are_refused(graph, tmp_path):
    with pytest.raises(Unsupported, match="needs calibration data") as refused:
        convert(small("conv", tmp_path), graph, tmp_path / "out")
    assert "--calibration" in refused.value.fix


def test_a_model_without_a_graph_is_refused_with_its_reason(tmp_path):
    model = dataclasses.replace(small("conv", tmp_path), onnx="", onnx_error="It did not export.")
    with pytest.raises(Unsupported) as refused:
        convert(model, Graph.FP16, tmp_path / "out")
    assert refused.value.why == "It did not export."


def test_an_unknown_node_to_keep_is_refused(tmp_path):
    with pytest.raises(Unsupported, match="'nowhere'"):
        convert(
            small("conv", tmp_path),
            Graph.FP16,
            tmp_path / "out",
            keep=[KeptLayer("nowhere", "Conv", "")],
        )


@pytest.mark.parametrize("graph", [Graph.FP16, Graph.BF16, Graph.DYNAMIC])
def test_what_no_library_opens_is_refused_in_its_words(graph, tmp_path: Path):
    with pytest.raises(Unsupported) as refused:
        convert(one_node(tmp_path, "Frobnicate", domain="com.example"), graph, tmp_path / "out")
    assert "Frobnicate" in refused.value.why
    assert not (tmp_path / "out" / "model.json").exists()
