"""The engine that a bundle was rebuilt to, kept for the next time it is loaded here."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from peregrine import fingerprint
from peregrine.backends import registry
from peregrine.backends.base import Session
from peregrine.bundle.session import Builder
from peregrine.engines import Engines, Kept, Wanted
from peregrine.store import cache_directory


class KeptEngine:
    """One builder's engine among those that races and other bundles keep."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._engines = Engines(cache_directory("engines"))
        self._wanted = _wanted(builder)

    def load(self) -> tuple[Session, Path] | None:
        """A session of a kept engine, and a copy of its files to delete once the session is
        closed; None where there is none. One that its runtime refuses is forgotten."""
        wanted, builder = self._wanted, self._builder
        if wanted is None:
            return None
        copy = Path(tempfile.mkdtemp(prefix="peregrine-engine-"))
        if isinstance(self._engines.fetch(wanted, copy), Kept):
            try:
                loaded = builder.backend.load(
                    copy, builder.model, builder.candidate, builder.target
                )
            except Exception:  # noqa: BLE001  # whatever a runtime raises: it is built instead
                self._engines.drop(wanted)
            else:
                return loaded, copy
        shutil.rmtree(copy, ignore_errors=True)
        return None

    def keep(self, session: Session, build_s: float) -> None:
        """Keep an engine that took `build_s` seconds to build, where its backend can save it."""
        if self._wanted is None:
            return
        with tempfile.TemporaryDirectory(prefix="peregrine-engine-") as saved:
            try:
                self._builder.backend.save(session, Path(saved))
                self._engines.keep(self._wanted, Path(saved), build_s)
            except Exception:  # noqa: BLE001  # it runs, which is what was asked for
                return


def _wanted(builder: Builder) -> Wanted | None:
    """The engine by the same words as a race's; None for a model that nothing tells apart."""
    if not builder.model.sha256:
        return None
    found = fingerprint.versions_of((*builder.backend.distributions, "numpy"))
    here = fingerprint.current(
        builder.model,
        builder.candidate,
        builder.target,
        versions={name: version for name, version in found.items() if version},
    )
    code = registry.code_of(builder.backend)
    return Wanted.of(builder.model, builder.candidate, builder.target, here, code)
