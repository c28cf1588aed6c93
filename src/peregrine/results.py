"""What a race finds: the records behind `results.jsonl` and `report.json`.

Plain dataclasses, so that a worker in any interpreter can make them. Times are milliseconds
where the name ends in `_ms`, seconds in `_s`; memory is MiB (2**20 bytes) in `_mb`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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


class Boundary(enum.StrEnum):
    """What a measured inference spans."""

    HOST = "host"
    """From numpy arrays to numpy arrays."""
    DEVICE = "device"
    """Inputs and outputs stay on the device."""


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of a candidate against the reference, over every judged input."""

    output: str
    passed: bool
    non_equal_percent: float
    """Elements outside `numpy.isclose(rtol=1e-4, atol=1e-8)`, in percent: the paper's measure."""
    non_equal_percent_1e3: float
    """The same at rtol=1e-3, the paper's Table III."""
    scaled_error: float
    """max over inputs of ||candidate - reference|| / ||reference||, Euclidean norms."""
    cosine: float
    """Smallest cosine similarity over inputs."""
    max_abs: float
    nan_count: int
    inf_count: int
    """NaN and Inf elements that the reference does not have at the same place."""
    top1_agreement: float | None = None
    """Share of rows with the reference's arg max (ties within the tolerance count as equal);
    None where the output is no classifier's."""
    reason: str = ""
    """A plain sentence where it did not pass: how far, likely why."""


@dataclass(frozen=True, slots=True)
class LabelledAccuracy:
    """Top-1 on labelled images, image by image."""

    images: tuple[str, ...]
    labels: tuple[int, ...]
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    reference_top1: float
    """Share of images, 0 to 1."""
    candidate_top1: float
    changed: tuple[str, ...]
    """Images where the candidate's class is not the reference's."""


class Verdict(enum.StrEnum):
    """What the accuracy guard says of a candidate."""

    OK = "ok"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Guard:
    """Accuracy of candidate and reference on the same real items, item by item."""

    measure: str
    """`top-1` of labelled images, or the user's metric as `module:function`."""
    unit: str
    """`%` (points of a share) or empty for a metric's own unit."""
    items: int
    reference: float
    """Mean over items, in percent for top-1."""
    candidate: float
    drop: float
    """`reference - candidate`, in `unit`: above zero is a loss."""
    ci95: tuple[float, float]
    """95% interval of the drop, from the items' paired differences."""
    method: str
    """How the interval was made, e.g. `paired score interval (Tango 1998)`."""
    verdict: Verdict
    worse: int
    """Items that the reference has better than the candidate (right and wrong, for top-1)."""
    better: int
    max_drop: float | None = None
    """What the user allows, in `unit`; None judges the drop itself by `top1_loss`."""
    p_value: float | None = None
    """Exact McNemar test that candidate and reference are equally often right; top-1 only."""
    more_items: int | None = None
    """About how many more items would decide, where it is undecided."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Validation:
    """The judgement of one candidate. The flat figures are the worst over its outputs."""

    passed: bool
    non_equal_percent: float
    non_equal_percent_1e3: float
    scaled_error: float
    cosine: float
    max_abs: float
    nan_count: int
    inf_count: int
    top1_agreement: float | None
    inputs_judged: int
    outputs: tuple[OutputComparison, ...]
    thresholds: Mapping[str, float]
    labelled: LabelledAccuracy | None = None
    reason: str = ""
    guard: Guard | None = None
    real_only: bool = False
    """Only real inputs were judged: a quantised graph is calibrated for them, not for noise."""


@dataclass(frozen=True, slots=True)
class CalibratorTrial:
    """One way of choosing ranges, judged on the calibration data."""

    calibrator: str
    """minmax, entropy or percentile."""
    scaled_error: float
    """Mean over items of ||quantised - fp32|| / ||fp32||, the worst output."""
    agreement: float | None = None
    """Share of items with the fp32 graph's class; None where the model is no classifier."""


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A node that a repair left in higher precision."""

    node: str
    operator: str
    reason: str
    """E.g. `outliers: one channel of its input reaches 120 times the others' range`."""
    error: float | None = None
    """Scaled error that converting this node alone brings to its own output, on real inputs."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """How the graph that a row ran was made from the user's."""

    graph: str
    precision: Precision
    by: str
    """Library and version that did the arithmetic, e.g. `onnxruntime.quantization 1.31.1`."""
    seconds: float
    """To make it; of the run that made it, where it came from the cache."""
    cached: bool = False
    calibration: str = ""
    """What the ranges come from: `40 of 160 photos in photos/`; empty where none are needed."""
    random_calibration: bool = False
    """The ranges come from random numbers, as asked for by name: no measure of accuracy."""
    calibrator: str = ""
    tried: tuple[CalibratorTrial, ...] = ()
    converted: Mapping[str, int] = field(default_factory=dict)
    """Operator type -> nodes that compute in the lower precision."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Operator type -> nodes with weights that stayed as they were."""
    kept: tuple[KeptLayer, ...] = ()
    """What a repair left in higher precision."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairStep:
    kept: int
    """Nodes left in higher precision."""
    scaled_error: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Repair:
    """An attempt to make a failing row right by leaving some layers in higher precision."""

    of: str
    """The row that failed."""
    because: str
    """Its reason."""
    steps: tuple[RepairStep, ...]
    seconds: float
    budget_s: float
    outcome: str
    """A sentence: what was kept, or why nothing helps."""
    cost: float | None = None
    """Time of the repaired graph over the failing one's, taken in turns."""


