"""Bundles of the real CPU backends: what is written comes back and computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from peregrine import bundle, fingerprint
from peregrine.backends import registry
from peregrine.bundle import BundleWarning
from peregrine.model.model import Model
from peregrine.types import Candidate, Profile, Target
from tiny_onnx import tiny_feeds, tiny_model

TARGET = Target(profile=Profile.fixed({"batch": 2}))
ON_ONNX = ["onnxruntime", "openvino"]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return tiny_model(tmp_path / "tiny")


def written(root: Path, model: Model, candidate: Candidate, **changes: str) -> Path:
    """A bundle made the way a race makes it: compile, save, write."""
    backend = registry.get(candidate.backend)
    assert backend.available()
    artifact = root / "artifact"
    artifact.mkdir()
    with backend.compile(model, candidate, TARGET) as session:
        backend.save(session, artifact)
    made = fingerprint.current(model, candidate, TARGET, distributions=backend.distributions)
    saved = fingerprint.Fingerprint.from_json({**made.to_json(), **changes})
    return bundle.write(
        root / "tiny.bundle",
        model=model,
        candidate=candidate,
        target=TARGET,
        fingerprint=saved,
        artifact=artifact,
    )


def first_candidate(name: str, model: Model) -> Candidate:
    return next(iter(registry.get(name).candidates(model, TARGET)))


def reference(model: Model, batch: int) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(model.onnx_path)).run(None, tiny_feeds(batch))[0]


@pytest.mark.parametrize("name", ON_ONNX)
def test_a_bundle_round_trip(tmp_path: Path, model: Model, name: str) -> None:
    path = written(tmp_path, model, first_candidate(name, model))
    for _ in range(2):  # loading must leave the bundle as it was
        with bundle.load(path, on_mismatch="error") as session:
            assert session.how in ("engine", "rebuilt")
            assert session.candidate.backend == name
            for batch in (2, 1, 5):
                np.testing.assert_allclose(
                    session.run(tiny_feeds(batch))["y"], reference(model, batch), rtol=1e-4
                )


@pytest.mark.parametrize("name", ON_ONNX)
def test_elsewhere_it_is_rebuilt(tmp_path: Path, model: Model, name: str) -> None:
    path = written(tmp_path, model, first_candidate(name, model), cpu="Z80")
    with pytest.warns(BundleWarning, match="CPU Z80 there"):
        session = bundle.load(path)
    with session:
        assert session.how == "rebuilt"
        np.testing.assert_allclose(session.run(tiny_feeds(3))["y"], reference(model, 3), rtol=1e-4)


@pytest.mark.parametrize("name", ON_ONNX)
def test_one_backend_without_a_race(model: Model, name: str) -> None:
    with bundle.open_session(model, name) as session:
        assert session.how == "compiled"
        for batch in (1, 4):
            np.testing.assert_allclose(
                session.run(tiny_feeds(batch))["y"], reference(model, batch), rtol=1e-4
            )


LOAD = """
import sys
for absent in ("torch", "onnx", "onnxscript", "msgspec", "typer", "rich", "platformdirs"):
    sys.modules[absent] = None
import numpy as np
from peregrine import bundle
with bundle.load(sys.argv[1], on_mismatch="error") as session:
    feeds = {"x": np.ones((2, 8), np.float32), "offset": np.ones((2, 1), np.int64)}
    print(session.how, session.run(feeds)["y"].shape)
"""


@pytest.mark.parametrize("name", ON_ONNX)
def test_loading_needs_only_the_backends_runtime(tmp_path: Path, model: Model, name: str) -> None:
    path = written(tmp_path, model, first_candidate(name, model))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", LOAD, path],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(2, 4)\n")
