"""Rows of a made-up race, from seeded generators."""

from __future__ import annotations

import dataclasses

import numpy as np

from peregrine.results import (
    Boundary,
    CandidateResult,
    LabelledAccuracy,
    LatencyMs,
    Measurement,
    Memory,
    OutputComparison,
    Status,
    SweepEnd,
    Validation,
)
from peregrine.types import Candidate, Placement, Precision, Scalar

BATCHES = (1, 2, 4, 8, 16, 32)
IMAGES = tuple(f"photos/{name}_{i:03d}.jpg" for i in range(40) for name in ("cat", "cup"))
VERSIONS = {"numpy": "2.4.0", "onnxruntime": "1.31.1", "openvino": "2026.4.1", "torch": "2.13.0"}


def latency(samples: np.ndarray) -> LatencyMs:
    p50, p90, p95, p99 = np.percentile(samples, [50, 90, 95, 99])
    return LatencyMs(
        *map(float, (p50, p90, p95, p99, samples.mean(), samples.std(), samples.min())),
        max=float(samples.max()),
    )


def draw(rng: np.random.Generator, median: float, count: int) -> np.ndarray:
    """Latencies: a narrow bulk, a right tail, now and then a neighbour's noise."""
    bulk = median * rng.lognormal(0, 0.018, count)
    return bulk + median * 0.3 * rng.exponential(1, count) * (rng.random(count) < 0.06)


def measure(
    rng: np.random.Generator, batch: int, median: float, boundary: Boundary, peak: float
) -> Measurement:
    samples = draw(rng, median, 200 if batch == 1 else 60)
    middle = float(np.median(samples))
    boots = np.median(rng.choice(samples, (400, samples.size)), axis=1)
    low, high = np.percentile(boots, [2.5, 97.5])
    return Measurement(
        batch=batch,
        boundary=boundary,
        latency_ms=latency(samples),
        ci95_ms=(float(low), float(high)),
        throughput_per_s=1000 * batch / middle,
        samples_ms=tuple(samples.tolist()),
        warmup=25,
        stable=batch != 32,
        peak_mb=peak + 9.2 * batch,
    )


def validation(
    error: float, non_equal: float, *, passed: bool = True, reason: str = "", nan: int = 0
) -> Validation:
    wrong = 0 if passed else 3
    classes = np.random.default_rng(5).integers(0, 1000, len(IMAGES)).tolist()
    moved = [c + 1 if i < wrong else c for i, c in enumerate(classes)]
    output = OutputComparison(
        "logits", passed, non_equal, non_equal / 4, error, 1 - error, error * 12, nan, 0,
        1.0 if passed else 0.9, reason,
    )  # fmt: skip
    return Validation(
        passed, non_equal, non_equal / 4, error, 1 - error, error * 12, nan, 0,
        1.0 if passed else 0.9, 8, (output, dataclasses.replace(output, output="features")),
        {"scaled_error": 1e-3, "non_equal_percent": float("inf")},
        LabelledAccuracy(
            IMAGES, tuple(classes), tuple(classes), tuple(moved), 0.75,
            0.75 if passed else 0.71, IMAGES[:wrong],
        ),
        reason,
    )  # fmt: skip


def row(
    backend: str,
    variant: str,
    median: float,
    *,
    seed: int,
    precision: Precision = Precision.FP32,
    options: dict[str, Scalar] | None = None,
    batch_gain: float = 0.9,
    peak: float = 220.0,
    build: float = 1.0,
    placement: Placement | None = None,
    judged: Validation | None = None,
    break_even: float | None = None,
    graph: str = "",
    size: float = 18.4,
) -> CandidateResult:
    """A row that ran; `batch_gain` is the exponent of time against batch."""
    rng = np.random.default_rng(seed)
    candidate = Candidate(backend, variant, precision, options or {}, graph)
    return CandidateResult(
        id=candidate.id,
        backend=backend,
        variant=variant,
        precision=precision,
        options=candidate.options,
        status=Status.OK,
        graph=graph,
        validation=judged or validation(2.3e-7 * seed, 0.0),
        placement=placement or Placement("cpu", {"CPU": 84}, proof="runtime graph"),
        build_s=build,
        load_s=build / 7,
        first_run_ms=median * 1.7,
        memory=Memory(float(peak), None, peak * 1.6, 61.0),
        max_batch=256,
        max_batch_limited_by="cap",
        measurements=(
            *(measure(rng, b, median * b**batch_gain, Boundary.HOST, peak) for b in BATCHES),
            measure(rng, 1, median * 0.98, Boundary.DEVICE, peak),
        ),
        sweep_stopped="saturation",
        sweep_ended_by=SweepEnd.SATURATION,
        break_even=break_even,
        versions=VERSIONS,
        python="/opt/venv/bin/python",
        log=f"logs/{backend}.log",
        artifact_mb=size,
        finished="2026-11-21T07:01:12Z",
    )


def absent(
    backend: str, variant: str, status: Status, reason: str, fix: str = "", **kept: object
) -> CandidateResult:
    candidate = Candidate(backend, variant)
    result = CandidateResult(
        candidate.id, backend, variant, Precision.FP32, {}, status, reason=reason, fix=fix,
        versions=VERSIONS,
    )  # fmt: skip
    return dataclasses.replace(result, **kept)
