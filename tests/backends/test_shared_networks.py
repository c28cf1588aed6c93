"""Real networks through every backend that takes ONNX graphs, against the graph as written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance import BATCH, SEED, Subject, assert_close, target
from peregrine.backends import registry
from peregrine.backends._trt_engine import build_engine, installed_module
from peregrine.backends.base import Session
from peregrine.errors import BackendUnavailable
from peregrine.model.model import Model
from peregrine.types import Candidate
from real_networks import AS_WRITTEN, NETWORKS, load_network

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_network(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "tensorrt"])
def subject(request: pytest.FixtureRequest, model: Model) -> Iterator[Subject]:
    print(f"PEREGRINE_TEST_SEED={SEED}")
    backend = registry.get(request.param)
    available = backend.available()
    if not available:
        pytest.skip(available.reason)
    reference = registry.get("onnxruntime").compile(model, AS_WRITTEN, target(model))
    made = Subject(backend, model, reference.run, model.directory, lower=False)
    yield made
    made.close()
    reference.close()


def test_every_candidate_is_right_or_says_why_not(
    subject: Subject, subtests: pytest.Subtests
) -> None:
    for candidate in subject.candidates():
        with subtests.test(candidate.id):
            session = subject.outcome(candidate)
            if not isinstance(session, Session):
                assert isinstance(session, BackendUnavailable)
                assert session.why
                assert session.fix
                continue
            for salt in range(2):
                feeds = subject.feeds(BATCH, salt)
                found, expected = session.run(feeds), subject.reference(feeds)
                assert_close(found, expected, TOLERANCE, candidate.id)
            assert not session.placement(feeds).fell_back
    if subject.backend.name in ("onnxruntime", "openvino"):
        assert list(subject.running())


def test_a_real_engine_is_built_without_a_gpu(model: Model) -> None:
    if not installed_module():
        pytest.skip("TensorRT is not installed")
    engine = build_engine(model, Candidate("tensorrt"), target(model))
    weights = model.onnx_path.stat().st_size
    assert len(engine) > weights / 2, "an engine carries the network's weights"
