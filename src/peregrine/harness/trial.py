"""One candidate's own run: compile, judge, prove its placement, measure, save. One row."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peregrine.backends import registry
from peregrine.engines import Kept
from peregrine.environments import interpreter_for
from peregrine.errors import (
    BackendUnavailable,
    PeregrineError,
    Unsupported,
    WorkerOutOfMemory,
    WorkerTimeout,
)
from peregrine.harness import wire
from peregrine.harness.company import Company
from peregrine.harness.graphs import Graphs
from peregrine.harness.judge import Judge
from peregrine.harness.judged import FeedSet
from peregrine.harness.kept import KeptEngine
from peregrine.harness.process import Worker
from peregrine.harness.reference import Judging
from peregrine.harness.request import Request
from peregrine.harness.rundir import SCRATCH, RunDirectory, slug, utc_now
from peregrine.harness.turns import Turns
from peregrine.harness.watch import available_mb
from peregrine.model.model import Model
from peregrine.objective import memory_mb
from peregrine.results import (
    Boundary,
    CandidateResult,
    Measurement,
    Memory,
    Status,
    SweepEnd,
    Verdict,
    from_builtins,
)
from peregrine.types import Candidate, Placement, Profile, Target

_STATUS_OF = (
    (BackendUnavailable, Status.UNAVAILABLE),
    (Unsupported, Status.UNSUPPORTED),
    (WorkerTimeout, Status.TIMEOUT),
    (WorkerOutOfMemory, Status.OOM),
)
# A swept batch is measured to find where throughput saturates, not to rank: fewer runs do.
_SWEEP_BUDGET = {"min_runs": 8, "min_s": 0.4, "max_s": 8.0}
_SATURATED_GAIN = 1.03
"""Two doublings in a row that gain less than this over the best so far end a sweep."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trials of a race share."""

    run: RunDirectory
    model: Model
    request: Request
    judging: Judging
    graphs: Graphs
    company: Company = field(default_factory=Company)
    """All workers that were started: an interrupted race ends them."""

    @property
    def judge(self) -> Judge:
        return Judge(self.run, self.model, self.request, self.judging)

    @property
    def memory_limit_mb(self) -> float:
        return self.request.worker_memory_mb or available_mb() * 0.9

    def target(self, batch: int) -> Target:
        profile = Profile.fixed(self.model.sizes(batch))
        return Target(self.request.device, profile, self.request.threads)

    def start(self, candidate: Candidate, purpose: str = "") -> Worker:
        """A worker in the interpreter of the candidate's backend."""
        name = slug(candidate.id) + (f".{purpose}" if purpose else "")
        times_kernels = registry.get(candidate.backend).times_kernels
        return Worker(
            interpreter_for(candidate.backend),
            log=self.run.file("logs", f"{name}.log"),
            memory_limit_mb=self.memory_limit_mb,
            scratch=self.run.file(SCRATCH, name),
            turns=Turns(self.request.device, times_kernels=times_kernels),
            company=self.company,
        )

    def open(
        self,
        worker: Worker,
        candidate: Candidate,
        batch: int,
        artifact: Path | None = None,
        *,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Compile the candidate in its worker, or load what it saved; `threads` in place of the
        race's."""
        target = self.target(batch)
        if threads is not None:
            target = dataclasses.replace(target, threads=threads)
        opened = worker.call(
            "open",
            timeout_s=self.request.timeout_s,
            backend=registry.resolve(candidate.backend),
            model=str(self.graphs.directory(candidate.graph)),
            candidate=wire.encode_candidate(candidate),
            target=wire.encode_target(target),
            artifact=str(artifact) if artifact else None,
        )
        began, ended, waits = (opened.pop(name) for name in ("began", "ended", "waits"))
        waited = [(start, end) for start, end in waits]  # lists, as JSON has them
        opened["seconds"] = ended - began - worker.paused_s(began, ended, waited)
        return opened

    def call(
        self, worker: Worker, command: str, feeds: FeedSet, batch: int, **arguments: Any
    ) -> dict[str, Any]:
        """A command on one feed set."""
        return worker.call(
            command,
            timeout_s=self.request.timeout_s,
            feeds=str(feeds.feeds(self.run)),
            batch=batch,
            **arguments,
        )

    def artifact(self, candidate: Candidate, batch: int) -> Path:
        """Where a candidate's session for one batch is saved."""
        return artifact_of(self.run, candidate, batch)

    def own_outputs(self, candidate: Candidate, batch: int) -> Path:
        """Where a row that is judged on real inputs only keeps its outputs for the random ones."""
        return self.run.file("own", slug(candidate.id), f"batch-{batch}")


def artifact_of(run: RunDirectory, candidate: Candidate, batch: int) -> Path:
    """Where a run keeps what a candidate saved of its session for one batch."""
    return run.file("artifacts", slug(candidate.id), f"batch-{batch}")


def status_of(error: PeregrineError) -> Status:
    """The status of a row that ended in this error."""
    return next((s for kind, s in _STATUS_OF if isinstance(error, kind)), Status.FAILED)


def empty_result(candidate: Candidate, status: Status, **fields: Any) -> CandidateResult:
    """A row with nothing measured."""
    return CandidateResult(
        id=candidate.id,
        backend=candidate.backend,
        variant=candidate.variant,
        precision=candidate.precision,
        options=dict(candidate.options),
        graph=candidate.graph,
        status=status,
        finished=utc_now(),
        **fields,
    )


def run_trial(
    setting: Setting, candidate: Candidate, phase: Callable[[str, str], None]
) -> CandidateResult:
    """Run one candidate in a worker of its own. Whatever happens to it is a row.

    Args:
        setting: the race it runs in.
        candidate: what to compile.
        phase: told the phase that begins, and a detail.
    """
    trial = _Trial(setting, candidate, phase)
    try:
        trial.run()
    except PeregrineError as error:
        trial.end(error)
    return dataclasses.replace(trial.row, finished=utc_now())


class _Trial:
    def __init__(
        self, setting: Setting, candidate: Candidate, phase: Callable[[str, str], None]
    ) -> None:
        self.setting = setting
        self.candidate = candidate
        self.phase = phase
        self.request = setting.request
        self.batches = setting.request.batches if setting.model.batch else (1,)
        self.measured: list[Measurement] = []
        self.kept: KeptEngine | None = None
        self.build_peak_mb: float | None = None
        self.baseline_mb: float | None = None
        log = f"logs/{slug(candidate.id)}.log"
        self.row = empty_result(candidate, Status.FAILED, log=log)

    def update(self, **fields: Any) -> None:
        self.row = dataclasses.replace(self.row, **fields)

    def end(self, error: PeregrineError) -> None:
        """The row of a candidate that stopped at an error."""
        self.update(status=status_of(error), reason=error.reason, fix=error.fix)

    def run(self) -> None:
        first = self.batches[0]
        if self.candidate.graph:
            self.phase("convert", self.candidate.graph)
            self.update(conversion=self.setting.graphs.make(self.candidate.graph))
        lead = self.setting.judging.for_batch(first)[0]
        with contextlib.ExitStack() as stack:
            worker = self.begin(stack, lead)
            if worker is None:
                return
            self.prove_placement(worker, lead)
            self.measure(worker, lead, first, Boundary.DEVICE)
            self.measure(worker, lead, first, Boundary.HOST)
            host = self.measured[-1]
            self.decide()
            peak = worker.call("peak", timeout_s=self.request.timeout_s)
            self.update(
                memory=Memory(
                    host_peak_mb=host.peak_mb or 0.0,
                    host_build_peak_mb=self.build_peak_mb,
                    host_baseline_mb=self.baseline_mb,
                    **peak["device"],
                ),
            )
            self.save(worker, first)
            if self.kept is not None and self.row.build_s is not None:
                self.kept.keep(self.row.build_s)
            self.more_batches(worker, lead)
        if self.request.find_max_batch and self.setting.model.batch:
            self.search_max_batch(lead)

    def begin(self, stack: contextlib.ExitStack, lead: FeedSet) -> Worker | None:
        """A worker with a session that computes what the reference does; None, with the reason
        in the row, where the candidate does not.

        An engine that an earlier race kept is judged like any other. One that does not load, or
        is wrong, is forgotten, and built anew in a fresh worker.
        """
        worker = stack.enter_context(self.setting.start(self.candidate))
        if self.request.engine_cache:
            self.kept = KeptEngine(self.setting, self.candidate, self.batches[0])
            if (found := self.kept.fetch(worker)) is not None:
                before = self.row
                try:
                    if self.open(worker, lead, found):
                        return worker
                    why = f"the kept engine failed validation: {self.row.reason}"
                except PeregrineError as error:
                    why = f"the kept engine could not be used: {error.what}"
                worker.kill()
                self.kept.refuse(why)
                self.row = before
                worker = stack.enter_context(self.setting.start(self.candidate))
        return worker if self.open(worker, lead) else None

    def open(self, worker: Worker, lead: FeedSet, found: Kept | None = None) -> bool:
        """Build the session, or load the one `found`; true if its outputs are right."""
        first, artifact = self.batches[0], self.kept.artifact if self.kept and found else None
        self.phase("load" if found else "compile", "")
        opened = self.setting.open(worker, self.candidate, first, artifact)
        self.baseline_mb = opened["host_baseline_mb"]
        self.update(versions=opened["versions"], python=opened["python"])
        if found is not None:
            self.update(build_s=found.build_s, load_s=opened["seconds"])
        else:
            self.update(build_s=opened["seconds"])
            self.build_peak_mb = opened["host_build_peak_mb"]
        if self.kept is not None:
            self.update(engine=self.kept.origin(opened["seconds"]))
        answer = self.setting.call(worker, "first_run", lead, first)
        self.update(first_run_ms=answer["ms"])
        return self.judge(worker)

    def decide(self) -> None:
        """A row that passed is good, unless its accuracy is for more data to decide."""
        guard = self.row.validation.guard if self.row.validation else None
        undecided = guard is not None and guard.verdict is Verdict.UNDECIDED
        if guard is None or not undecided or self.request.allow_undecided:
            self.update(status=Status.OK)
        else:
            self.update(
                status=Status.UNDECIDED,
                reason=guard.reason,
                fix="Judge on more data, allow a larger --max-drop, or let it win undecided with "
                "--allow-undecided.",
            )

    def judge(self, worker: Worker) -> bool:
        """Outputs against the reference's, before anything is timed."""
        validation = self.setting.judge.first(worker, self.candidate, self.batches, self.phase)
        self.update(validation=validation)
        if not validation.passed:
            self.update(status=Status.INVALID, reason=validation.reason)
        return validation.passed

    def prove_placement(self, worker: Worker, feeds: FeedSet) -> None:
        self.phase("placement", "")
        answer = self.setting.call(worker, "placement", feeds, self.batches[0])
        placement = from_builtins(answer["placement"], Placement)
        self.update(placement=placement)
        if placement.fell_back and not self.request.allow_fallback:
            self.update(
                disqualified=f"fell back: {placement.detail}",
                fix="Let it compete with --allow-fallback.",
            )

    def measure(
        self,
        worker: Worker,
        feeds: FeedSet,
        batch: int,
        boundary: Boundary,
        budget: dict[str, float] | None = None,
    ) -> Measurement:
        """Measure in the worker; the race sleeps meanwhile."""
        self.phase("measure", f"batch {batch}, {boundary} boundary")
        request = self.request
        full = {
            "min_runs": request.min_runs,
            "min_s": request.measure_s,
            "max_s": request.measure_max_s,
        }
        answer = self.setting.call(
            worker,
            "measure",
            feeds,
            batch,
            boundary=str(boundary),
            budget=budget or full,
            quiet=True,
        )
        measurement = from_builtins(answer["measurement"], Measurement)
        self.measured.append(measurement)
        self.update(measurements=tuple(self.measured))
        return measurement

    def more_batches(self, worker: Worker, lead: FeedSet) -> None:
        """The other batches asked for, then the sweep. The row is already good: what ends
        these early is written down and no failure."""
        try:
            for batch in self.batches[1:]:
                if not self.judge_batch(worker, batch):
                    return
                feeds = self.setting.judging.lead(batch)
                for boundary in (Boundary.DEVICE, Boundary.HOST):
                    wanted = boundary is self.request.objective.boundary
                    if wanted or not self.request.one_boundary:
                        self.measure(worker, feeds, batch, boundary)
            if self.request.sweep and self.setting.model.batch:
                self.sweep(worker, lead)
            decisive = self.request.objective.measurement(self.row)
            if decisive is not None and decisive.batch != self.batches[0]:
                self.save(worker, decisive.batch)
        except WorkerOutOfMemory as error:
            self.end_sweep(SweepEnd.MEMORY, f"memory, after batch {self.largest}: {error.what}")
        except WorkerTimeout:
            self.end_sweep(SweepEnd.TIME, f"time, after batch {self.largest}")
        except PeregrineError as error:
            why = f"{error.what.splitlines()[0]} (after {self.largest})"
            self.end_sweep(SweepEnd.ERROR, why)

    def end_sweep(self, by: SweepEnd, why: str) -> None:
        self.update(sweep_ended_by=by, sweep_stopped=why)

    def save(self, worker: Worker, batch: int) -> None:
        """Keep the session for this batch, for the final and for a bundle."""
        self.phase("save", "")
        if self.from_cache and batch == self.batches[0]:
            assert self.kept is not None  # what the session was loaded from is the artefact
            self.update(artifact_mb=self.kept.size_mb())
        else:
            saved = worker.call(
                "save",
                timeout_s=self.request.timeout_s,
                directory=str(self.setting.artifact(self.candidate, batch)),
                batch=batch,
            )
            self.update(artifact_mb=saved["artifact_mb"])
        if self.row.validation is not None and self.row.validation.real_only:
            # The final's inputs are random, which this row was not judged on: its artefact must
            # give the outputs that it gives itself.
            own = self.setting.own_outputs(self.candidate, batch)
            shutil.rmtree(own, ignore_errors=True)
            self.setting.call(
                worker, "outputs", self.setting.judging.lead(batch), batch, out=str(own)
            )

    @property
    def from_cache(self) -> bool:
        return self.row.engine is not None and self.row.engine.cached

    @property
    def largest(self) -> int:
        return max(m.batch for m in self.measured)

    def judge_batch(self, worker: Worker, batch: int) -> bool:
        """Judge one more batch before it is measured; a wrong one makes the row invalid."""
        self.phase("validate", f"batch {batch}")
        validation = self.setting.judge.batch(worker, self.candidate, batch)
        if not validation.passed:
            self.update(
                status=Status.INVALID,
                validation=validation,
                reason=f"At batch {batch}: {validation.reason}",
            )
        return validation.passed

    def sweep(self, worker: Worker, lead: FeedSet) -> None:
        """Throughput over growing batches, at the host boundary."""
        if not self.setting.judging.rows_independent:
            self.end_sweep(SweepEnd.NOT_SWEPT, "not swept: a row's output depends on its batch")
            return
        spent, flat = 0.0, 0
        best = max(m.throughput_per_s for m in self.measured if m.boundary is Boundary.HOST)
        ended = SweepEnd.LAST, f"the last batch asked for, {self.request.sweep[-1]}"
        for batch in self.request.sweep:
            if any(m.batch == batch for m in self.measured):
                continue
            rebuild = 0.0 if self.dynamic(worker, batch) else self.row.build_s or 0.0
            if spent + rebuild > self.request.sweep_s:
                why = f"the next batch needs another build of about {rebuild:.0f} s"
                if not rebuild:
                    why = f"{spent:.0f} s spent"
                ended = SweepEnd.TIME, f"time: {why}"
                break
            began = time.monotonic()
            if not self.judge_batch(worker, batch):
                return
            found = self.measure(worker, lead, batch, Boundary.HOST, dict(_SWEEP_BUDGET))
            spent += time.monotonic() - began
            flat = flat + 1 if found.throughput_per_s < best * _SATURATED_GAIN else 0
            best = max(best, found.throughput_per_s)
            if flat == 2:
                ended = SweepEnd.SATURATION, f"saturation at {best:.4g} items/s"
                break
        self.end_sweep(*ended)

    def dynamic(self, worker: Worker, batch: int) -> bool:
        """Whether the session there is serves this batch without another build."""
        answer = worker.call("covers", timeout_s=self.request.timeout_s, batch=batch)
        return bool(answer["covers"])

    def search_max_batch(self, lead: FeedSet) -> None:
        """The largest batch that runs within the memory limit, each try in a disposable worker:
        double from the largest measured one, then bisect. 0 where none was seen to.

        The objective's limit on memory counts as the end of it: it stands for a smaller card."""
        cap = self.request.max_batch_cap
        over = {m.batch for m in self.measured if self.exceeds(memory_mb(self.row, m))}
        bad = min(over, default=None)
        good = min(cap, max((m.batch for m in self.measured if m.batch not in over), default=0))
        limited_by = "memory" if over else "cap"
        timeout_s = self.request.timeout_s
        deadline = time.monotonic() + timeout_s
        while good < cap and (bad is None or bad - good > 1):
            batch = min(cap, good * 2 if bad is None else (good + bad) // 2)
            self.phase("largest batch", f"trying {batch}")
            if time.monotonic() > deadline:
                limited_by = "time"
                break
            try:
                with self.setting.start(self.candidate, "max-batch") as worker:
                    self.setting.open(worker, self.candidate, batch)
                    ran = self.setting.call(worker, "first_run", lead, batch)
                    if ran["device"]:
                        taken = ran["device"]["device_peak_mb"]
                    else:
                        taken = worker.call("peak", timeout_s=timeout_s)["host_peak_mb"]
                if self.exceeds(taken):
                    bad, limited_by = batch, "memory"
                else:
                    good = batch
            except WorkerOutOfMemory:
                bad, limited_by = batch, "memory"
            except PeregrineError as error:
                bad, limited_by = batch, error.what.splitlines()[0]
        if good == cap:
            limited_by = "cap"
        self.update(max_batch=good, max_batch_limited_by=limited_by)

    def exceeds(self, taken_mb: float | None) -> bool:
        """Whether this is more memory than the objective allows."""
        limit = self.request.objective.max_memory_mb
        return limit is not None and taken_mb is not None and taken_mb > limit
