"""A backend outside the package, found by entry point as any plugin is: onnx's own evaluator.

It serves only the sizes it was compiled for, so that a bundle session must compile for others,
and its artefact is a file it refuses when the file asks for that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from onnx.reference import ReferenceEvaluator

from peregrine.backends.base import Backend, Session
from peregrine.errors import Unsupported
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Placement, Support, Target

ENGINE = "engine.txt"
LARGEST_BATCH = 64


class EvaluatorSession(Session):
    def __init__(self, model: Model, target: Target, origin: str) -> None:
        self.inputs, self.outputs, self.profile = model.inputs, model.outputs, target.profile
        self.origin = origin
        self.closed = False
        self._evaluator = ReferenceEvaluator(str(model.onnx_path))
        self._running = threading.Lock()

    def bind(self, feeds: Feeds) -> None:
        self._feeds = dict(feeds)

    def enqueue(self) -> None:
        assert self._running.acquire(blocking=False), "two inferences at once"
        assert not self.closed
        results = self._evaluator.run(None, self._feeds)
        self._outputs = dict(zip((o.name for o in self.outputs), results, strict=True))
        self._running.release()

    def synchronize(self) -> None:
        pass

    def fetch(self) -> dict[str, Array]:
        return self._outputs

    def placement(self, feeds: Feeds) -> Placement:
        return Placement("cpu")

    def close(self) -> None:
        self.closed = True


class EvaluatorBackend(Backend):
    name = "evaluator"
    distributions = ("onnx",)
    compiled: int = 0

    def available(self) -> Support:
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        return Support.yes() if model.onnx else Support.no("no ONNX graph")

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        return [Candidate(self.name), Candidate(self.name, "slow")]

    def compile(self, model: Model, candidate: Candidate, target: Target) -> EvaluatorSession:
        if any(dim.max > LARGEST_BATCH for dim in target.profile.dims.values()):
            raise Unsupported(f"the evaluator takes at most {LARGEST_BATCH}")
        type(self).compiled += 1
        return EvaluatorSession(model, target, "compiled")

    def save(self, session: Session, directory: Path) -> None:
        (directory / ENGINE).write_text("loads")
        (directory / "nested").mkdir()
        (directory / "nested" / "weights.bin").write_bytes(bytes(range(256)) * 8)

    def load(
        self, directory: Path, model: Model, candidate: Candidate, target: Target
    ) -> EvaluatorSession:
        if (directory / ENGINE).read_text() != "loads":
            raise RuntimeError("engine refused")
        return EvaluatorSession(model, target, "loaded")
