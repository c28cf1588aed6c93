"""Loading a bundle: its engine where that is valid, else the same candidate rebuilt, else the
portable graph on ONNX Runtime's CPU provider. Also a session of one backend, with no bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from peregrine import fingerprint
from peregrine.backends import registry
from peregrine.backends.base import Session
from peregrine.bundle import manifest as bundle_manifest
from peregrine.bundle.kept import KeptEngine
from peregrine.bundle.manifest import ARTIFACT, MODEL, REPORT, Manifest
from peregrine.bundle.session import Builder, BundleSession, BundleWarning, How
from peregrine.errors import (
    BackendUnavailable,
    BundleError,
    FingerprintMismatch,
    ModelError,
    OptionError,
    PeregrineError,
    Unsupported,
    did_you_mean,
)
from peregrine.model.graphs import base_graph
from peregrine.model.model import MODEL_FILE, Model
from peregrine.types import Candidate, Precision, Profile, Target

OnMismatch: TypeAlias = Literal["rebuild", "fallback", "error"]
_CHOICES = ("rebuild", "fallback", "error")
_FALLBACK = Candidate("onnxruntime", "CPUExecutionProvider")
# What a runtime raises from its own depths when it cannot take an engine or a model.
_FAILURES = (PeregrineError, RuntimeError, OSError, ValueError, ImportError)


def load(
    path: Path | str,
    *,
    on_mismatch: OnMismatch = "rebuild",
    device: str | None = None,
    verify: bool = True,
    engine_cache: bool = True,
) -> BundleSession:
    """Open a bundle for running. No pickle is read; the user's code is imported only where the
    candidate runs the PyTorch module of a `package.module:factory`.

    Args:
        path: the bundle's directory.
        on_mismatch: what to do where the engine is not valid here, or will not load: `rebuild`
            compiles the same candidate, and falls back when that fails too; `fallback` runs the
            ONNX graph on ONNX Runtime's CPU provider; `error` raises. What differs is said by a
            `BundleWarning`.
        device: run there in place of the device it was built for, e.g. "cpu", "cuda:1".
        verify: hash every file first.
        engine_cache: keep an engine that was rebuilt, and take it the next time: see
            `peregrine cache list`.

    Raises:
        BundleError: there is no bundle, or nothing of it can run here.
        BundleCorrupt: a file is missing, truncated or changed.
        FingerprintMismatch, BackendUnavailable: with `on_mismatch="error"`.
    """
    if on_mismatch not in _CHOICES:
        raise OptionError(
            f"on_mismatch cannot be {on_mismatch!r}.", fix=f"Use one of: {', '.join(_CHOICES)}."
        )
    path = Path(path).absolute()
    bundle = _Bundle.open(
        path, on_mismatch, device=device, verify=verify, engine_cache=engine_cache
    )
    try:
        builder = bundle.builder()
    except BackendUnavailable as error:
        if on_mismatch == "error":
            raise
        return bundle.fall_back(_brief(error))
    problem = "; ".join(bundle.mismatch(builder))
    if problem and on_mismatch == "error":
        raise FingerprintMismatch(
            f"The engine of {path} is not valid here.",
            why=f"{problem}.",
            fix='Rebuild it by load(..., on_mismatch="rebuild"), or build the bundle here.',
        )
    if bundle.manifest.has_artifact and not problem:
        try:
            return bundle.engine(builder)
        except _FAILURES as error:
            if on_mismatch == "error":
                raise BundleError(
                    f"The engine of {path} did not load.",
                    why=_brief(error),
                    fix='Rebuild it by load(..., on_mismatch="rebuild").',
                ) from error
            problem = f"its engine did not load: {_brief(error)}"
    if problem and on_mismatch == "fallback":
        return bundle.fall_back(problem)
    return bundle.rebuild(builder, problem)


def open_session(
    model: Model,
    backend: str,
    *,
    candidate_id: str | None = None,
    target: Target | None = None,
) -> BundleSession:
    """Compile a model by one backend, with no race and no validation.

    Args:
        candidate_id: which row of the backend's; its first one in fp32 when None.
        target: what to compile for; batch 1 on the CPU when None. Other sizes are compiled for
            as they come.

    Raises:
        OptionError: an unknown backend or candidate, or a symbol of the model without a size.
        BackendUnavailable, Unsupported: the backend cannot run here, or not this model; or the
            candidate's graph needs calibration data, which only a race takes.
    """
    chosen = registry.get(backend)
    if not (support := chosen.available()):
        raise BackendUnavailable(f"{backend} cannot run here.", why=support.reason, fix=support.fix)
    if target is None:
        missing = [symbol for symbol in model.free_symbols if symbol not in model.dims]
        if missing:
            raise OptionError(
                f"{model.name} leaves {', '.join(missing)} open.",
                fix="Give each a size when loading the model, or a target with a profile.",
            )
        target = Target(profile=Profile.fixed(model.sizes(1)))
    if not (support := chosen.supports(model, target)):
        raise Unsupported(
            f"{backend} cannot take {model.name}.", why=support.reason, fix=support.fix
        )
    candidate = _choose(
        [*chosen.candidates(model, target), *chosen.on_request(model, target)],
        backend,
        candidate_id,
    )
    if candidate.graph:
        from peregrine.conversion.convert import convert

        directory = model.directory / candidate.graph
        convert(model, base_graph(candidate.graph), directory)
        model = Model.open(directory)
    builder = Builder(chosen, model, candidate, target)
    return BundleSession(builder.build(), builder, how="compiled")


@dataclasses.dataclass(frozen=True, slots=True)
class _Bundle:
    """A checked bundle on its way to being a session."""

    path: Path
    on_mismatch: OnMismatch
    manifest: Manifest
    model: Model
    target: Target
    report: Mapping[str, Any] | None
    engine_cache: bool

    @classmethod
    def open(
        cls,
        path: Path,
        on_mismatch: OnMismatch,
        *,
        device: str | None,
        verify: bool,
        engine_cache: bool,
    ) -> _Bundle:
        manifest = bundle_manifest.read(path, verify=verify)
        target = dataclasses.replace(manifest.target, device=device or manifest.target.device)
        model = _open_model(path, manifest)
        report = _read_report(path, manifest)
        return cls(path, on_mismatch, manifest, model, target, report, engine_cache)

    def builder(self) -> Builder:
        """What compiles the winner here. Raises BackendUnavailable when its backend cannot run."""
        name = self.manifest.candidate.backend
        try:
            backend = registry.get(name)
        except (OptionError, ImportError) as error:
            raise BackendUnavailable(
                f"The backend {name!r} is not installed here.",
                why=_brief(error),
                fix="Install the package that brings it; `peregrine doctor` lists what is there.",
            ) from error
        if not (support := backend.available()):
            raise BackendUnavailable(
                f"The backend {name!r} cannot run here.", why=support.reason, fix=support.fix
            )
        return Builder(backend, self.model, self.manifest.candidate, self.target)

    def mismatch(self, builder: Builder) -> list[str]:
        """In which ways this place is not the one the engine was made for."""
        saved = self.manifest.fingerprint
        here = fingerprint.current(
            self.model,
            builder.candidate,
            builder.target,
            distributions={*builder.backend.distributions, *saved.versions},
        )
        return fingerprint.differences(saved, here)

    def engine(self, builder: Builder) -> BundleSession:
        """The bundle's own artefact."""
        first = builder.backend.load(
            self.path / ARTIFACT, builder.model, builder.candidate, builder.target
        )
        return self._session(first, builder, "engine")

    def rebuild(self, builder: Builder, problem: str) -> BundleSession:
        """The same candidate, compiled here, now or at an earlier load."""
        # Without a problem there is no engine in the bundle: this backend saves none.
        kept = KeptEngine(builder) if problem and self.engine_cache else None
        if kept is not None and (found := kept.load()) is not None:
            first, copy = found
            self._warn(f"{problem}. {builder.candidate.id} was compiled here before.")
            session = self._session(first, builder, "rebuilt")
            session.on_close(weakref.finalize(session, shutil.rmtree, copy, ignore_errors=True))
            return session
        if problem:
            self._warn(f"{problem}. {builder.candidate.id} is compiled again.")
        try:
            started = time.perf_counter()
            first = builder.build()
            if kept is not None:
                kept.keep(first, time.perf_counter() - started)
        except _FAILURES as error:
            if self.on_mismatch == "error":
                raise
            return self.fall_back(f"{builder.candidate.id} did not compile: {_brief(error)}")
        return self._session(first, builder, "rebuilt")

    def fall_back(self, problem: str) -> BundleSession:
        """The portable graph. Raises BundleError when that cannot run either."""
        try:
            builder = self._fallback()
            first = builder.build()
        except _FAILURES as error:
            raise BundleError(
                f"Nothing of the bundle {self.path} can run here.",
                why=f"{problem}; and the fallback, {_FALLBACK.id}: {_brief(error)}",
                fix="pip install onnxruntime, or the runtime of the bundle's own backend.",
            ) from error
        self._warn(f"{problem}. {builder.candidate.id} runs in its place, likely slower.")
        return self._session(first, builder, "fallback")

    def _fallback(self) -> Builder:
        backend = registry.get(_FALLBACK.backend)
        if not self.model.onnx:
            raise Unsupported("The bundle has no ONNX graph.", why=self.model.onnx_error)
        if not (support := backend.available()):
            raise BackendUnavailable(support.reason, fix=support.fix)
        target = dataclasses.replace(self.target, device="cpu")
        model, candidate = self.model, _FALLBACK
        if model.ir:  # its ONNX file is still the graph as it came
            model = dataclasses.replace(model, graph="", ir="")
        elif model.graph:
            precision = base_graph(model.graph).precision
            candidate = dataclasses.replace(_FALLBACK, precision=precision, graph=model.graph)
        return Builder(backend, model, candidate, target)

    def _session(self, first: Session, builder: Builder, how: How) -> BundleSession:
        fallback = None
        if how != "fallback" and self.on_mismatch != "error":
            with contextlib.suppress(*_FAILURES):  # without one, an odd size is an error
                fallback = self._fallback()
        return BundleSession(first, builder, how=how, fallback=fallback, report=self.report)

    def _warn(self, what: str) -> None:
        warnings.warn(f"The bundle {self.path.name}: {what}", BundleWarning, stacklevel=4)


