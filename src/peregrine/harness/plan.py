"""Which candidates to race: ask every backend, in its own interpreter, what it could do here."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peregrine.backends import registry
from peregrine.environments import interpreter_for
from peregrine.errors import OptionError, PeregrineError
from peregrine.harness import wire
from peregrine.harness.process import Worker
from peregrine.harness.request import Request
from peregrine.harness.trial import empty_result
from peregrine.model.model import Model
from peregrine.results import CandidateResult, Status
from peregrine.types import Candidate, Profile, Target, physical_cores

_PROBE_TIMEOUT_S = 120.0
_PROBES_AT_ONCE = 4
"""At least. Each is a process that imports its runtime, which takes a core for seconds."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A backend's own answer."""

    backend: str
    status: Status
    reason: str
    fix: str
    candidates: tuple[Candidate, ...]
    on_request: tuple[Candidate, ...]
    refining: tuple[str, ...]
    """Ids of those `candidates` that are only other settings of another one."""
    versions: dict[str, str]
    python: str
    log: str = ""


def probe(backend: str, log: Path, model: Model | None, target: Target) -> Probe:
    """Ask one backend, in a process of its own, so that a runtime that crashes on import is an
    answer too. Without a model it is only asked whether it can run."""
    try:
        with Worker(interpreter_for(backend), log=log) as worker:
            answer = worker.call(
                "probe",
                timeout_s=_PROBE_TIMEOUT_S,
                backend=registry.resolve(backend),
                model=str(model.directory) if model else None,
                target=wire.encode_target(target),
            )
    except PeregrineError as error:
        return Probe(backend, Status.FAILED, error.reason, error.fix, (), (), (), {}, "", str(log))
    return Probe(
        backend,
        Status(answer["status"]),
        answer["reason"],
        answer["fix"],
        tuple(wire.decode_candidate(c) for c in answer["candidates"]),
        tuple(wire.decode_candidate(c) for c in answer["on_request"]),
        tuple(answer["refining"]),
        answer["versions"],
        answer["python"],
        str(log),
    )


def probe_all(
    backends: Sequence[str], logs: Path | None, model: Model | None, target: Target
) -> list[Probe]:
    """Probe several backends at once. `logs` None throws away what they print."""
    at_once = max(_PROBES_AT_ONCE, physical_cores())
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(at_once) as pool:
        where = logs or Path(scratch)
        # A worker dies with the thread that started it; these threads outlive theirs.
        jobs = [pool.submit(probe, b, where / f"probe-{b}.log", model, target) for b in backends]
        return [job.result() for job in jobs]


@dataclass(frozen=True, slots=True)
class Plan:
    """The candidates to race, and the rows of backends that cannot take part."""

    candidates: tuple[Candidate, ...]
    absent: tuple[CandidateResult, ...]
    refining: tuple[str, ...] = ()
    """Ids of those that come last, and only where `refining.why_not` has nothing against them."""

    @property
    def coarse(self) -> tuple[Candidate, ...]:
        """What is raced in any case."""
        return tuple(c for c in self.candidates if c.id not in self.refining)

    @property
    def fine(self) -> tuple[Candidate, ...]:
        """Other settings, for later."""
        return tuple(c for c in self.candidates if c.id in self.refining)

    def as_record(self) -> dict[str, Any]:
        return {
            "candidates": [wire.encode_candidate(c) for c in self.candidates],
            "absent": self.absent,
            "refining": self.refining,
        }


def make_plan(model: Model, request: Request, logs: Path) -> Plan:
    """Ask every wanted backend and keep the candidates that the request does not filter out,
    and those raced on request that it names.

    Raises:
        OptionError: a name or pattern matches nothing.
    """
    names = [b for b in _wanted(request) if not _matches(b, request.skip)]
    for pattern in request.skip:
        # A candidate's id begins with its backend; anything else is a slip of the pen.
        if not any(pattern.startswith((b, "*")) for b in registry.names()):
            registry.resolve(pattern)
    sizes = model.sizes(request.batches[0])
    target = Target(request.device, Profile.fixed(sizes), request.threads)
    candidates: list[Candidate] = []
    absent: list[CandidateResult] = []
    offered: list[str] = []
    refining: list[str] = []
    for answer in probe_all(names, logs, model, target):
        if answer.status is not Status.OK:
            row = empty_result(
                Candidate(answer.backend),
                answer.status,
                absent=True,
                reason=answer.reason,
                fix=answer.fix,
                versions=answer.versions,
                python=answer.python,
                log=f"logs/{Path(answer.log).name}",
            )
            if not request.only or _asks_for(row.backend, request.only):
                absent.append(row)
            continue
        offered += [c.id for c in (*answer.candidates, *answer.on_request)]
        # Who names a backend wants it raced, though no race proposes it.
        alone = answer.backend in request.backends and not answer.candidates
        named = (c for c in answer.on_request if alone or _named(c, request.only))
        candidates += _filtered((*answer.candidates, *named), request)
        refining += answer.refining
    if request.only and not candidates and not absent:
        raise OptionError(
            f"No candidate matches {', '.join(request.only)}.",
            why=f"The candidates here are: {'; '.join(offered) or 'none'}.",
            fix="Quote the id, or use a pattern such as 'openvino*'.",
        )
    # Who names rows has them all.
    return Plan(tuple(candidates), tuple(absent), () if request.only else tuple(refining))


def _wanted(request: Request) -> list[str]:
    if not request.backends:
        return list(registry.names())
    for name in request.backends:
        registry.resolve(name)
    return list(dict.fromkeys(request.backends))


def _filtered(candidates: Iterable[Candidate], request: Request) -> list[Candidate]:
    return [
        c
        for c in candidates
        if c.precision in request.precisions
        and (not request.only or _matches(c.id, request.only) or _matches(c.backend, request.only))
        and not _matches(c.id, request.skip)
    ]


def _named(candidate: Candidate, patterns: Sequence[str]) -> bool:
    """Whether a pattern says the very variant, and is not just wide enough to match it."""
    head = f"{candidate.backend}[{candidate.variant}]" if candidate.variant else candidate.id
    return any(p.startswith(head) and _matches(candidate.id, [p]) for p in patterns)


def _asks_for(backend: str, patterns: Sequence[str]) -> bool:
    """Whether any pattern is of this backend's candidates: who asks for one of them by its id
    must learn why the backend offers none."""
    return _matches(backend, patterns) or any(
        p.startswith((f"{backend} ", f"{backend}[")) for p in patterns
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of the patterns. Ids hold brackets, which shell patterns would
    read as character classes: only `*` and `?` are special here."""
    return any(name == p or fnmatch.fnmatchcase(name, p.replace("[", "[[]")) for p in patterns)
