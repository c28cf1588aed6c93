"""A run directory made into a report. Everything in a report follows from the raw rows, so an
earlier run can be reported again, and by a later version."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from peregrine.errors import RunDirectoryError
from peregrine.harness import wire
from peregrine.harness.final import Reload, with_reload
from peregrine.harness.plan import Plan
from peregrine.harness.reference import Judging
from peregrine.harness.refining import why_not
from peregrine.harness.rundir import RunDirectory
from peregrine.harness.statistics import noise_warnings
from peregrine.model.model import Model
from peregrine.objective import Objective
from peregrine.results import (
    Boundary,
    CandidateResult,
    Concurrency,
    FinalRound,
    MachineRecord,
    ModelRecord,
    Report,
    Status,
    from_builtins,
)
from peregrine.select import break_even, decide, rank
from peregrine.useless import useless

_T = TypeVar("_T")
_BUSY_LOAD = 0.5
"""Load average per core above which the machine was not ours alone."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The rows of a run, in words of their own."""

    started: str
    finished: str
    machine: MachineRecord | None
    plan: Plan | None
    candidates: tuple[CandidateResult, ...]
    rounds: tuple[FinalRound, ...]
    reloads: tuple[Reload, ...]
    final_complete: bool
    at_a_time: int
    """Rows that were built side by side."""
    concurrency: tuple[Concurrency, ...]


def findings(run: RunDirectory) -> Findings:
    """Read the raw rows. Of finals that were begun, only the last counts."""
    started = finished = ""
    machine: MachineRecord | None = None
    plan: Plan | None = None
    candidates: dict[str, CandidateResult] = {}
    rounds: list[FinalRound] = []
    reloads: list[Reload] = []
    concurrency: list[Concurrency] = []
    complete, at_a_time = False, 1
    for kind, record in run.rows():
        if kind == "started":
            started, machine = record["time"], _as(record["machine"], MachineRecord)
        elif kind == "side_by_side":
            at_a_time = max(at_a_time, record["rows"])
        elif kind == "plan":
            plan = _plan(record)
        elif kind == "candidate":
            row = _as(record, CandidateResult)
            candidates[row.id] = row
        elif kind == "final":
            rounds, reloads, concurrency, complete = [], [], [], False
        elif kind == "round":
            rounds.append(_as(record, FinalRound))
        elif kind == "reload":
            reloads.append(_as(record, Reload))
        elif kind == "concurrency":
            concurrency.append(_as(record, Concurrency))
        elif kind == "final_done":
            complete = True
        elif kind == "finished":
            finished = record["time"]
    return Findings(
        started,
        finished,
        machine,
        plan,
        tuple(candidates.values()),
        tuple(rounds),
        tuple(reloads),
        complete,
        at_a_time,
        tuple(concurrency),
    )


def _as(record: Any, kind: type[_T]) -> _T:
    try:
        return from_builtins(record, kind)
    except ValueError as error:
        raise RunDirectoryError(
            "The run's results do not have the form this version reads.",
            why=str(error),
            fix="Read them with the version of Peregrine that wrote them, or run again.",
        ) from error


def _plan(record: Mapping[str, Any]) -> Plan:
    return Plan(
        tuple(wire.decode_candidate(c) for c in record["candidates"]),
        tuple(_as(row, CandidateResult) for row in record["absent"]),
        tuple(record.get("refining", ())),
    )


def assemble(run: RunDirectory) -> Report:
    """The report of what a run has found so far.

    Raises:
        RunDirectoryError: it holds too little: no model or no reference yet.
    """
    found, request = findings(run), run.request
    judging = Judging.load(run)
    if found.machine is None or judging is None:
        raise RunDirectoryError(
            f"{run.path} holds no results yet.",
            why="the race stopped before its first candidate",
            fix=f"Go on with it: peregrine bench --resume {run.path}",
        )
    rows = list(found.candidates)
    for reload in found.reloads:
        rows = [with_reload(row, reload) if row.id == reload.id else row for row in rows]
    rows = [_within_limits(row, request.objective) for row in rows]
    repaid = break_even(rows, request.objective, found.rounds)
    rows = [dataclasses.replace(row, break_even=repaid.get(row.id)) for row in rows]
    ranked = rank(rows, request.objective)
    winner = decide(ranked, found.rounds, rows, request.objective) if ranked else None
    vain = useless(rows, cpu_flags=found.machine.cpu_flags, device=request.device, winner=winner)
    rows = [dataclasses.replace(row, useless=vain.get(row.id, "")) for row in rows]
    model = Model.open(run.file("model"))
    return Report(
        model=model_record(model),
        machine=found.machine,
        versions=_versions(rows),
        reference=judging.record(),
        candidates=tuple(rows),
        winner=winner,
        objective=str(request.objective),
        final_rounds=found.rounds,
        warnings=(
            *_not_raced(found, rows, request.objective),
            *_warnings(found, rows, request.min_runs),
        ),
        complete=bool(found.finished),
        command=request.command,
        started=found.started,
        finished=found.finished,
        run_dir=str(run.path),
        concurrency=found.concurrency,
    )


