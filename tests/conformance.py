"""What the conformance suites share: models loaded once, and one backend's sessions over one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from peregrine.backends.base import Backend, Session
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.convert import convert
from peregrine.errors import BackendUnavailable, Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, DimRange, Feeds, Precision, Profile, Target
from peregrine.validate import DEFAULTS

SEED = int(os.environ.get("PEREGRINE_TEST_SEED", secrets.randbelow(2**31)))
"""Of every input here; fresh in each run, and printed where a test fails."""

BATCH = 3
LARGEST = 9
FP32_TOLERANCE = 1e-5

Reference = Callable[[Feeds], dict[str, Array]]


def scaled_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, Euclidean, in float64."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(difference)) / (norm or 1.0)


def assert_close(
    found: dict[str, Array], expected: dict[str, Array], tolerance: float, what: str
) -> None:
    assert list(found) == list(expected), what
    for name, value in expected.items():
        assert found[name].shape == value.shape, f"{what}: {name}"
        error = scaled_error(found[name], value)
        # `not <=`, so that NaN fails.
        assert not np.isnan(error), f"{what}: {name} has NaN"
        assert error <= tolerance, f"{what}: {name} is off by {error:.2e} (seed {SEED})"


def assert_repeatable(session: Session, reference: Session, model: Model, tolerance: float) -> None:
    """`session` computes what `reference` does over new values, sizes that come and go, and both
    boundaries: what a recorded graph gets wrong first."""
    for salt, batch in enumerate((3, 3, 5, 1, 1, 3)):
        feeds = random_feeds(model, batch, salt)
        expected = reference.run(feeds)
        session.bind(feeds)
        for _ in range(4):
            session.enqueue()
            session.synchronize()
            assert_close(session.fetch(), expected, tolerance, f"batch {batch}")
        assert_close(session.run(feeds), expected, tolerance, f"batch {batch}, host")


def target(model: Model, fixed: bool = True) -> Target:
    """This machine's CPU, at one batch or at all up to the largest."""
    sizes = model.sizes(BATCH)
    if fixed:
        return Target(profile=Profile.fixed(sizes))
    ranges = {name: DimRange(size, size, size) for name, size in sizes.items()}
    if model.batch:
        ranges[model.batch] = DimRange(1, BATCH, LARGEST)
    return Target(profile=Profile(ranges))


def converted(model: Model, graph: Graph, directory: Path) -> Model:
    """The model in a lower precision, its ranges from random inputs: agreement with the graph as
    it came means something only on more of the same."""
    calibration = None
    if graph.calibrated:
        data = directory / "calibration"
        data.mkdir(parents=True, exist_ok=True)
        feeds = [random_feeds(model, BATCH, SEED + 100 + i) for i in range(4)]
        calibration = Calibration.write(data, model, feeds, "random inputs", random=True)
    convert(model, graph, directory / graph, calibration=calibration, calibrator="minmax")
    return Model.open(directory / graph)


@dataclass
class Subject:
    """One backend on one model: a session per candidate and profile, compiled when first asked
    for and closed with the subject."""

    backend: Backend
    model: Model
    reference: Reference
    directory: Path
    """Where converted graphs go."""
    lower: bool = True
    """Whether candidates of lower precision are run, too."""
    graphs: dict[str, Model | Unsupported] = field(default_factory=dict)
    sessions: dict[tuple[str, bool], Session | Exception] = field(default_factory=dict)

    def feeds(self, batch: int = BATCH, salt: int = 0) -> dict[str, Array]:
        return random_feeds(self.model, batch, SEED + salt)

    def target(self, fixed: bool = True) -> Target:
        return target(self.model, fixed)

    def candidates(self) -> list[Candidate]:
        offered = list(self.backend.candidates(self.model, self.target()))
        offered = offered or list(self.backend.on_request(self.model, self.target()))
        return [c for c in offered if self.lower or c.precision is Precision.FP32]

    def read_by(self, candidate: Candidate) -> Model:
        """The model as a candidate reads it. Raises Unsupported where it does not convert."""
        name = candidate.graph
        if not name:
            return self.model
        if name not in self.graphs:
            try:
                self.graphs[name] = converted(self.model, Graph(name), self.directory)
            except Unsupported as error:
                self.graphs[name] = error
        found = self.graphs[name]
        if isinstance(found, Unsupported):
            raise found
        return found

    def assert_right(
        self, candidate: Candidate, found: dict[str, Array], feeds: Feeds, what: str = ""
    ) -> None:
        """Whether outputs are the reference's, as near as the candidate's precision allows."""
        limit = DEFAULTS[candidate.precision].scaled_error
        tolerance = FP32_TOLERANCE if candidate.precision is Precision.FP32 else limit
        assert_close(found, self.reference(feeds), tolerance, f"{candidate.id} {what}".strip())

    def outcome(self, candidate: Candidate, fixed: bool = True) -> Session | Exception:
        """The session, or why there is none."""
        key = (candidate.id, fixed)
        if key not in self.sessions:
            try:
                model = self.read_by(candidate)
                self.sessions[key] = self.backend.compile(model, candidate, self.target(fixed))
            except (BackendUnavailable, Unsupported) as error:
                self.sessions[key] = error
        return self.sessions[key]

    def running(self, fixed: bool = True) -> Iterator[tuple[Candidate, Session]]:
        """Every candidate that compiles."""
        for candidate in self.candidates():
            session = self.outcome(candidate, fixed)
            if isinstance(session, Session):
                yield candidate, session

    def close(self) -> None:
        for session in self.sessions.values():
            if isinstance(session, Session):
                session.close()
