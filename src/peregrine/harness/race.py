"""The race from a model to a report: prepare, plan, one trial a candidate, the final, decide."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from peregrine.backends import registry
from peregrine.environments import interpreter_for
from peregrine.errors import NoCandidate, OptionError, PeregrineError
from peregrine.events import (
    CandidateDone,
    CandidateStarted,
    FinalRoundDone,
    FinalStarted,
    Observer,
    PhaseStarted,
    Planned,
    Preparing,
    RunDone,
    RunStarted,
    ignore,
)
from peregrine.fingerprint import machine
from peregrine.harness.assemble import Findings, assemble, findings
from peregrine.harness.concurrency import leaders, run_concurrency
from peregrine.harness.final import Reload, run_final
from peregrine.harness.graphs import Graphs
from peregrine.harness.plan import Plan, make_plan
from peregrine.harness.process import Worker
from peregrine.harness.reference import Judging, make_judging
from peregrine.harness.refining import why_not
from peregrine.harness.repairing import can_be_repaired, repair_row
from peregrine.harness.request import Request
from peregrine.harness.rundir import SCRATCH, RunDirectory, utc_now
from peregrine.harness.trial import Setting, run_trial
from peregrine.harness.watch import available_mb
from peregrine.model.model import MODEL_FILE, Model
from peregrine.results import CandidateResult, FinalRound, Report, Status, SweepEnd
from peregrine.select import Goal, rank
from peregrine.types import Candidate, Feeds, physical_cores
from peregrine.validate import Thresholds

Loader = Callable[[Path], Model]
"""Makes a model directory from an object in memory."""
_JOBS = 6
"""Rows side by side at most. More wait for the GPU rather than for compilers."""
_ROW_MB = 6 * 1024
"""Host memory that a row is given: torch.compile's processes take the most."""


def race(
    request: Request,
    path: Path,
    *,
    loader: Loader | None = None,
    given: Sequence[Feeds] = (),
    calibrating: Iterable[Any] | None = None,
    observer: Observer = ignore,
) -> Report:
    """Run a whole race in a new run directory.

    Args:
        request: what to race.
        path: the run directory to make.
        loader: makes the model directory from an object in this process; None lets a worker
            load `request.source`.
        given: inputs to judge on beside the random ones.
        calibrating: feeds to calibrate with, where the request says that they are in memory.
        observer: told of everything as it happens.

    Raises:
        PeregrineError: the model, the inputs or the reference are no good, or nothing can run.
        KeyboardInterrupt: passed on; what was measured is kept and the report written.
    """
    return _Race(RunDirectory.create(path, request), loader, given, observer, calibrating).run()


def resume(path: Path, *, loader: Loader | None = None, observer: Observer = ignore) -> Report:
    """Go on with an interrupted race: rows that are there are kept, the rest is run."""
    return _Race(RunDirectory.resume(path), loader, (), observer).run()