def _within_limits(row: CandidateResult, objective: Objective) -> CandidateResult:
    """A valid row that does not keep to the objective's limits may not win, and says why."""
    if not row.can_win:
        return row
    return dataclasses.replace(row, disqualified=objective.constraint_failure(row))


def model_record(model: Model) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        source=model.source,
        sha256=model.sha256,
        weights=model.weights,
        inputs=model.inputs,
        outputs=model.outputs,
        batch=model.batch,
        dims=dict(model.dims),
        parameters=model.parameters,
        notes=model.notes,
    )


def _versions(rows: list[CandidateResult]) -> dict[str, str]:
    """Versions that every row agrees on, with this interpreter's own; a row whose worker ran
    elsewhere says so itself."""
    versions = {
        "python": platform.python_version(),
        "peregrine-inference": importlib.metadata.version("peregrine-inference"),
    }
    for row in rows:
        for name, version in row.versions.items():
            versions.setdefault(name, version)
    return dict(sorted(versions.items()))


def _warnings(found: Findings, rows: list[CandidateResult], runs: int) -> tuple[str, ...]:
    """`runs`: how many samples were asked for."""
    said = []
    machine = found.machine
    if machine and machine.load_average is not None:
        per_core = machine.load_average / machine.physical_cores
        if per_core > _BUSY_LOAD:
            said.append(
                f"The machine was busy when the race began (load {machine.load_average:.1f} on "
                f"{machine.physical_cores} cores): absolute times are high; the final's ratios "
                "were measured in turns and stand."
            )
    if found.at_a_time > 1:
        said.append(
            f"{found.at_a_time} rows were built at a time: a build took longer than it does "
            "alone, and what was timed outside the final may have met the GPU busy for moments."
        )
    for row in rows:
        if row.status is not Status.OK:
            continue
        for measurement in row.measurements:
            if measurement.boundary is not Boundary.HOST or measurement.batch != row_batch(row):
                continue
            if not measurement.stable:
                said.append(f"{row.id}: still changing when its warm-up ended.")
            noise = noise_warnings(measurement.samples_ms, asked=runs)
            said += [f"{row.id}: {text}." for text in noise]
    return (*said, *throttle_warnings(rows))


def _not_raced(found: Findings, rows: Sequence[CandidateResult], objective: Objective) -> list[str]:
    """Which settings were left out, a sentence for each reason."""
    done = {row.id for row in rows}
    left: dict[str, list[str]] = {}
    for candidate in found.plan.fine if found.plan and found.finished else ():
        if candidate.id not in done:
            why = why_not(candidate, rows, objective)
            left.setdefault(why, []).append(candidate.id)
    return [
        f"Not raced: {', '.join(ids)}. {why}; name a row with --only to race it."
        for why, ids in left.items()
    ]


def throttle_warnings(rows: Sequence[CandidateResult]) -> list[str]:
    """A sentence for each set of reasons that held a GPU's clocks down, with the valid rows that
    were measured meanwhile and their batches."""
    held: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        for m in row.measurements if row.status is Status.OK else ():
            if m.device is not None and m.device.throttle:
                batches = held.setdefault(", ".join(m.device.throttle), {}).setdefault(row.id, [])
                if m.batch not in batches:
                    batches.append(m.batch)
    return [
        f"The GPU was throttled ({reasons}) while it was measured: "
        + "; ".join(f"{id} at batch {', '.join(map(str, at))}" for id, at in measured.items())
        + "."
        for reasons, measured in held.items()
    ]


def row_batch(row: CandidateResult) -> int:
    """The first batch a row was measured at."""
    return row.measurements[0].batch
