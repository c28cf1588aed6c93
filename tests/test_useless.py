"""A lower precision that is slower is said to be useless, with the cause where it can be known."""

from __future__ import annotations

from peregrine.results import (
    Boundary,
    CandidateResult,
    Comparison,
    Conversion,
    KeptLayer,
    LatencyMs,
    Measurement,
    Status,
    Winner,
)
from peregrine.types import Candidate, Placement, Precision
from peregrine.useless import useless

VNNI = ("avx2", "avx512f", "avx512_vnni")
HASWELL = ("avx2", "f16c", "fma")
CPU = "CPUExecutionProvider"


def measured(ms: float, batch: int = 1, parallelism: int = 1, per_s: float = 0) -> Measurement:
    return Measurement(
        batch=batch,
        boundary=Boundary.HOST,
        latency_ms=LatencyMs(ms, ms, ms, ms, ms, 0.0, ms, ms),
        ci95_ms=(ms, ms),
        throughput_per_s=per_s or 1e3 * batch / ms,
        samples_ms=(ms,) * 5,
        warmup=1,
        stable=True,
        parallelism=parallelism,
    )


def row(
    precision: str,
    *measurements: Measurement,
    backend: str = "onnxruntime",
    variant: str = CPU,
    status: Status = Status.OK,
    placement: Placement | None = None,
    conversion: Conversion | None = None,
) -> CandidateResult:
    kind = Precision(precision)
    return CandidateResult(
        id=Candidate(backend, variant, kind).id,
        backend=backend,
        variant=variant,
        precision=kind,
        options={},
        status=status,
        measurements=measurements,
        placement=placement,
        conversion=conversion,
    )


def layers(**precisions: int) -> Placement:
    return Placement("cpu", precisions=precisions)


def said(*rows: CandidateResult, cpu_flags: tuple[str, ...] = VNNI) -> dict[str, str]:
    """By precision, for rows that have one each."""
    found = useless(rows, cpu_flags=cpu_flags)
    return {str(r.precision): found[r.id] for r in rows if r.id in found}


def test_what_is_faster_is_not_useless() -> None:
    assert said(row("fp32", measured(10)), row("int8", measured(3))) == {}


def test_what_is_slower_is_with_figures() -> None:
    found = said(row("fp32", measured(10)), row("int8", measured(13)))
    assert found == {
        "int8": "int8 brings nothing here: 1.30 times the time of "
        f"onnxruntime[{CPU}] fp32 at batch 1."
    }


def test_level_trials_of_their_own_prove_nothing() -> None:
    assert said(row("fp32", measured(10)), row("int8", measured(10.4))) == {}


def test_a_row_that_is_faster_at_one_batch_has_its_use() -> None:
    fp32 = row("fp32", measured(10), measured(100, 16))
    assert said(fp32, row("int8", measured(13), measured(70, 16))) == {}
    found = said(fp32, row("int8", measured(13), measured(120, 16)))
    assert "1.20 times" in found["int8"]
    assert "batch 16" in found["int8"]


def test_the_final_judges_where_it_saw_both() -> None:
    rows = row("fp32", measured(10)), row("int8", measured(3))
    slower = Comparison(rows[1].id, 1.03, (1.02, 1.04), False, 10.3)
    winner = Winner(rows[0].id, "latency", 0.03, (), "", batch=4, finals=(slower,))
    found = useless(rows, cpu_flags=VNNI, winner=winner)
    assert list(found) == [rows[1].id]
    assert "1.03 times" in found[rows[1].id]
    assert "at batch 4" in found[rows[1].id]


def test_both_may_have_lost_the_final() -> None:
    winner_row = row("fp32", measured(5), backend="openvino", variant="latency")
    rows = winner_row, row("fp32", measured(10)), row("int8", measured(9))
    finals = tuple(Comparison(r.id, x, (x, x), False, 9.0) for r, x in ((rows[1], 2), (rows[2], 3)))
    winner = Winner(winner_row.id, "latency", 1.0, (), "", finals=finals)
    assert "1.50 times the time of onnxruntime" in useless(rows, winner=winner)[rows[2].id]


def test_fp16_is_held_against_fp32_and_int8_against_fp16() -> None:
    found = said(row("fp32", measured(10)), row("fp16", measured(5)), row("int8", measured(7)))
    assert list(found) == ["int8"]
    assert f"onnxruntime[{CPU}] fp16" in found["int8"]
    # Neither of one rung is higher than the other.
    assert said(row("bf16", measured(5)), row("fp16", measured(9))) == {}


def test_another_backend_with_more_precision_may_be_faster_too() -> None:
    """Then the precision did its work, and no cause is named."""
    openvino = row("fp32", measured(4), backend="openvino", variant="latency")
    int8 = row("int8", measured(6), placement=layers(f32=5, u8=5))
    found = said(row("fp32", measured(10)), openvino, int8, cpu_flags=HASWELL)
    assert found["int8"].endswith("openvino[latency] fp32 at batch 1.")


