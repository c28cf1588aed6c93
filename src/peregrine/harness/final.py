"""The final: every valid candidate again, in interleaved rounds, from what it saved.

A row measured minutes before another proves nothing on a machine with neighbours. So each
valid candidate comes back in a fresh process from its own artefact (which times the load, and
proves that the artefact works), and they take turns: one turn each a round, in shuffled order.
A candidate that is plainly slower in every one of its first rounds leaves early, and so does one
that is measured but may not win. The others start afresh every few rounds: how the memory of a
process happens to lie moves its speed by 1 to 3%, and a verdict must not hang on that.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peregrine.errors import PeregrineError
from peregrine.harness import wire
from peregrine.harness.device import BY_GROWTH
from peregrine.harness.nvml import Nvml
from peregrine.harness.process import Worker
from peregrine.harness.recheck import Recheck
from peregrine.harness.rundir import slug
from peregrine.harness.trial import Setting
from peregrine.harness.watch import available_mb
from peregrine.results import CandidateResult, FinalRound, Measurement
from peregrine.types import physical_cores

_FIRST_ROUNDS = 5
_ROUNDS_A_PROCESS = 3
"""Rounds that a process runs after the first ones; then all start afresh."""
_PLAINLY_SLOWER = 1.15
"""A candidate leaves when even its best of the first rounds was this much behind the leader."""
_TURN_RUNS = 10
_TURN_S = 0.25
_MEMORY_SHARE = 0.8
_BUILDS_AT_ONCE = 6
_NO_ROOM = "not enough memory to join the final"


@dataclass(frozen=True, slots=True)
class Reload:
    """How a valid candidate came back from what it saved."""

    id: str
    load_s: float | None
    first_run_ms: float | None
    error: str = ""
    batch: int = 1
    host_peak_mb: float | None = None
    """Peak of a process that only loaded the artefact and ran it at `batch`: what deploying
    takes. The trial's own process may still hold the compiler."""
    device_peak_mb: float | None = None
    """The device's memory that the same process takes, and what tells it, as in
    `results.Memory`; in `device_used_peak_mb` is what the final's other processes hold."""
    device_memory_by: str = ""
    device_used_peak_mb: float | None = None
    device_baseline_mb: float | None = None


@dataclass(slots=True)
class _Contestant:
    row: CandidateResult
    batch: int
    worker: Worker
    times: list[float]
    """Time per item, a round each."""


def run_final(
    setting: Setting,
    rows: Sequence[tuple[CandidateResult, int]],
    *,
    offline: bool,
    record: Callable[[FinalRound | Reload], None],
    progress: Callable[[int, int], None],
    phase: Callable[[str, str, str], None],
) -> None:
    """Run the rounds.

    Args:
        setting: the race.
        rows: the valid candidates, each with the batch it competes at; where memory is short, the
            first ones take part.
        offline: compare throughput with several inferences in flight, not single-stream time.
        record: told every finding at once.
        progress: told the round done, and the number of rounds.
        phase: told candidate, phase and detail.
    """
    final = _Final(setting, offline, record, phase)
    try:
        final.admit(rows)
        final.play(progress)
    finally:
        for contestant in final.contestants:
            contestant.worker.kill()


def _bring_back(
    setting: Setting, row: CandidateResult, batch: int, worker: Worker, artifact: Path | None
) -> Reload:
    """Load the artefact, or build again where there is none, run it once, and judge it again:
    what was saved must be what was measured."""
    candidate = row.candidate
    judging = setting.judging
    lead = judging.lead(batch)
    try:
        opened = setting.open(worker, candidate, batch, artifact)
        ran = setting.call(worker, "first_run", lead, batch)
        out = setting.run.file("outputs", f"{slug(row.id)}.final")
        setting.call(worker, "outputs", lead, batch, out=str(out))
        validation = Recheck.of(setting, row, batch).judge([wire.load_arrays(out)])
        load_s = opened["seconds"] if artifact is not None else None
        if not validation.passed:
            return Reload(row.id, load_s, ran["ms"], validation.reason)
        peak = worker.call("peak", timeout_s=setting.request.timeout_s)
        device = dict(peak["device"])
        if artifact is None and device.get("device_memory_by") == BY_GROWTH:
            device = {}  # the device grew by others' builds, too
    except PeregrineError as error:
        return Reload(row.id, None, None, error.what)
    return Reload(row.id, load_s, ran["ms"], "", batch, peak["host_peak_mb"], **device)


