"""A race takes engines that an earlier one kept, judges them like any other, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from peregrine import engines
from peregrine.backends import registry
from peregrine.harness.race import race
from peregrine.harness.request import Request
from peregrine.model.model import Model
from peregrine.results import CandidateResult, Status
from peregrine.store import Store, cache_directory
from peregrine.types import Profile, Target
from tiny_model import make_tiny

_ORT = "onnxruntime[CPUExecutionProvider] fp32"


def _row(path: Path, only: str, **fields) -> CandidateResult:
    """A race of one row."""
    request = Request(
        source="tiny",
        backends=(only.partition("[")[0],),
        only=(only,),
        min_runs=5,
        measure_s=0.05,
        final_rounds=5,
        timeout_s=30.0,
        worker_memory_mb=1500.0,
        **fields,
    )
    report = race(request, path, loader=make_tiny)
    row = report.candidate(only)
    assert row is not None
    return row


def _replace_kept(directory: Path) -> None:
    """Put other files below the key of the one engine that is kept, sealed as they are."""
    (entry,) = engines.kept()
    store = Store(cache_directory("engines"))
    (whole,) = store.entries()
    store.drop(entry.key)
    store.put(entry.key, directory, [f.name for f in directory.iterdir()], whole.record)


@pytest.mark.usefixtures("faults")
def test_the_second_race_loads_what_the_first_built(tmp_path):
    only = "faults[steady] fp32"
    first, second = (_row(tmp_path / n, only) for n in ("first", "second"))
    assert first.status is second.status is Status.OK
    assert first.engine is None
    assert second.engine is not None
    assert second.engine.cached
    assert second.engine.load_s > 0
    assert second.engine.built[:4].isdigit()
    assert second.build_s == first.build_s
    assert first.memory.host_build_peak_mb is not None
    assert second.memory.host_build_peak_mb is None
    assert second.artifact_mb == first.artifact_mb > 0
    saved = list((tmp_path / "second" / "artifacts").rglob("state"))
    assert [path.read_text() for path in saved] == ["saved"]  # for the final and a bundle


def test_a_kept_engine_computes_what_the_built_one_did(tmp_path):
    first, second = (_row(tmp_path / n, _ORT, batches=(1, 3)) for n in ("first", "second"))
    assert first.engine is None
    assert second.engine.cached
    assert second.validation.outputs == first.validation.outputs
    assert {m.batch for m in second.measurements} == {1, 3}
    assert second.can_win


@pytest.mark.usefixtures("faults")
def test_without_the_cache_all_is_built_and_nothing_kept(tmp_path):
    only = "faults[steady] fp32"
    assert _row(tmp_path / "first", only, engine_cache=False).engine is None
    assert engines.kept() == []
    _row(tmp_path / "second", only)
    assert _row(tmp_path / "third", only, engine_cache=False).engine is None


@pytest.mark.usefixtures("faults")
def test_a_row_says_what_keeps_a_near_engine_from_fitting(tmp_path):
    only = "faults[steady] fp32"
    _row(tmp_path / "first", only, threads=1)
    row = _row(tmp_path / "second", only, threads=2)
    assert row.status is Status.OK
    assert row.engine == dataclasses.replace(
        row.engine, cached=False, missed="threads 1 there, 2 here"
    )


@pytest.mark.usefixtures("faults")
def test_an_engine_that_does_not_load_is_built_again(tmp_path):
    only = "faults[steady] fp32"
    _row(tmp_path / "first", only)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "state").write_text("of another version")
    _replace_kept(tmp_path / "other")
    row = _row(tmp_path / "second", only)
    assert row.status is Status.OK
    assert row.engine is not None
    assert not row.engine.cached
    assert row.engine.missed.startswith("the kept engine could not be used: AssertionError")
    assert row.memory.host_build_peak_mb is not None
    assert _row(tmp_path / "third", only).engine.cached  # the new one took its place


def test_an_engine_that_computes_something_else_is_built_again(tmp_path):
    _row(tmp_path / "first", _ORT)
    _replace_kept(_saved(_negated(tmp_path / "model"), tmp_path / "other"))
    row = _row(tmp_path / "second", _ORT)
    assert row.status is Status.OK
    assert row.validation.passed
    assert row.engine.missed.startswith("the kept engine failed validation: Output 'y'")
    assert _row(tmp_path / "third", _ORT).engine.cached


@pytest.mark.usefixtures("faults")
def test_what_failed_is_not_kept(tmp_path):
    assert _row(tmp_path / "run", "faults[wrong] fp32").status is Status.INVALID
    assert engines.kept() == []


def _negated(directory: Path) -> Model:
    """The tiny model with the signs of its weights turned."""
    model = make_tiny(directory)
    graph = onnx.load(model.onnx_path)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, model.onnx_path)
    return model


def _saved(model: Model, directory: Path) -> Path:
    directory.mkdir()
    runtime = registry.get("onnxruntime")
    target = Target(profile=Profile.fixed(model.sizes(1)))
    candidate = next(c for c in runtime.candidates(model, target) if c.id == _ORT)
    with runtime.compile(model, candidate, target) as session:
        runtime.save(session, directory)
    return directory
