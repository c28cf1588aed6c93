"""The leaders with several sessions side by side: throughput and tail latency against their number.

A final compares one inference at a time. A server has several requests at once, and who is fastest
alone need not be fastest then. So each row that stayed in the final to its end runs again with
every number of sessions asked for, in a fresh process each, and what the sessions compute beside
each other is judged like anything else.

On a CPU the race's threads are shared out among the sessions, as a server would: sessions that all
want every core would measure how they quarrel over them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peregrine.errors import PeregrineError
from peregrine.harness import wire
from peregrine.harness.recheck import Recheck
from peregrine.harness.rundir import slug
from peregrine.harness.trial import Setting
from peregrine.results import (
    Boundary,
    CandidateResult,
    Concurrency,
    LatencyMs,
    Report,
    from_builtins,
)
from peregrine.types import physical_cores


def leaders(report: Report, boundary: Boundary) -> list[tuple[CandidateResult, int]]:
    """The rows that played the final's last round, each with the batch it played at; the winner
    alone where there was no final."""
    last = max((r.round for r in report.final_rounds), default=0)
    played = {r.candidate: r.batch for r in report.final_rounds if r.round == last}
    if not played and report.winner is not None:
        played = {report.winner.id: report.winner.batch}
    rows = [row for row in report.candidates if row.id in played and row.can_win]
    return [(row, played[row.id]) for row in rows if row.measurement(played[row.id], boundary)]


def run_concurrency(
    setting: Setting,
    rows: Iterable[tuple[CandidateResult, int]],
    done: Sequence[Concurrency],
    record: Callable[[Concurrency], None],
    phase: Callable[[str, str, str], None],
) -> None:
    """Measure every row with every number of sessions that the request names.

    A row that fails at one number is not tried at the larger ones.

    Args:
        setting: the race.
        rows: each with the batch of an inference.
        done: what an interrupted run had found.
        record: told every finding at once.
        phase: told candidate, phase and detail.
    """
    for row, batch in rows:
        before = {c.sessions: c for c in done if c.candidate == row.id}
        for sessions in setting.request.streams:
            found = before.get(sessions)
            if found is None:
                phase(row.id, "side by side", f"{sessions} sessions at batch {batch}")
                found = _measure(setting, row, batch, sessions)
                record(found)
            if found.error:
                break


def _measure(setting: Setting, row: CandidateResult, batch: int, sessions: int) -> Concurrency:
    request, candidate = setting.request, row.candidate
    on_cpu = not setting.target(batch).is_cuda
    threads = max(1, (request.threads or physical_cores()) // sessions) if on_cpu else None
    # What was saved for all threads is no session for some of them.
    shared_out = threads if sessions > 1 else None

    def found(**fields: Any) -> Concurrency:
        boundary = request.objective.boundary
        return Concurrency(row.id, sessions, batch, boundary, threads, **fields)

    check = Recheck.of(setting, row, batch)
    artifact = setting.artifact(candidate, batch)
    out = setting.run.file("outputs", f"{slug(row.id)}.together")
    shutil.rmtree(out, ignore_errors=True)
    try:
        with setting.start(candidate, f"together-{sessions}") as worker:
            saved = artifact if artifact.is_dir() and shared_out is None else None
            setting.open(worker, candidate, batch, saved, threads=shared_out)
            answer = worker.call(
                "together",
                timeout_s=request.timeout_s,
                feeds=[str(s.feeds(setting.run)) for s in check.sets],
                batch=batch,
                sessions=sessions,
                boundary=str(request.objective.boundary),
                budget={
                    "min_runs": request.min_runs * sessions,
                    "min_s": request.measure_s,
                    "max_s": request.measure_max_s,
                },
                out=str(out),
                quiet=True,
            )
    except PeregrineError as error:
        return found(error=error.reason)
    validation = check.judge([wire.load_arrays(out / str(i)) for i in range(sessions)])
    if not validation.passed:
        return found(error=f"Side by side its outputs are wrong: {validation.reason}")
    return found(
        throughput_per_s=answer["throughput_per_s"],
        latency_ms=from_builtins(answer["latency_ms"], LatencyMs),
        samples_ms=tuple(answer["samples_ms"]),
        peak_mb=answer["peak_mb"],
        device_peak_mb=answer["device_peak_mb"],
    )