def rows_at_a_time(request: Request) -> int:
    """How many rows to build and judge side by side here and now: on a CPU one."""
    if request.jobs or not request.device.startswith("cuda"):
        return request.jobs or 1
    if request.find_max_batch:  # what neighbours hold would end the search
        return 1
    return max(1, min(_JOBS, physical_cores() // 2, int(available_mb() / _ROW_MB)))


def _memory_ended(row: CandidateResult) -> bool:
    return row.status is Status.OOM or row.sweep_ended_by is SweepEnd.MEMORY


class _Race:
    def __init__(
        self,
        run: RunDirectory,
        loader: Loader | None,
        given: Sequence[Feeds],
        observer: Observer,
        calibrating: Iterable[Any] | None = None,
    ) -> None:
        self.directory = run
        self.request = run.request
        self.loader = loader
        self.given = given
        self.calibrating = calibrating
        self.tell = observer

    def run(self) -> Report:
        run = self.directory
        try:
            before = findings(run)
            self.tell(RunStarted(str(run.path), self.request.source, len(before.candidates)))
            if not before.started:
                run.append("started", {"time": utc_now(), "machine": machine()})
            setting, plan = self.prepare(before)
            with closing(setting.company):
                self.trials(setting, plan)
                self.final(setting)
                self.concurrency(setting)
            run.append("finished", {"time": utc_now()})
        finally:
            for temporary in ("outputs", SCRATCH):
                shutil.rmtree(run.file(temporary), ignore_errors=True)
            run.release()
        report = assemble(run)
        self.tell(RunDone(report))
        return report

    def prepare(self, before: Findings) -> tuple[Setting, Plan]:
        """The model directory, the reference and the plan, kept from before where they are
        whole."""
        run = self.directory
        directory = run.file("model")
        if not (directory / MODEL_FILE).is_file():
            self.tell(Preparing(f"loading {self.request.source}"))
            shutil.rmtree(directory, ignore_errors=True)
            if self.loader is not None:
                self.loader(directory)
            else:
                self.load_in_worker(directory)
        model = Model.open(directory)
        for precision in self.request.precisions:
            Thresholds.of(precision, self.request.thresholds)  # an unknown name is said now
        if not model.batch and self.request.batches != (1,):
            raise OptionError(
                f"{model.name} fixes its batch: it cannot be raced at others.",
                why=f"its inputs are {', '.join(map(str, model.inputs))}",
                fix="Leave --batch out, or export the model with a symbolic first dimension.",
            )
        # Backends import their runtimes while the reference computes: neither is timed.
        with ThreadPoolExecutor(1) as aside:
            asked = aside.submit(self.plan, model) if before.plan is None else None
            judging = Judging.load(run)
            if judging is None:
                self.tell(Preparing("making inputs"))
                judging = make_judging(
                    run,
                    model,
                    self.request,
                    self.given,
                    lambda text: self.tell(Preparing(text)),
                    self.calibrating,
                )
            setting = Setting(run, model, self.request, judging, Graphs(run, model, self.request))
            setting.judge.check()
            if asked is None:
                assert before.plan is not None
                return setting, before.plan
            self.tell(Preparing("asking each backend what it can do"))
            plan = asked.result()
        for row in plan.absent:
            run.append("candidate", row)
        run.append("plan", plan.as_record())
        return setting, plan

    def plan(self, model: Model) -> Plan:
        return make_plan(model, self.request, self.directory.file("logs"))

    def load_in_worker(self, directory: Path) -> None:
        """Load the model in a process of its own: an exporter that crashes is then an error
        like any other, and the race stays small."""
        request = self.request
        options = {
            "inputs": request.input_specs,
            "dims": dict(request.dims),
            "seed": request.seed,
            "weights": request.weights,
            "trust": request.trust,
        }
        log = self.directory.file("logs", "model.log")
        with Worker(interpreter_for("pytorch"), log=log) as worker:
            worker.call(
                "prepare",
                timeout_s=request.timeout_s,
                source=request.source,
                directory=str(directory),
                options=options,
            )

    def trials(self, setting: Setting, plan: Plan) -> None:
        """Every planned candidate that has no row yet."""
        run = self.directory
        rows = findings(run).candidates
        done = {row.id for row in rows}
        at_a_time = rows_at_a_time(self.request)
        if at_a_time > 1:
            run.append("side_by_side", {"rows": at_a_time})
        self.tell(Planned(tuple(c.id for c in plan.coarse)))
        for row in rows:
            self.tell(CandidateDone(row))
        for wave in (plan.coarse, plan.fine):
            todo = (c for c in wave if c.id not in done and not self.left_out(plan, c))
            with closing(self.raced(setting, todo, at_a_time)) as raced:
                for found in itertools.chain.from_iterable(raced):
                    run.append("candidate", found)
                    self.tell(CandidateDone(found))
        if not plan.candidates:
            raise NoCandidate(
                "Nothing here can run this model.",
                why="\n".join(f"{r.id}: {r.reason}" for r in plan.absent),
                fix=next((r.fix for r in plan.absent if r.fix), "Run `peregrine doctor`."),
            )

    def raced(
        self, setting: Setting, candidates: Iterable[Candidate], at_a_time: int
    ) -> Generator[list[CandidateResult]]:
        """The rows of each candidate as it is done, so many of them at work at a time. One for
        which memory ended beside others gets another try, alone."""
        if at_a_time == 1:
            yield from (self.row(setting, candidate) for candidate in candidates)
            return
        # Rows that wait for each other's turns would fill all places that others could build in.
        pool = ThreadPoolExecutor(at_a_time - at_a_time // 3)
        in_turn = ThreadPoolExecutor(max(1, at_a_time // 3))
        jobs = {}
        for candidate in candidates:
            alone = registry.get(candidate.backend).times_kernels
            chosen = in_turn if alone else pool
            jobs[chosen.submit(self.row, setting, candidate)] = candidate
        starved = []
        try:
            for job in as_completed(jobs):
                if any(_memory_ended(row) for row in job.result()):
                    starved.append(jobs[job])
                else:
                    yield job.result()
            yield from (self.row(setting, candidate) for candidate in starved)
        finally:  # of an interrupted race too: what is at work then ends by its worker's death
            for each in (pool, in_turn):
                each.shutdown(wait=False, cancel_futures=True)
            while not all(job.done() for job in jobs):
                for worker in setting.company:
                    worker.kill()
                time.sleep(0.05)

    def row(self, setting: Setting, candidate: Candidate) -> list[CandidateResult]:
        """A candidate's row, behind that of its repaired graph where there is one: with the
        failed row on disk, a resumed race goes on behind both."""
        self.tell(CandidateStarted(candidate.id))
        row = run_trial(setting, candidate, partial(self.phase, candidate.id))
        repaired = None
        if can_be_repaired(setting, row):
            row, repaired = repair_row(setting, row, self.phase)
        return [row] if repaired is None else [repaired, row]

    def left_out(self, plan: Plan, candidate: Candidate) -> bool:
        """Whether a setting is too far from winning to be worth its time."""
        if candidate.id not in plan.refining:
            return False
        rows = findings(self.directory).candidates
        return bool(why_not(candidate, rows, self.request.objective))

    def phase(self, name: str, phase: str, detail: str) -> None:
        self.tell(PhaseStarted(name, phase, detail))

    def final(self, setting: Setting) -> None:
        """Interleaved rounds of all rows that can win."""
        run, objective = self.directory, self.request.objective
        if findings(run).final_complete:
            return
        found = assemble(run).candidates
        # What the data cannot decide is measured with the rest: a user must see what deciding
        # would be worth.
        rows = [*rank(found, objective), *(r for r in found if r.status is Status.UNDECIDED)]
        rows.sort(key=lambda row: row.id not in self.request.first_in_final)
        entrants = [(r, m.batch) for r in rows if (m := objective.measurement(r)) is not None]
        run.append("final", {"entrants": [row.id for row, _ in entrants]})
        self.tell(FinalStarted(tuple(row.id for row, _ in entrants), self.request.final_rounds))

        def record(found: FinalRound | Reload) -> None:
            run.append("round" if isinstance(found, FinalRound) else "reload", found)

        run_final(
            setting,
            entrants,
            offline=objective.goal is Goal.THROUGHPUT,
            record=record,
            progress=lambda done, of: self.tell(FinalRoundDone(done, of)),
            phase=self.phase,
        )
        run.append("final_done", {})

    def concurrency(self, setting: Setting) -> None:
        """The leaders with several sessions side by side, where that was asked for."""
        if not self.request.streams:
            return
        report = assemble(self.directory)
        run_concurrency(
            setting,
            leaders(report, self.request.objective.boundary),
            report.concurrency,
            record=lambda found: self.directory.append("concurrency", found),
            phase=self.phase,
        )


def partial_report(path: Path) -> Report | None:
    """The report of an interrupted race, or None when it had not come to any row."""
    try:
        return assemble(RunDirectory.read(path))
    except PeregrineError:
        return None
