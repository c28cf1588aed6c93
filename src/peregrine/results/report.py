"""The rows of a race and of its final, and the report that they make."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from peregrine.results.accuracy import Validation
from peregrine.results.conversion import Conversion, Repair
from peregrine.results.measurement import Boundary, Concurrency, Measurement, Memory
from peregrine.types import Candidate, Placement, Precision, Scalar, TensorSpec

REPORT_FORMAT = 1


class Status(enum.StrEnum):
    """How a candidate's row ended."""

    OK = "ok"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OOM = "oom"
    UNDECIDED = "undecided"
    """Measured, and the data cannot tell whether its accuracy is good enough."""


class SweepEnd(enum.StrEnum):
    """What ended a sweep over batches."""

    LAST = "last batch"
    """All that were asked for ran."""
    SATURATION = "saturation"
    MEMORY = "memory"
    TIME = "time"
    ERROR = "error"
    NOT_SWEPT = "not swept"


@dataclass(frozen=True, slots=True)
class EngineOrigin:
    """How a row came by its engine, where there was one of an earlier race to think of."""

    cached: bool
    """Loaded; the row's `build_s` is then that of the earlier race."""
    built: str = ""
    """When it was built, UTC, ISO 8601; empty where it was built in this race."""
    load_s: float | None = None
    """Seconds to copy the kept engine, check it by its sha256 and load it."""
    missed: str = ""
    """Why the nearest kept engine was not taken: the fields of the fingerprint that differ, or
    what was wrong with it."""


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One row of the race."""

    id: str
    backend: str
    variant: str
    precision: Precision
    options: Mapping[str, Scalar]
    status: Status
    absent: bool = False
    """Stands for a whole backend that could not take part, in any precision."""
    graph: str = ""
    """The converted graph it read; empty for the model's own."""
    reason: str = ""
    fix: str = ""
    validation: Validation | None = None
    placement: Placement | None = None
    build_s: float | None = None
    """From nothing to a session ready to run; of an earlier race where `engine` says so."""
    load_s: float | None = None
    """From a saved artefact to a session ready to run; None where nothing is saved."""
    first_run_ms: float | None = None
    memory: Memory | None = None
    max_batch: int | None = None
    max_batch_limited_by: str = ""
    """"memory", "cap" (the search's upper end ran), "time", or empty when not searched."""
    measurements: tuple[Measurement, ...] = ()
    sweep_stopped: str = ""
    """Why there are no larger batches, in words that a person can read."""
    sweep_ended_by: SweepEnd | None = None
    """The cause; None where there are no such words, or words alone from an earlier version."""
    break_even: float | None = None
    """Inferences after which a slower build than the quickest row's is repaid; None: never."""
    disqualified: str = ""
    """Why a valid row may not win, e.g. it fell back to another device."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Distributions of the worker's interpreter."""
    python: str = ""
    """The worker's interpreter."""
    log: str = ""
    """The worker's log, relative to the run directory."""
    artifact_mb: float | None = None
    engine: EngineOrigin | None = None
    """None where the engine was built in this race and none like it was kept."""
    conversion: Conversion | None = None
    repair: Repair | None = None
    useless: str = ""
    """Why a lower precision brings nothing here: it is slower than a higher one, and the cause
    where it can be known."""
    finished: str = ""
    """When its trial ended, UTC, ISO 8601."""

    @property
    def candidate(self) -> Candidate:
        """What the row is of."""
        return Candidate(self.backend, self.variant, self.precision, self.options, self.graph)

    @property
    def can_win(self) -> bool:
        return self.status is Status.OK and not self.disqualified and bool(self.measurements)

    def measurement(self, batch: int, boundary: Boundary) -> Measurement | None:
        for m in self.measurements:
            if m.batch == batch and m.boundary is boundary:
                return m
        return None


@dataclass(frozen=True, slots=True)
class FinalRound:
    """One finalist's turn in one interleaved round."""

    round: int
    candidate: str
    batch: int
    boundary: Boundary
    samples_ms: tuple[float, ...]
    throughput_per_s: float
    process: int = 0
    """Which of the candidate's fresh processes ran it, from 0. Where a process's memory
    happens to lie moves its speed by 1 to 3%, so that rounds within one are not independent."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finalist against the winner, from the interleaved rounds, as slowdown ratios."""

    candidate: str
    ratio: float
    """Its time per item over the winner's: geometric mean over rounds of the paired ratio."""
    ci95: tuple[float, float]
    tie: bool
    """The interval holds 1, or the ratio is within the margin of indifference, 1%."""
    p50_ms: float
    """Over all its final samples."""


@dataclass(frozen=True, slots=True)
class Winner:
    id: str
    objective: str
    margin: float | None
    """How much slower the next row is, e.g. 0.08 for 8%; None when nothing else was valid."""
    tie_with: tuple[str, ...]
    reason: str
    """Why this one, in a sentence a person can read."""
    batch: int = 1
    margin_ci95: tuple[float, float] | None = None
    finals: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRecord:
    name: str
    source: str
    sha256: str
    weights: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: str
    dims: Mapping[str, int]
    parameters: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """Where it ran. Memory in MiB."""

    cpu: str
    physical_cores: int
    logical_cores: int
    memory_mb: float
    os: str
    python: str
    gpus: tuple[str, ...]
    load_average: float | None
    """One-minute load when the race began: noise to be known about."""
    cpu_flags: tuple[str, ...]
    """The vector extensions that decide speed: avx2, avx512f, avx512_vnni, amx_tile, ..."""


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    workflow: str
    """`PyTorch fp32 eager` or `ONNX Runtime CPU fp32, graph optimisations off`."""
    inputs: tuple[str, ...]
    """What was judged, e.g. `random uniform [0,1), seed 0`, `photos/ (160 images)`."""
    top1: float | None = None
    """Share of labelled images it gets right."""
    split: str = ""
    """What calibrated and what judged, and how one set was split into the two."""


@dataclass(frozen=True, slots=True)
class Report:
    model: ModelRecord
    machine: MachineRecord
    versions: Mapping[str, str]
    reference: ReferenceRecord
    candidates: tuple[CandidateResult, ...]
    winner: Winner | None
    objective: str
    final_rounds: tuple[FinalRound, ...] = ()
    warnings: tuple[str, ...] = ()
    """Noise and other things a reader must know; never a reason to abort."""
    complete: bool = True
    """False when the race was interrupted; `--resume` goes on."""
    command: str = ""
    started: str = ""
    finished: str = ""
    run_dir: str = ""
    format: int = REPORT_FORMAT
    concurrency: tuple[Concurrency, ...] = ()
    """Finalists with several sessions side by side, where that was asked for."""

    def candidate(self, id: str) -> CandidateResult | None:
        return next((c for c in self.candidates if c.id == id), None)
