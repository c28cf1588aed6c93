"""Rows of lower precision that bring nothing here: slower than a higher one, and why.

A lower precision costs accuracy, and calibration before that. Where it is no faster, a reader
must not find out by comparing rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peregrine.results import CandidateResult, Measurement, Status, Winner
from peregrine.select import INDIFFERENCE, SINGLE_RUN_INDIFFERENCE
from peregrine.types import Precision

SHARE = 0.1
"""Layers left in higher precision are a cause from this share of them on: nearly every quantised
network keeps one or two, and is fast."""

_RANK = {
    Precision.FP32: 3,
    Precision.TF32: 2,
    Precision.BF16: 1,
    Precision.FP16: 1,
    Precision.FP8: 0,
    Precision.INT8: 0,
}
# Operators that placement counts as layers.
_LAYER = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN|Attention")
# The words of `Placement.precisions`; any other is an 8-bit one.
_WIDE = {"f64": 3, "f32": 3, "tf32": 2, "f16": 1, "bf16": 1}

# Instructions that multiply in a precision, by Linux's names, on x86 and on Arm.
_INSTRUCTIONS: Mapping[Precision, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Precision.INT8: (("avx512_vnni", "avx_vnni", "amx_int8"), ("asimddp", "i8mm", "svei8mm")),
    Precision.BF16: (("avx512_bf16", "amx_bf16"), ("bf16", "svebf16")),
    Precision.FP16: (("avx512_fp16", "amx_fp16"), ("asimdhp", "fphp")),
}


@dataclass(frozen=True, slots=True)
class _Compared:
    """A row against one of higher precision."""

    than: CandidateResult
    ratio: float
    """The row's time over the other's."""
    batch: int
    margin: float
    """Nearer to 1 than this, the two are level."""


def useless(
    rows: Sequence[CandidateResult],
    *,
    cpu_flags: Sequence[str] = (),
    device: str = "cpu",
    winner: Winner | None = None,
) -> dict[str, str]:
    """Which rows of lower precision are slower than a higher one, with the reason in a sentence.

    A row is held against the fastest valid row of higher precision of its own backend and
    variant (of its backend, where the variant has none), where the cause is looked for; and then
    against the fastest of all that are tuned for the same, throughput or a single inference. By
    the final's ratios where it judged both rows, else by their own trials: slower at every batch
    and boundary that both measured. A row whose layers all compute in a higher precision is
    useless where it is level, too: there its name promises what it does not do.

    Args:
        rows: of one race.
        cpu_flags: the processor's vector extensions, as `results.MachineRecord` has them; empty
            where they are not known.
        device: what the race is for.
        winner: with its finals.

    Returns:
        Row id -> sentence, for the useless rows alone.
    """
    finals = {} if winner is None else {winner.id: 1.0}
    finals |= {c.candidate: c.ratio for c in (winner.finals if winner else ())}
    batch = winner.batch if winner else 1
    found = {}
    for row in rows:
        if row.status not in (Status.OK, Status.UNDECIDED) or not row.measurements:
            continue
        higher = [
            r
            for r in rows
            if r.can_win and _RANK[r.precision] > _RANK[row.precision] and _same_purpose(r, row)
        ]
        own = [r for r in higher if _workflow(r) == _workflow(row)]
        own = own or [r for r in higher if r.backend == row.backend]
        if against := _slowest(row, own, finals, batch):
            found[row.id] = _sentence(row, against, _cause(row, cpu_flags, device))
        elif against := _slowest(row, higher, finals, batch):
            found[row.id] = _sentence(row, against, "")
    return found


def _workflow(row: CandidateResult) -> tuple[str, str]:
    return row.backend, row.variant


def _same_purpose(one: CandidateResult, other: CandidateResult) -> bool:
    """Whether two rows differ in more than what they are tuned for. Between a variant that keeps
    several inferences in flight and one that hurries a single one, it is that choice, and not
    the precision, that a comparison of times would judge."""
    in_flight = (any(m.parallelism > 1 for m in row.measurements) for row in (one, other))
    return _workflow(one) == _workflow(other) or len({*in_flight}) == 1


def _slowest(
    row: CandidateResult, higher: Iterable[CandidateResult], finals: Mapping[str, float], batch: int
) -> _Compared | None:
    """The comparison with the fastest of `higher`, where the row is slower than it."""
    compared = [c for other in higher if (c := _compare(row, other, finals, batch))]
    wide, total = _wide_layers(row)
    in_name_only = total > 0 and sum(wide.values()) == total
    slower = [c for c in compared if c.ratio > (1 - c.margin if in_name_only else 1 + c.margin)]
    return max(slower, key=lambda c: c.ratio, default=None)


def _compare(
    row: CandidateResult, other: CandidateResult, finals: Mapping[str, float], batch: int
) -> _Compared | None:
    """None where the two have nothing in common to be compared by."""
    if row.id in finals and other.id in finals:
        return _Compared(other, finals[row.id] / finals[other.id], batch, INDIFFERENCE)
    common = [
        _Compared(
            other, _time(mine, theirs) / _time(theirs, mine), mine.batch, SINGLE_RUN_INDIFFERENCE
        )
        for mine in row.measurements
        if (theirs := other.measurement(mine.batch, mine.boundary)) is not None
    ]
    return min(common, key=lambda c: c.ratio, default=None)


def _time(one: Measurement, other: Measurement) -> float:
    """Milliseconds an item where either keeps several inferences in flight, else the median."""
    if one.parallelism == other.parallelism == 1:
        return one.latency_ms.p50
    return 1e3 / one.throughput_per_s


def _sentence(row: CandidateResult, slower: _Compared, cause: str) -> str:
    level = slower.ratio <= 1 + slower.margin
    times = "no faster than" if level else f"{slower.ratio:.2f} times the time of"
    text = f"{row.precision} brings nothing here: {times} {slower.than.id} at batch {slower.batch}"
    return f"{text}; {cause}." if cause else f"{text}."


def _cause(row: CandidateResult, cpu_flags: Sequence[str], device: str) -> str:
    """Why a precision is slower than a higher one of the same backend; empty if not known."""
    if row.placement is not None and row.placement.fell_back:
        return f"it falls back: {row.placement.detail.rstrip('.')}"
    if wide := _wide_cause(row):
        return wide
    if device.partition(":")[0] == "cpu":
        return _missing_instructions(row.precision, cpu_flags)
    return ""


def _wide_layers(row: CandidateResult) -> tuple[dict[str, int], int]:
    """Layers that placement saw computing in a higher precision than the row's, by arithmetic,
    and all layers."""
    layers = row.placement.precisions if row.placement is not None else {}
    rank = _RANK[row.precision]
    wide = {word: count for word, count in layers.items() if _WIDE.get(word, 0) > rank}
    return wide, sum(layers.values())


def _wide_cause(row: CandidateResult) -> str:
    wide, total = _wide_layers(row)
    count = sum(wide.values())
    if not count or count < SHARE * total:
        return ""
    words = " and ".join(wide)
    if count == total:
        return (
            f"the runtime computes all of its {total} layers in {words}: "
            f"it has no {row.precision} kernels for them here"
        )
    notes = []
    if row.conversion is not None:
        if kept := len(row.conversion.kept):
            notes.append(f"{kept} of them by the repair")
        converted = row.conversion.converted
        missing = sum(n for operator, n in converted.items() if _LAYER.search(operator))
        missing -= total - count
        if missing > 0 and row.precision in (Precision.INT8, Precision.FP8):
            notes.append(f"the Q/DQ pairs of {missing} not fused")
    why = f" ({', '.join(notes)})" if notes else ""
    return f"{count} of its {total} layers still compute in {words}{why}"


def _missing_instructions(precision: Precision, cpu_flags: Sequence[str]) -> str:
    x86, arm = _INSTRUCTIONS.get(precision, ((), ()))
    if not cpu_flags or not x86 or set(cpu_flags) & {*x86, *arm}:
        return ""
    needed = arm if "asimd" in cpu_flags else x86
    return (
        f"this CPU has no instructions that multiply in {precision} "
        f"({', '.join(needed[:-1])} or {needed[-1]})"
    )