def _open_model(path: Path, manifest: Manifest) -> Model:
    try:
        model = Model.open(path / MODEL)
    except ModelError as error:
        raise bundle_manifest.corrupt(path, f"{MODEL}/{MODEL_FILE}", error.why) from error
    module = model.module
    named = [model.onnx, model.ir, *((module.weights, module.program) if module else ())]
    for name in filter(None, named):
        if f"{MODEL}/{name}" not in manifest.files:
            raise bundle_manifest.corrupt(
                path, f"{MODEL}/{name}", f"{MODEL_FILE} names it, the manifest not"
            )
    return model


def _read_report(path: Path, manifest: Manifest) -> Mapping[str, Any] | None:
    if REPORT not in manifest.files:
        return None
    try:
        report: dict[str, Any] = json.loads((path / REPORT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise bundle_manifest.corrupt(path, REPORT, str(error)) from error
    return report


def _choose(rows: list[Candidate], backend: str, wanted: str | None) -> Candidate:
    if not rows:
        raise Unsupported(f"{backend} has no candidate for this model.")
    if wanted is None:
        return next((row for row in rows if row.precision is Precision.FP32), rows[0])
    known = {row.id: row for row in rows}
    if wanted in known:
        return known[wanted]
    raise OptionError(
        f"{backend} has no candidate {wanted!r}.{did_you_mean(wanted, known)}",
        fix=f"Use one of: {'; '.join(known)}.",
    )


def _brief(error: BaseException) -> str:
    """What and why of an error on one line, without a full stop."""
    if isinstance(error, PeregrineError):
        parts = [part.rstrip(".") for part in (error.what, error.why) if part]
        return ": ".join(parts)
    return f"{type(error).__name__}: {error}"
