"""OpenVINO: hints, fp32 kept, telemetry kept out, errors, what is saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance import BATCH, assert_close, converted, scaled_error, target
from one_node import one_node
from peregrine.backends.openvino import OpenVinoBackend, OpenVinoSession
from peregrine.conversion.untracked import import_openvino
from peregrine.errors import (
    BackendError,
    FeedError,
    OptionError,
    Unsupported,
)
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from small_models import SMALL

pytest.importorskip("openvino")
BACKEND = OpenVinoBackend()
LATENCY = Candidate("openvino", "latency")
THROUGHPUT = Candidate("openvino", "throughput")
BF16 = Candidate("openvino", "latency", Precision.BF16)
INT8 = {
    graph: Candidate("openvino", "latency", Precision.INT8, graph=str(graph))
    for graph in (Graph.U8S8, Graph.NNCF)
}


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["lstm"]().load(tmp_path_factory.mktemp("lstm"))


def compiled(model: Model, candidate: Candidate = LATENCY) -> OpenVinoSession:
    return BACKEND.compile(model, candidate, target(model))


def test_importing_it_sends_nothing_anywhere() -> None:
    """In a fresh interpreter, where a socket that opens is an error."""
    script = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a connection was attempted")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from peregrine.backends.openvino import import_openvino, OpenVinoBackend
assert OpenVinoBackend().available()
assert import_openvino() is sys.modules["openvino"]
loaded = [name for name in sys.modules if name.partition(".")[0] == "openvino_telemetry"]
print(json.dumps(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == []


def capabilities() -> list[str]:
    able: list[str] = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return able


def test_a_row_per_hint_precision_and_graph(residual: Model) -> None:
    """Only precisions that the CPU has: OpenVINO takes another without a word."""
    offered = list(BACKEND.candidates(residual, Target()))
    assert offered[:2] == [LATENCY, THROUGHPUT]
    assert {c.precision for c in offered} == {
        precision
        for precision, name in (
            (Precision.FP32, "FP32"),
            (Precision.BF16, "BF16"),
            (Precision.FP16, "FP16"),
            (Precision.INT8, "INT8"),
        )
        if name in capabilities()
    }
    int8 = {(c.variant, c.graph) for c in offered if c.precision is Precision.INT8}
    assert int8 == {(v, g) for v in ("latency", "throughput") for g in ("u8s8", "nncf")}
    assert {c.graph for c in offered if c.precision is not Precision.INT8} == {""}


def test_a_precision_that_the_cpu_lacks_is_refused_not_replaced(residual: Model) -> None:
    lacking = [p for p in (Precision.FP16, Precision.BF16) if p.upper() not in capabilities()]
    if not lacking:
        pytest.skip("this CPU has both fp16 and bf16")
    for precision in lacking:
        with pytest.raises(Unsupported, match=precision.upper()):
            compiled(residual, Candidate("openvino", "latency", precision))


def test_throughput_keeps_as_many_requests_in_flight_as_openvino_wants(residual: Model) -> None:
    with compiled(residual) as latency, compiled(residual, THROUGHPUT) as throughput:
        assert latency.parallelism == 1
        wanted = throughput.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        assert throughput.parallelism == wanted


def test_more_enqueued_than_there_are_requests_waits_its_turn(residual: Model) -> None:
    feeds = random_feeds(residual, BATCH, 0)
    with compiled(residual, THROUGHPUT) as session:
        expected = session.run(feeds)
        session.bind(feeds)
        for _ in range(5 * session.parallelism + 1):
            session.enqueue()
        session.synchronize()
        assert_close(session.fetch(), expected, 1e-6, "throughput")


def test_a_run_between_leaves_what_is_bound(residual: Model) -> None:
    bound, other = random_feeds(residual, BATCH, 1), random_feeds(residual, BATCH, 2)
    for candidate in (LATENCY, THROUGHPUT):
        with compiled(residual, candidate) as session:
            expected = session.run(bound)
            session.bind(bound)
            session.run(other)
            for _ in range(session.parallelism):
                session.enqueue()
                session.synchronize()
                assert_close(session.fetch(), expected, 1e-6, candidate.id)


@pytest.mark.parametrize("candidate", [LATENCY, THROUGHPUT])
def test_threads_are_the_targets(residual: Model, candidate: Candidate) -> None:
    budget = Target(profile=target(residual).profile, threads=1)
    with BACKEND.compile(residual, candidate, budget) as session:
        assert session.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_fp32_stays_fp32_where_the_cpu_has_bf16(residual: Model, tmp_path: Path) -> None:
    feeds = random_feeds(residual, BATCH, 0)
    expected = residual.load_module()
    with compiled(residual) as session:
        assert session.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        placement = session.placement(feeds)
        found = session.run(feeds)["output"]
        BACKEND.save(session, tmp_path)
    import torch

    with torch.no_grad():
        error = scaled_error(found, expected(torch.tensor(feeds["x"])).numpy())
    assert error < 1e-6
    assert "f32" in placement.detail
    assert "bf16" not in placement.detail
    assert placement.nodes.keys() == {"CPU"}
    assert placement.precisions == {"f32": 4}  # three convolutions and a matrix product
    with BACKEND.load(tmp_path, residual, LATENCY, target(residual)) as loaded:
        assert "bf16" not in loaded.placement(feeds).detail


def test_bf16_is_bf16_and_within_its_thresholds(residual: Model, tmp_path: Path) -> None:
    if "BF16" not in capabilities():
        pytest.skip("this CPU has no bf16 instructions")
    feeds = random_feeds(residual, BATCH, 0)
    with compiled(residual) as fp32, compiled(residual, BF16) as session:
        expected, found = fp32.run(feeds)["output"], session.run(feeds)["output"]
        placement = session.placement(feeds)
        BACKEND.save(session, tmp_path)
    assert found.dtype == np.float32
    assert placement.precisions == {"bf16": 4}
    assert 1e-5 < scaled_error(found, expected) <= DEFAULTS[Precision.BF16].scaled_error
    with BACKEND.load(tmp_path, residual, BF16, target(residual)) as loaded:
        np.testing.assert_array_equal(loaded.run(feeds)["output"], found)
        assert loaded.placement(feeds).precisions == {"bf16": 4}


@pytest.mark.parametrize("graph", INT8)
def test_int8_is_int8_and_within_its_thresholds(
    residual: Model, graph: Graph, tmp_path: Path
) -> None:
    feeds = random_feeds(residual, BATCH, 0)
    quantised = converted(residual, graph, tmp_path)
    with compiled(residual) as fp32, compiled(quantised, INT8[graph]) as session:
        expected, found = fp32.run(feeds)["output"], session.run(feeds)["output"]
        placement = session.placement(feeds)
        BACKEND.save(session, tmp_path)
    assert 1e-5 < scaled_error(found, expected) <= DEFAULTS[Precision.INT8].scaled_error
    assert sum(placement.precisions.values()) == 4
    assert placement.precisions.get("u8", 0) + placement.precisions.get("i8", 0) >= 3
    assert "bf16" not in placement.detail  # what stays in float is fp32, as the row says
    with BACKEND.load(tmp_path, quantised, INT8[graph], target(residual)) as loaded:
        np.testing.assert_array_equal(loaded.run(feeds)["output"], found)
        assert loaded.placement(feeds).precisions == placement.precisions


def test_a_row_is_refused_a_graph_it_does_not_name(residual: Model, tmp_path: Path) -> None:
    quantised = converted(residual, Graph.U8S8, tmp_path)
    for model, candidate in (
        (residual, INT8[Graph.U8S8]),
        (quantised, INT8[Graph.NNCF]),
        (quantised, LATENCY),
    ):
        with pytest.raises(OptionError, match="was given"):
            compiled(model, candidate)
        with pytest.raises(OptionError, match="was given"):
            BACKEND.load(tmp_path, model, candidate, target(residual))


# What is saved


@pytest.mark.parametrize("candidate", [LATENCY, THROUGHPUT])
def test_a_compiled_model_comes_back_as_it_was(
    residual: Model, tmp_path: Path, candidate: Candidate
) -> None:
    feeds = random_feeds(residual, BATCH, 0)
    with compiled(residual, candidate) as session:
        BACKEND.save(session, tmp_path)
        expected, parallelism = session.run(feeds), session.parallelism
    assert {f.name for f in tmp_path.iterdir()} == {"compiled.blob", "shapes.json"}
    with BACKEND.load(tmp_path, residual, candidate, target(residual)) as loaded:
        assert loaded.parallelism == parallelism
        np.testing.assert_array_equal(loaded.run(feeds)["output"], expected["output"])


def test_a_dynamic_model_is_not_saved(lstm: Model, tmp_path: Path) -> None:
    """OpenVINO 2026.4.1 exports a dynamic LSTM that computes something else when imported."""
    with BACKEND.compile(lstm, LATENCY, target(lstm, fixed=False)) as session:
        BACKEND.save(session, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_saved_for_other_sizes_is_compiled_again(residual: Model, tmp_path: Path) -> None:
    with compiled(residual) as session:
        BACKEND.save(session, tmp_path)
    wider = Target(profile=Profile.fixed({"batch": BATCH + 2}))
    with BACKEND.load(tmp_path, residual, LATENCY, wider) as session:
        assert session.run(random_feeds(residual, BATCH + 2, 0))["output"].shape[0] == BATCH + 2


def test_a_damaged_compiled_model_is_refused(residual: Model, tmp_path: Path) -> None:
    with compiled(residual) as session:
        BACKEND.save(session, tmp_path)
    blob = tmp_path / "compiled.blob"
    blob.write_bytes(os.urandom(200))
    with pytest.raises(BackendError) as raised:
        BACKEND.load(tmp_path, residual, LATENCY, target(residual))
    assert raised.value.fix


# Errors


def test_sizes_it_was_not_compiled_for_are_named(residual: Model) -> None:
    with (
        compiled(residual) as session,
        pytest.raises(FeedError, match=r"batch=7 \(compiled for 3\)"),
    ):
        session.run(random_feeds(residual, 7, 0))


@pytest.mark.parametrize(("domain", "named"), [("", "Frobnicate"), ("com.acme", "com.acme")])
def test_an_unknown_operator_is_named(tmp_path: Path, domain: str, named: str) -> None:
    with pytest.raises(Unsupported) as raised:
        compiled(one_node(tmp_path, "Frobnicate", domain=domain))
    assert named in raised.value.what
    assert raised.value.fix


def test_options_variants_and_precisions_are_checked(residual: Model) -> None:
    with pytest.raises(OptionError):
        compiled(residual, Candidate("openvino", "latency", options={"streams": 4}))
    with pytest.raises(OptionError, match="fast"):
        compiled(residual, Candidate("openvino", "fast"))
    for precision, what in ((Precision.INT8, "quantises"), (Precision.TF32, "no tf32")):
        with pytest.raises(Unsupported, match=what) as raised:
            compiled(residual, Candidate("openvino", "latency", precision))
        assert raised.value.fix


def test_it_does_not_offer_itself_for_a_gpu(residual: Model) -> None:
    answer = BACKEND.supports(residual, Target("cuda:0"))
    assert not answer
    assert "cuda:0" in answer.reason