def test_only_valid_rows_are_measures_and_only_measured_ones_measured() -> None:
    int8 = row("int8", measured(13))
    assert said(row("fp32", measured(10), status=Status.INVALID), int8) == {}
    assert said(row("fp32", measured(10)), row("int8", status=Status.UNSUPPORTED)) == {}
    undecided = row("int8", measured(13), status=Status.UNDECIDED)
    assert "int8" in said(row("fp32", measured(10)), undecided)


def test_inferences_in_flight_are_compared_by_what_comes_out() -> None:
    """Four at a time take longer each, and less an item."""
    fp32 = row("fp32", measured(10, per_s=100))
    assert said(fp32, row("int8", measured(20, parallelism=4, per_s=200))) == {}
    assert "2.00 times" in said(fp32, row("int8", measured(8, parallelism=4, per_s=50)))["int8"]


def test_a_variant_for_throughput_is_not_held_against_one_for_latency() -> None:
    """Nor the other way round: what differs is the variant, and the precision may have its use."""

    def openvino(precision: str, variant: str, ms: float, flight: int, per_s: float):
        return row(
            precision, measured(ms, parallelism=flight, per_s=per_s), backend="openvino",
            variant=variant,
        )  # fmt: skip

    hurried = openvino("fp32", "latency", 10, 1, 100), openvino("int8", "latency", 9, 1, 110)
    many = openvino("fp32", "throughput", 30, 4, 120), openvino("int8", "throughput", 15, 4, 260)
    rows = (*hurried, *many)
    assert useless(rows) == {}
    finals = tuple(Comparison(r.id, r.measurements[0].latency_ms.p50 / 9, (1, 1), False, 9.0)
                   for r in rows if r is not hurried[1])  # fmt: skip
    winner = Winner(hurried[1].id, "latency", 0.1, (), "", finals=finals)
    assert useless(rows, winner=winner) == {}
    slow = openvino("int8", "throughput", 40, 4, 100)
    assert "openvino[throughput] fp32" in useless((*hurried, many[0], slow))[slow.id]


def cause(slow: CandidateResult, cpu_flags: tuple[str, ...] = VNNI) -> str:
    (text,) = said(row("fp32", measured(10)), slow, cpu_flags=cpu_flags).values()
    return text.partition("at batch 1")[2].removeprefix("; ")


def test_the_cpu_lacks_the_instructions() -> None:
    assert cause(row("int8", measured(13)), HASWELL) == (
        "this CPU has no instructions that multiply in int8 (avx512_vnni, avx_vnni or amx_int8)."
    )
    assert "avx512_bf16 or amx_bf16" in cause(row("bf16", measured(40)), VNNI)
    assert "asimddp, i8mm or svei8mm" in cause(row("int8", measured(13)), ("asimd",))
    assert cause(row("int8", measured(13)), ()) == ".", "flags that nobody read prove nothing"


def test_a_gpus_rows_are_not_explained_by_the_cpu() -> None:
    rows = row("fp32", measured(10)), row("int8", measured(13))
    (text,) = useless(rows, cpu_flags=HASWELL, device="cuda:0").values()
    assert "CPU has" not in text


def test_the_runtime_has_no_kernels() -> None:
    slow = row("fp16", measured(13), placement=layers(f32=53))
    assert cause(slow) == (
        "the runtime computes all of its 53 layers in f32: it has no fp16 kernels for them here."
    )


def test_a_precision_in_name_only_is_useless_where_it_is_level() -> None:
    level = row("fp16", measured(9.9), placement=layers(f32=53))
    found = said(row("fp32", measured(10)), level)
    assert "no faster than onnxruntime" in found["fp16"]
    assert "no fp16 kernels" in found["fp16"]


def test_pairs_that_were_not_fused() -> None:
    """Told from those that nobody quantised by what the converter says that it did."""
    ran = layers(f32=12, u8=41)
    assert cause(row("int8", measured(13), placement=ran)) == (
        "12 of its 53 layers still compute in f32."
    )
    made = Conversion(
        "u8s8", Precision.INT8, "a library", 1.0, converted={"Conv": 49, "Gemm": 1, "Add": 16}
    )
    assert cause(row("int8", measured(13), placement=ran, conversion=made)) == (
        "12 of its 53 layers still compute in f32 (the Q/DQ pairs of 9 not fused)."
    )


def test_layers_that_a_repair_kept_are_told_from_those_not_fused() -> None:
    kept = tuple(KeptLayer(f"conv{i}", "Conv", "outliers") for i in range(12))
    made = Conversion("u8s8+repaired", Precision.INT8, "a library", 1.0, kept=kept)
    slow = row("int8", measured(13), placement=layers(f32=12, u8=41), conversion=made)
    assert cause(slow).endswith("compute in f32 (12 of them by the repair).")


def test_two_layers_of_many_are_no_cause() -> None:
    slow = row("int8", measured(13), placement=layers(f32=2, u8=51))
    assert cause(slow) == "."


def test_a_fall_back_comes_first() -> None:
    placement = Placement("cpu", fell_back=True, detail="3 nodes ran elsewhere.")
    assert cause(row("int8", measured(13), placement=placement), HASWELL) == (
        "it falls back: 3 nodes ran elsewhere."
    )