class _Final:
    def __init__(
        self,
        setting: Setting,
        offline: bool,
        record: Callable[[FinalRound | Reload], None],
        phase: Callable[[str, str, str], None],
    ) -> None:
        self.setting = setting
        self.offline = offline
        self.record = record
        self.phase = phase
        self.contestants: list[_Contestant] = []

    def admit(self, rows: Sequence[tuple[CandidateResult, int]]) -> None:
        """Bring every row back, as far as memory goes, the host's and the device's."""
        device = self.setting.request.device
        room = Room(available_mb() * _MEMORY_SHARE, free_device_mb(device) * _MEMORY_SHARE)
        for row, batch in rows:
            if not room.take(row, batch) and self.contestants:
                self.record(Reload(row.id, None, None, _NO_ROOM))
                continue
            self.contestants.append(_Contestant(row, batch, self.start(row), []))
        for contestant, reload in self.bring_back(list(self.contestants), timed=True):
            self.record(reload)
            if reload.error:
                self.dismiss(contestant)

    def start(self, row: CandidateResult) -> Worker:
        return self.setting.start(row.candidate, "final")

    def dismiss(self, contestant: _Contestant) -> None:
        contestant.worker.kill()
        self.contestants.remove(contestant)

    def bring_back(
        self, contestants: Sequence[_Contestant], *, timed: bool = False
    ) -> Iterator[tuple[_Contestant, Reload]]:
        """Load what each saved, `timed` one after the other; and then, several at a time, build
        those again that save nothing."""
        saved = [c for c in contestants if timed and self.artifact(c) is not None]
        for contestant in saved:
            self.phase(contestant.row.id, "load", "")
            yield contestant, self.reload(contestant)
        again = [c for c in contestants if c not in saved]
        if again:
            what = ("build again", "that save nothing") if timed else ("load again", "side by side")
            self.phase(again[0].row.id, what[0], f"{len(again)} {what[1]}")
        # The workers are this thread's, and die with it; the pool only waits for them.
        with ThreadPoolExecutor(max(1, min(_BUILDS_AT_ONCE, physical_cores() // 2))) as pool:
            yield from zip(again, pool.map(self.reload, again), strict=True)

    def artifact(self, contestant: _Contestant) -> Path | None:
        """What it saved, if anything."""
        directory = self.setting.artifact(contestant.row.candidate, contestant.batch)
        return directory if directory.is_dir() and any(directory.iterdir()) else None

    def reload(self, contestant: _Contestant) -> Reload:
        return _bring_back(
            self.setting,
            contestant.row,
            contestant.batch,
            contestant.worker,
            self.artifact(contestant),
        )

    def play(self, progress: Callable[[int, int], None]) -> None:
        """The rounds, each process of a contestant running a few of them."""
        rounds = self.setting.request.final_rounds
        order = random.Random(self.setting.request.seed)  # a schedule, not a secret
        process = 0
        for number in range(1, rounds + 1):
            if len(self.contestants) < 2:
                return
            if process_of(number) != process:
                process = process_of(number)
                self.renew()
            order.shuffle(self.contestants)
            for contestant in list(self.contestants):
                self.phase(contestant.row.id, "final", f"round {number} of {rounds}")
                try:
                    self.turn(contestant, number, process)
                except PeregrineError as error:
                    self.leave(contestant, error.what)
            progress(number, rounds)
            if number == _FIRST_ROUNDS:
                for leaver in _out_of_the_running(self.contestants):
                    self.dismiss(leaver)

    def renew(self) -> None:
        """A fresh process for everyone."""
        for contestant in self.contestants:
            contestant.worker.kill()
            contestant.worker = self.start(contestant.row)
        for contestant, reload in self.bring_back(list(self.contestants)):
            if reload.error:
                self.leave(contestant, reload.error)

    def leave(self, contestant: _Contestant, why: str) -> None:
        self.record(Reload(contestant.row.id, None, None, f"left the final: {why}"))
        self.dismiss(contestant)

    def turn(self, contestant: _Contestant, number: int, process: int) -> None:
        boundary = self.setting.request.objective.boundary
        answer = self.setting.call(
            contestant.worker,
            "turn",
            self.setting.judging.lead(contestant.batch),
            contestant.batch,
            boundary=str(boundary),
            runs=_TURN_RUNS,
            seconds=_TURN_S,
            offline=self.offline,
            quiet=True,
        )
        found = FinalRound(
            round=number,
            candidate=contestant.row.id,
            batch=contestant.batch,
            boundary=boundary,
            samples_ms=tuple(answer["samples_ms"]),
            throughput_per_s=answer["throughput_per_s"],
            process=process,
        )
        item_s = 1 / found.throughput_per_s
        if not self.offline:
            item_s = statistics.median(found.samples_ms) / contestant.batch
        contestant.times.append(item_s)
        self.record(found)


def process_of(number: int) -> int:
    """Which fresh process runs a round, from 0; rounds count from 1."""
    return max(0, 1 + (number - _FIRST_ROUNDS - 1) // _ROUNDS_A_PROCESS)


@dataclass(slots=True)
class Room:
    """The memory that is left for a final, MiB."""

    host_mb: float
    device_mb: float

    def take(self, row: CandidateResult, batch: int) -> bool:
        """Set aside what the row's own run took; false, and nothing set aside, where that is more
        than is left. What is not known counts as nothing."""
        memory = row.memory
        if memory is None:
            return True
        seen = [m.device_peak_mb or 0.0 for m in row.measurements if m.batch == batch]
        device = max(seen, default=0.0) or memory.device_peak_mb or 0.0
        if memory.host_peak_mb > self.host_mb or device > self.device_mb:
            return False
        self.host_mb -= memory.host_peak_mb
        self.device_mb -= device
        return True


def free_device_mb(device: str) -> float:
    """MiB free now on what CUDA calls `device`; without end on a CPU, and where NVML does not
    tell."""
    gpu = Nvml.open(device)[0] if device.startswith("cuda") else None
    free = gpu.free_mb() if gpu else None
    return math.inf if free is None else free


def _out_of_the_running(contestants: Sequence[_Contestant]) -> list[_Contestant]:
    """Those behind the leader in every round so far, by more than noise would explain; and those
    that may not win, whose speed is known well enough by now."""
    running = [c for c in contestants if c.row.can_win]
    leaving = [c for c in contestants if not c.row.can_win]
    if running:
        leader = min(running, key=lambda c: sorted(c.times)[len(c.times) // 2])
        leaving += [
            c
            for c in running
            if min(a / b for a, b in zip(c.times, leader.times, strict=True)) > _PLAINLY_SLOWER
        ]
    return leaving


def with_reload(row: CandidateResult, reload: Reload) -> CandidateResult:
    """A row with what the final found out about its artefact."""
    if reload.error and not row.disqualified:
        why = f"what it saved could not be used again: {reload.error}"
        if reload.error == _NO_ROOM:
            return row
        return dataclasses.replace(row, disqualified=why)
    if reload.host_peak_mb is None or row.memory is None:
        return dataclasses.replace(row, load_s=reload.load_s)
    memory = row.memory
    if reload.batch == row.measurements[0].batch:
        memory = dataclasses.replace(memory, host_peak_mb=reload.host_peak_mb)
        if reload.device_peak_mb is not None:
            memory = dataclasses.replace(
                memory,
                device_peak_mb=reload.device_peak_mb,
                device_memory_by=reload.device_memory_by,
                device_used_peak_mb=reload.device_used_peak_mb,
                device_baseline_mb=reload.device_baseline_mb,
            )
    measurements = tuple(
        _remembered(m, reload) if m.batch == reload.batch else m for m in row.measurements
    )
    return dataclasses.replace(row, load_s=reload.load_s, memory=memory, measurements=measurements)


def _remembered(m: Measurement, reload: Reload) -> Measurement:
    device = m.device_peak_mb if reload.device_peak_mb is None else reload.device_peak_mb
    return dataclasses.replace(m, peak_mb=reload.host_peak_mb, device_peak_mb=device)
