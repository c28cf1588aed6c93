"""A session that serves any size the model allows, on top of ones compiled for some sizes."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from peregrine.backends.base import Backend, Session
from peregrine.errors import BackendError, BundleError
from peregrine.model import feeds as feed_checks
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Profile, Target, TensorSpec

How: TypeAlias = Literal["engine", "rebuilt", "fallback", "compiled"]


class BundleWarning(UserWarning):
    """A bundle runs otherwise than it was built: rebuilt, or by the portable fallback."""


@dataclass(frozen=True, slots=True)
class Builder:
    """What compiles a model: one candidate of one backend."""

    backend: Backend
    model: Model
    candidate: Candidate
    target: Target

    def build(self) -> Session:
        """Compile for the target's own profile."""
        return self.backend.compile(self.model, self.candidate, self.target)

    def build_for(self, dims: Mapping[str, int]) -> Session:
        """Compile for exactly these sizes."""
        target = dataclasses.replace(self.target, profile=Profile.fixed(dims))
        return self.backend.compile(self.model, self.candidate, target)


class BundleSession:
    """A model ready to run: feeds in, outputs out, in any thread.

    Sizes that the loaded session does not serve are compiled for when they first come, and the
    last few such sessions are kept. `how` tells what runs: the bundle's own `engine`, the same
    candidate `rebuilt` here, the portable `fallback`, or, without a bundle, `compiled`.
    """

    def __init__(
        self,
        first: Session,
        builder: Builder,
        *,
        how: How,
        fallback: Builder | None = None,
        report: Mapping[str, Any] | None = None,
        max_extra: int = 4,
    ) -> None:
        """
        Args:
            first: a session of `builder`'s candidate; closed with this one.
            fallback: compiles a size that `builder` cannot.
            max_extra: sessions for other sizes to keep; the least recently used is closed.
        """
        self.inputs: tuple[TensorSpec, ...] = builder.model.inputs
        self.outputs: tuple[TensorSpec, ...] = builder.model.outputs
        self.candidate = builder.candidate
        self.how: How = how
        self.report = report
        """The race's report.json as a dict; None when the bundle has none."""
        self._first = first
        self._builder = builder
        self._fallback = fallback
        self._extra: OrderedDict[tuple[tuple[str, int], ...], Session] = OrderedDict()
        self._max_extra = max_extra
        self._releases: list[Callable[[], object]] = []
        self._closed = False
        self._lock = threading.RLock()

    def run(self, feeds: Feeds, *, check_finite: bool = False) -> dict[str, Array]:
        """One inference. Calls from several threads wait for each other.

        Args:
            feeds: input name -> array of the dtype and shape in `inputs`.
            check_finite: refuse NaN and infinities, at the cost of reading every input.

        Raises:
            FeedError: an input that is missing, unknown, misshapen or of another dtype.
            BackendError: these sizes cannot be compiled.
            BundleError: the session is closed.
        """
        dims = feed_checks.check_feeds(self.inputs, feeds)
        if check_finite:
            feed_checks.check_finite(feeds)
        # Runtimes take memory as it lies: big-endian or strided arrays would be misread.
        ready = {
            name: np.asarray(value, value.dtype.newbyteorder("="), order="C")
            for name, value in feeds.items()
        }
        with self._lock:
            if self._closed:
                raise BundleError("The session is closed.", fix="Load the bundle again.")
            return self._session_for(dims).run(ready)

    def on_close(self, release: Callable[[], object]) -> None:
        """Have `release` called when the session is closed, e.g. to delete a directory that
        later compilations need."""
        self._releases.append(release)

    def close(self) -> None:
        """Release every session. Safe to call twice."""
        with self._lock:
            self._closed = True
            for session in (self._first, *self._extra.values()):
                session.close()
            self._extra.clear()
            while self._releases:
                self._releases.pop()()

    def __enter__(self) -> BundleSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        specs = ", ".join(map(str, self.inputs))
        return f"BundleSession({self.candidate.id}, {self.how}, inputs {specs})"

    def _session_for(self, dims: Mapping[str, int]) -> Session:
        if self._first.profile.covers(dims):
            return self._first
        key = tuple(sorted(dims.items()))
        session = self._extra.get(key)
        if session is None:
            session = self._extra[key] = self._compile_for(dims)
            if len(self._extra) > self._max_extra:
                _, oldest = self._extra.popitem(last=False)
                oldest.close()
        self._extra.move_to_end(key)
        return session

    def _compile_for(self, dims: Mapping[str, int]) -> Session:
        try:
            return self._builder.build_for(dims)
        except BackendError as error:
            if self._fallback is None:
                raise
            warnings.warn(
                f"{self.candidate.id} cannot be compiled for sizes {dict(dims)} ({error.what}); "
                f"{self._fallback.candidate.id} serves them.",
                BundleWarning,
                stacklevel=4,
            )
            return self._fallback.build_for(dims)
