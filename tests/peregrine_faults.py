"""A backend that misbehaves in every way a runtime can, found the way real plugins are found.

`steady` is a slow but honest session on onnx's own reference evaluator; each other variant is
`steady` with one thing wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from onnx.reference import ReferenceEvaluator

from peregrine.backends.base import Backend, Session, check_feeds
from peregrine.errors import BackendUnavailable, Unsupported
from peregrine.model.model import Model
from peregrine.turns import my_turn
from peregrine.types import (
    Array,
    Candidate,
    DimRange,
    Feeds,
    Placement,
    Profile,
    Support,
    Target,
)

VARIANTS = (
    "steady",
    "slower",
    "segfault",
    "abort",
    "hang",
    "hang_with_child",
    "hog",
    "nan",
    "wrong",
    "noisy",
    "racy",
    "fell_back",
    "unsupported",
    "unavailable",
    "python_error",
    "crash_at_batch_4",
    "bad_artifact",
)


SIDE_BY_SIDE = ("crosstalk", "solitary", "crash_in_company", "tuner")
"""Right when alone, and raced only where they are named."""


class FaultySession(Session):
    made: ClassVar[list[FaultySession]] = []

    def __init__(self, model: Model, variant: str) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        symbols = {s for spec in model.inputs for s in spec.symbols}
        self.profile = Profile({s: DimRange(1, 1, 1 << 20) for s in symbols})
        self._evaluator = ReferenceEvaluator(str(model.onnx_path))
        self._variant = variant
        self._rng = np.random.default_rng()
        self._inferences = 0
        self._outputs: dict[str, Array] = {}
        self.made.append(self)
        if variant == "solitary":
            self.alone = "It keeps its state in a global variable."

    def bind(self, feeds: Feeds) -> None:
        dims = check_feeds(self.inputs, feeds)
        if self._variant == "crash_at_batch_4" and dims.get("batch") == 4:
            os.abort()
        self._feeds = dict(feeds)

    def enqueue(self) -> None:
        if self._variant == "slower":
            time.sleep(0.02)
        values = self._evaluator.run(None, self._feeds)
        names = [spec.name for spec in self.outputs]
        self._outputs = {n: np.array(v) for n, v in zip(names, values, strict=True)}
        first = self._outputs[names[0]]
        if self._variant == "crash_in_company" and len(self.made) > 2:
            raise RuntimeError("three of us are too many")
        if self._variant == "nan":
            first.flat[0] = np.nan
        elif self._variant == "wrong":
            first += 1.0
        elif self._variant == "noisy":
            first *= 1 + self._rng.normal(0, 1e-7)
        elif self._variant == "racy":
            self._inferences += 1
            if self._inferences > 4:  # right as long as one looks
                first += self._rng.normal(0, 0.1, first.shape).astype(first.dtype)

    def synchronize(self) -> None:
        pass

    def fetch(self) -> dict[str, Array]:
        answers = self.made[-1] if self._variant == "crosstalk" else self
        return {name: value.copy() for name, value in answers._outputs.items()}

    def placement(self, feeds: Feeds) -> Placement:
        fell_back = self._variant == "fell_back"
        return Placement(
            "cpu",
            {"numpy": 1},
            fell_back=fell_back,
            detail="1 node ran on the CPU instead" if fell_back else "",
            proof="this is a test backend",
        )


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    time.sleep(3600)


def _hang_with_child() -> None:
    subprocess.run(["sleep", "3600"], check=False)


def _tune() -> None:
    """Kernels are compiled, and timed when it is this process's turn."""
    for _ in range(10):
        time.sleep(0.1)
        with my_turn():
            time.sleep(0.1)


def _hog() -> None:
    blocks = []
    while True:
        block = mmap.mmap(-1, 64 << 20)
        block.write(b"x" * len(block))
        blocks.append(block)


class FaultsBackend(Backend):
    name = "faults"

    def available(self) -> Support:
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        return Support.yes() if model.onnx else Support.no(model.onnx_error)

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        return [Candidate(self.name, variant) for variant in VARIANTS]

    def on_request(self, model: Model, target: Target) -> Iterable[Candidate]:
        seldom = [Candidate(self.name, "seldom", options={"tries": n}) for n in (1, 2)]
        return [*seldom, *(Candidate(self.name, variant) for variant in SIDE_BY_SIDE)]

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        variant = candidate.variant
        if variant == "unsupported":
            raise Unsupported("The operator Frobnicate is not supported.", fix="Replace it.")
        if variant == "unavailable":
            raise BackendUnavailable("There is no such device.", fix="Plug one in.")
        if variant == "python_error":
            raise ZeroDivisionError("a bug in the backend")
        misdeeds = {
            "segfault": _segfault,
            "abort": os.abort,
            "hang": _hang,
            "hang_with_child": _hang_with_child,
            "hog": _hog,
            "tuner": _tune,
        }
        misdeeds.get(variant, lambda: None)()
        return FaultySession(model, variant)

    def save(self, session: Session, directory: Path) -> None:
        (directory / "state").write_text("saved")

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        if candidate.variant == "bad_artifact":
            raise Unsupported("The artefact was made by another version.")
        assert (directory / "state").read_text() == "saved"
        return FaultySession(model, candidate.variant)


class CrashOnProbe(Backend):
    name = "crash_on_probe"

    def available(self) -> Support:
        os.abort()

    def supports(self, model: Model, target: Target) -> Support:
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        return []

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        raise BackendUnavailable("never reached")


class SettingsBackend(FaultsBackend):
    """Three workflows of two settings each: a quick one, a slow one, and one that runs by its
    second setting alone."""

    name = "settings"

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        for variant in ("quick", "slow", "fussy"):
            yield Candidate(self.name, variant)
            yield Candidate(self.name, variant, options={"other": True})

    def on_request(self, model: Model, target: Target) -> Iterable[Candidate]:
        return ()

    def refines(self, candidate: Candidate, target: Target) -> bool:
        return bool(candidate.options)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        if candidate.variant == "fussy" and not candidate.options:
            raise Unsupported("It does not run like this.")
        return FaultySession(model, "slower" if candidate.variant == "slow" else "steady")

    def save(self, session: Session, directory: Path) -> None:
        pass

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        return self.compile(model, candidate, target)
