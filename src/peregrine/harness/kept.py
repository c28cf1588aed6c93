"""The engine of one trial, where an earlier race kept it."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from peregrine.backends import registry
from peregrine.engines import Engines, Kept, Wanted
from peregrine.fingerprint import current
from peregrine.harness.memory import MIB
from peregrine.harness.process import Worker
from peregrine.results import EngineOrigin
from peregrine.store import cache_directory
from peregrine.types import Candidate

if TYPE_CHECKING:
    from peregrine.harness.trial import Setting


class KeptEngine:
    """Fetches the engine of a candidate at one batch, and keeps the one built in its place."""

    def __init__(self, setting: Setting, candidate: Candidate, batch: int) -> None:
        self.artifact = setting.artifact(candidate, batch)
        """Where a fetched engine lies: what the final loads and a bundle takes."""
        self.missed = ""
        self._setting = setting
        self._candidate = candidate
        self._batch = batch
        self._engines = Engines(cache_directory("engines"))
        self._wanted: Wanted | None = None
        self._found: Kept | None = None
        self._fetch_s = 0.0

    def fetch(self, worker: Worker) -> Kept | None:
        """The engine, in `artifact`, if one is kept that is valid in this worker's interpreter."""
        setting, candidate = self._setting, self._candidate
        told = worker.call(
            "identify",
            timeout_s=setting.request.timeout_s,
            backend=registry.resolve(candidate.backend),
        )
        model, target = setting.graphs.model(candidate.graph), setting.target(self._batch)
        if not model.sha256:  # nothing tells this model from another
            return None
        fingerprint = current(
            model,
            candidate,
            target,
            versions=told["versions"],
            python=".".join(told["python"].split(".")[:2]),
        )
        shutil.rmtree(self.artifact, ignore_errors=True)
        started = time.perf_counter()
        self._wanted = Wanted.of(model, candidate, target, fingerprint, told["code"])
        found = self._engines.fetch(self._wanted, self.artifact)
        self._fetch_s = time.perf_counter() - started
        if isinstance(found, Kept):
            self._found = found
            return found
        shutil.rmtree(self.artifact, ignore_errors=True)  # a void entry leaves what it had
        self.missed = "; ".join(found.differs)
        return None

    def refuse(self, why: str) -> None:
        """Forget an engine that did not load, or computes something else."""
        if self._wanted is not None:
            self._engines.drop(self._wanted)
        shutil.rmtree(self.artifact, ignore_errors=True)
        self._found, self.missed = None, why

    def keep(self, build_s: float) -> None:
        """Keep what was built and saved at `artifact`, unless it came from there."""
        if self._wanted is not None and self._found is None:
            self._engines.keep(self._wanted, self.artifact, build_s)

    def size_mb(self) -> float:
        """MiB of what lies at `artifact`."""
        return sum(f.stat().st_size for f in self.artifact.rglob("*") if f.is_file()) / MIB

    def origin(self, load_s: float) -> EngineOrigin | None:
        """What the row says. None where it was built and nothing like it is kept.

        Args:
            load_s: seconds that loading a fetched engine took.
        """
        if self._found is not None:
            return EngineOrigin(True, self._found.built, self._fetch_s + load_s)
        return EngineOrigin(False, missed=self.missed) if self.missed else None