@dataclass(frozen=True, slots=True)
class LatencyMs:
    """Order statistics of all kept samples, milliseconds. Percentiles are of the samples."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class DeviceConditions:
    """A GPU while one measurement was taken on it, by NVML. None is what it does not tell.

    Every figure is the whole card's, other processes included. Readings fall between two timed
    inferences, ten a second at most, and never into one.
    """

    readings: int
    reason: str = ""
    """Why there are no figures: no driver, or no NVML in the worker's interpreter."""
    sm_clock_min_mhz: float | None = None
    sm_clock_median_mhz: float | None = None
    memory_clock_mhz: float | None = None
    """Median."""
    temperature_max_c: float | None = None
    power_mean_w: float | None = None
    """Energy over time where the GPU counts energy, else the mean of NVML's power readings."""
    energy_j: float | None = None
    """Joules an inference of the batch takes, by all that the card draws meanwhile."""
    energy_by: str = ""
    """`energy counter` or `mean power x time`."""
    throttle: tuple[str, ...] = ()
    """What held the clocks down at any reading, e.g. `software power cap`."""
    clock_settled: bool | None = None
    """Whether the SM clock had settled before the first sample; None where it is not known."""
    reading_ms: float | None = None
    """What a reading took, median: time between two inferences that the GPU stood still."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One batch at one boundary, single stream: one inference at a time."""

    batch: int
    boundary: Boundary
    latency_ms: LatencyMs
    ci95_ms: tuple[float, float]
    """Bootstrap 95% interval of the median."""
    throughput_per_s: float
    """Items a second: of `parallelism` inferences kept in flight, else of the single stream."""
    samples_ms: tuple[float, ...]
    warmup: int
    """Inferences run and not counted before the first sample."""
    stable: bool
    """Whether the warm-up had settled before its limit."""
    parallelism: int = 1
    peak_mb: float | None = None
    """Peak host memory of the worker while this was measured."""
    device_peak_mb: float | None = None
    """Peak device memory of the worker's process; see `Memory.device_memory_by`."""
    device: DeviceConditions | None = None
    """None where it ran on no GPU."""
    events_ms: LatencyMs | None = None
    """Some more inferences by the GPU's own clock, between two CUDA events on the session's
    stream: what of `latency_ms` at the device boundary is not launching and waiting. None at
    the host boundary, and for a runtime that does not show its stream."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of the worker process."""

    host_peak_mb: float
    """While running at the first measured batch, build excluded: in a process that loaded the
    saved artefact where the row came to the final, else in the one that built it."""
    device_peak_mb: float | None = None
    """Of the worker's process on the GPU, its CUDA context included, while running at the first
    measured batch."""
    host_build_peak_mb: float | None = None
    """None where the engine was not built in this race."""
    host_baseline_mb: float | None = None
    """The interpreter before it loaded the runtime."""
    device_memory_by: str = ""
    """Where `device_peak_mb` comes from: `NVML, this process`; `NVML, growth of the GPU's used
    memory` where NVML does not list the process (in a container it may know it by another
    number); or why it is not known. Empty where it ran on no GPU."""
    device_used_peak_mb: float | None = None
    """Of all processes on the GPU meanwhile: what `nvidia-smi` shows."""
    device_baseline_mb: float | None = None
    """The same before the worker loaded the runtime."""


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
    """Why the batch sweep ended: saturation, memory, time, or the last batch asked for."""
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
    """UTC, ISO 8601."""

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

    def candidate(self, id: str) -> CandidateResult | None:
        return next((c for c in self.candidates if c.id == id), None)


def to_builtins(record: Any) -> Any:
    """A record as JSON-ready dicts, lists and scalars. NaN and Inf become None: JSON has none."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_builtins(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(k): to_builtins(v) for k, v in record.items()}
    if isinstance(record, enum.Enum):
        return record.value
    if isinstance(record, float) and not math.isfinite(record):
        return None
    if isinstance(record, Sequence) and not isinstance(record, str | bytes):
        return [to_builtins(v) for v in record]
    return record


T = TypeVar("T")

NOT_ALWAYS_FINITE = frozenset({"scaled_error", "cosine", "max_abs"})
"""Figures that are NaN or Inf where a candidate's outputs are; JSON shows null."""


def from_builtins(data: Any, kind: type[T]) -> T:
    """The record of class `kind` that `to_builtins` turned into `data`.

    The figures of a validation may be NaN or Inf, which JSON shows as null: they come back as
    NaN (`nan_count` and `inf_count` keep which it was), a threshold as Inf, that is no limit.

    Raises:
        ValueError: `data` is not such a record; the message names the field.
    """
    import msgspec

    try:
        return msgspec.convert(_restore(data), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _restore(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _restore_item(key, value) for key, value in data.items()}
    # Samples are the bulk of a report and hold only numbers: left as they are.
    if isinstance(data, list) and not (data and isinstance(data[0], float)):
        return [_restore(value) for value in data]
    return data


def _restore_item(key: str, value: Any) -> Any:
    if value is None and key in NOT_ALWAYS_FINITE:
        return math.nan
    if key == "thresholds" and isinstance(value, Mapping):
        return {name: math.inf if limit is None else limit for name, limit in value.items()}
    return _restore(value)
