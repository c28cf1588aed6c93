"""The process that runs one candidate. It knows nothing of the race: it is told what to do.

Imports the standard library, numpy, the contract and one backend, because its interpreter may
hold nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peregrine.backends import registry
from peregrine.backends.base import Backend, Session
from peregrine.errors import (
    BackendUnavailable,
    PeregrineError,
    Unsupported,
    WorkerError,
    WorkerOutOfMemory,
)
from peregrine.harness import clock, memory, wire
from peregrine.harness.batching import tile
from peregrine.harness.device import DeviceWatch
from peregrine.harness.statistics import latency_ms
from peregrine.harness.together import measure_together
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import Boundary, to_builtins
from peregrine.turns import given, waits
from peregrine.types import Array, Candidate, Profile, Target, physical_cores

if TYPE_CHECKING:
    from peregrine.conversion.repair import Repairer

_PR_SET_PDEATHSIG = 1
# What allocators say when they fail without a MemoryError.
_OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "out of memory",
    "failed to allocate",
)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even by SIGKILL (prctl(2)).

    Elsewhere than on Linux the end of standard input does the same, less promptly.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


class Commands:
    """One method a command; arguments and answers are JSON-ready."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._model: Model | None = None
        self._candidate = Candidate("")
        self._target = Target()
        self._sessions: list[Session] = []
        self._built_from: Path | None = None
        self._device: DeviceWatch | None = None
        """The GPU that the session is on; None on a CPU."""
        self._repairer: Repairer | None = None

    def prepare(self, source: str, directory: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Load a model from what the user named into a model directory, out of harm's way."""
        from peregrine.model.probe import CHECK_THREADS

        # PyTorch reads it when it is imported.
        os.environ.setdefault("OMP_NUM_THREADS", str(min(CHECK_THREADS, physical_cores())))
        from peregrine.model.inputs import parse_input
        from peregrine.model.load import load

        inputs = [parse_input(text) for text in options["inputs"]]
        load(
            source,
            Path(directory),
            inputs=inputs,
            dims=options["dims"],
            seed=options["seed"],
            weights=options["weights"],
            trust=options["trust"],
        )
        return {}

    def probe(self, backend: str, model: str | None, target: Mapping[str, Any]) -> dict[str, Any]:
        """Whether a backend can run here, and what it would race for this model."""
        loaded = registry.load(backend)
        support = loaded.available()
        candidates: list[Candidate] = []
        on_request: list[Candidate] = []
        refining: list[str] = []
        if support and model is not None:
            opened, aim = Model.open(Path(model)), wire.decode_target(target)
            supported = loaded.supports(opened, aim)
            if not supported:
                support = supported
                status = "unsupported"
            else:
                candidates = list(loaded.candidates(opened, aim))
                on_request = list(loaded.on_request(opened, aim))
                refining = [c.id for c in candidates if loaded.refines(c, aim)]
                status = "ok"
        else:
            status = "ok" if support else "unavailable"
        return {
            "status": status,
            "reason": support.reason,
            "fix": support.fix,
            "candidates": [wire.encode_candidate(c) for c in candidates],
            "on_request": [wire.encode_candidate(c) for c in on_request],
            "refining": refining,
            "versions": _versions(loaded),
            "python": _python(),
        }

    def identify(self, backend: str) -> dict[str, Any]:
        """What of this interpreter an engine depends on. Imports the backend, not its runtime."""
        loaded = registry.load(backend)
        return {
            "versions": _versions(loaded),
            "python": _python(),
            "code": registry.code_of(loaded),
        }

    def convert(self, model: str, graph: str, out: str, calibration: str | None) -> dict[str, Any]:
        """Make a model directory whose graph is in lower precision."""
        from peregrine.conversion.calibration import Calibration
        from peregrine.conversion.convert import convert

        conversion = convert(
            Model.open(Path(model)),
            Graph(graph),
            Path(out),
            calibration=Calibration.open(Path(calibration)) if calibration else None,
        )
        return {"conversion": to_builtins(conversion)}

    def repair(
        self,
        model: str,
        graph: str,
        out: str,
        data: str,
        limits: Mapping[str, float],
        budget_s: float,
    ) -> dict[str, Any]:
        """Find layers to leave in fp32, and make that graph. The ranking stays for the next
        attempt, which is for the same model and graph."""
        from peregrine.conversion.calibration import Calibration
        from peregrine.conversion.repair import Repairer
        from peregrine.conversion.trials import Limits

        if self._repairer is None:
            self._repairer = Repairer(
                Model.open(Path(model)), Graph(graph), Calibration.open(Path(data))
            )
        attempt = self._repairer.attempt(Limits(**limits), budget_s, Path(out), Path(out).name)
        return {
            "repair": to_builtins(attempt.repair),
            "conversion": to_builtins(attempt.conversion),
        }

    def open(
        self,
        backend: str,
        model: str,
        candidate: Mapping[str, Any],
        target: Mapping[str, Any],
        artifact: str | None = None,
    ) -> dict[str, Any]:
        """Compile a candidate, or load it from `artifact`; the clock runs from before the
        runtime is imported to a session that is ready for its first inference. The answer's times
        are of `time.monotonic`; `waits`: what was spent waiting for others that are timed."""
        baseline = memory.peak_mb()
        self._model = Model.open(Path(model))
        self._candidate = wire.decode_candidate(candidate)
        self._target = wire.decode_target(target)
        self._device = DeviceWatch.open(self._target.device) if self._target.is_cuda else None
        self._built_from = Path(artifact) if artifact else None
        self._backend = registry.load(backend)
        support = self._backend.available()
        if not support:
            raise BackendUnavailable(support.reason, fix=support.fix)
        began = time.monotonic()
        self._sessions = [self._build(self._target)]
        ended = time.monotonic()
        build_peak = memory.peak_mb()
        memory.reset_peak()
        return {
            "began": began,
            "ended": ended,
            "waits": waits(began),
            "host_baseline_mb": baseline,
            "host_build_peak_mb": build_peak,
            "versions": _versions(self._backend),
            "python": _python(),
        }

    def _build(self, target: Target) -> Session:
        assert self._backend is not None
        assert self._model is not None
        if self._built_from is not None and target == self._target:
            return self._backend.load(self._built_from, self._model, self._candidate, target)
        return self._backend.compile(self._model, self._candidate, target)

    def _session(self, batch: int) -> Session:
        """A session that serves this batch: one there is, or a new one in place of it."""
        assert self._model is not None
        sizes = self._model.sizes(batch)
        for session in self._sessions:
            if session.profile.covers(sizes):
                return session
        # The first session is what is measured most; any other makes room for the next.
        while len(self._sessions) > 1:
            self._sessions.pop().close()
        target = Target(self._target.device, Profile.fixed(sizes), self._target.threads)
        self._sessions.append(self._build(target))
        return self._sessions[-1]

    def covers(self, batch: int) -> dict[str, Any]:
        """Whether a session there is serves this batch without another build."""
        assert self._model is not None
        sizes = self._model.sizes(batch)
        return {"covers": any(s.profile.covers(sizes) for s in self._sessions)}

    def _feeds(self, directory: str, batch: int) -> dict[str, Array]:
        """Feeds from disk, their rows repeated where the batch asked for is another."""
        assert self._model is not None
        arrays = wire.load_arrays(Path(directory))
        return tile(self._model.inputs, self._model.batch, arrays, batch)

    def first_run(self, feeds: str, batch: int) -> dict[str, Any]:
        """The first inference of a fresh session, milliseconds at the host boundary, and the
        memory on the device up to then, where it is on one."""
        arrays = self._feeds(feeds, batch)
        session = self._session(batch)
        with self._device.beside() if self._device else contextlib.nullcontext():
            started = time.perf_counter()
            session.run(arrays)
            seconds = time.perf_counter() - started
        return {"ms": seconds * 1e3, "device": self._device_memory()}

    def peak(self) -> dict[str, Any]:
        """Peak memory of this process since its session was ready, or the last measurement
        began; `device` holds fields of `results.Memory`, none on a CPU."""
        return {"host_peak_mb": memory.peak_mb(), "device": self._device_memory()}

    def _device_memory(self) -> dict[str, Any]:
        return self._device.memory() if self._device else {}

    def outputs(self, feeds: str, batch: int, out: str) -> dict[str, Any]:
        """Run feeds and write the outputs; the race judges them, not this process."""
        arrays = self._feeds(feeds, batch)
        wire.save_arrays(Path(out), self._session(batch).run(arrays))
        return {}

    def stream(self, feeds: str, batch: int, out: str) -> dict[str, Any]:
        """Run many items, `batch` at a time, and write their concatenated outputs.

        The last chunk is filled up by repeating its last item, so that a session of one fixed
        batch serves any number of items; what was added is cut off again.
        """
        import numpy as np

        arrays = wire.load_arrays(Path(feeds), mmap=True)
        count = len(next(iter(arrays.values())))
        session = self._session(batch)
        parts: dict[str, list[Any]] = {}
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            kept = min(batch, count - start)
            outputs = session.run({name: np.array(a[rows]) for name, a in arrays.items()})
            for name, value in outputs.items():
                parts.setdefault(name, []).append(value[:kept])
        wire.save_arrays(Path(out), {name: np.concatenate(v) for name, v in parts.items()})
        return {}

    def placement(self, feeds: str, batch: int) -> dict[str, Any]:
        """Where the nodes really ran."""
        placement = self._session(batch).placement(self._feeds(feeds, batch))
        return {"placement": to_builtins(placement)}

    def measure(
        self, feeds: str, batch: int, boundary: str, budget: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One batch at one boundary, single stream, and in parallel where a session can."""
        arrays = self._feeds(feeds, batch)
        session = self._session(batch)
        memory.reset_peak()
        if self._device is not None:
            self._device.reset_peak()
        measurement = clock.measure(
            session,
            arrays,
            batch,
            Boundary(boundary),
            clock.Budget(**budget),
            device=self._device,
        )
        record = to_builtins(measurement)
        record["peak_mb"] = memory.peak_mb()
        return {"measurement": record}

    def turn(
        self, feeds: str, batch: int, boundary: str, runs: int, seconds: float, offline: bool
    ) -> dict[str, Any]:
        """One turn of an interleaved final: a short warm-up, then samples."""
        return clock.turn(
            self._session(batch),
            self._feeds(feeds, batch),
            batch,
            Boundary(boundary),
            runs=runs,
            seconds=seconds,
            offline=offline,
        )

    def together(
        self,
        feeds: list[str],
        batch: int,
        sessions: int,
        boundary: str,
        budget: Mapping[str, Any],
        out: str,
    ) -> dict[str, Any]:
        """Measure `sessions` like the open one side by side, and write what each computed last
        below `out`; session i infers the i-th of `feeds`, which begin anew where they end."""
        assert self._backend is not None
        assert self._model is not None
        first = self._session(batch)
        if sessions > 1 and first.alone:
            raise Unsupported("It cannot run beside itself in one process.", why=first.alone)
        arrays = [self._feeds(directory, batch) for directory in feeds]
        memory.reset_peak()
        with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
            saved = self._built_from or Path(scratch)
            if self._built_from is None and sessions > 1:
                self._backend.save(first, saved)
            others = [
                stack.enter_context(
                    self._backend.load(saved, self._model, self._candidate, self._target)
                )
                for _ in range(sessions - 1)
            ]
            found = measure_together(
                [first, *others],
                [arrays[i % len(arrays)] for i in range(sessions)],
                batch,
                Boundary(boundary),
                clock.Budget(**budget),
            )
            device = self._device_memory()
        for number, outputs in enumerate(found.outputs):
            wire.save_arrays(Path(out) / str(number), outputs)
        return {
            "throughput_per_s": found.throughput_per_s,
            "samples_ms": found.samples_ms,
            "latency_ms": to_builtins(latency_ms(found.samples_ms)),
            "peak_mb": memory.peak_mb(),
            "device_peak_mb": device.get("device_peak_mb"),
        }

    def save(self, directory: str, batch: int) -> dict[str, Any]:
        """Write the artefact of the session for this batch."""
        assert self._backend is not None
        path = Path(directory)
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        self._backend.save(self._session(batch), path)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        return {"artifact_mb": size / memory.MIB}

    def close(self) -> dict[str, Any]:
        """Release every session."""
        for session in self._sessions:
            session.close()
        self._sessions = []
        return {}


def _versions(backend: Backend) -> dict[str, str]:
    found = {}
    for name in (*backend.distributions, "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _python() -> str:
    """This interpreter's version and the environment it belongs to, by name: a report is to be
    read elsewhere, where a path means nothing."""
    return f"{platform.python_version()} in {Path(sys.prefix).name}"


def _as_record(error: BaseException) -> dict[str, str]:
    """An exception as words. Errors of ours keep their class; memory is told from the rest."""
    traceback.print_exc()  # the log keeps the whole story
    if isinstance(error, PeregrineError):
        return {
            "type": type(error).__name__,
            "what": error.what,
            "why": error.why,
            "fix": error.fix,
        }
    first, _, _ = str(error).strip().partition("\n")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or any(w in what.lower() for w in _OUT_OF_MEMORY_WORDS):
        return {
            "type": WorkerOutOfMemory.__name__,
            "what": what,
            "why": "an allocation failed",
            "fix": "Use a smaller batch.",
        }
    return {"type": WorkerError.__name__, "what": what, "why": "", "fix": ""}


def main(arguments: list[str]) -> None:
    """Answer commands until standard input ends."""
    answers_fd, parent = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    memory.prefer_as_oom_victim()
    commands = Commands()
    with os.fdopen(answers_fd, "wb", buffering=0) as answers:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            given(request["turn"])
            try:
                answer = getattr(commands, request["command"])(**request["arguments"])
            except Exception as error:  # noqa: BLE001  # every failure is an answer
                answer = {"error": _as_record(error)}
            sys.stdout.flush()
            answers.write(json.dumps(answer).encode() + b"\n")
    # Runtimes' exit handlers have been seen to hang or crash; nothing is left to save.
    os._exit(0)
