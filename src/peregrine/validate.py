"""A candidate's outputs against the reference: figures, a verdict, a plain sentence.

Everything is computed in float64, a chunk at a time, so that judging takes little more memory
than the outputs themselves.

How non-finite values are judged. A NaN never passes, in the candidate or in the reference, and
+inf neither: both come from overflow or an invalid operation. -inf is what attention masks and
the logarithm of zero rightly give, so a candidate may have it exactly where the reference has
it, and nowhere else. In the figures a candidate's NaN or Inf counts as zero, so that they stay
numbers; an output that is missing or of another shape is scored as if it were all zeros.

An output that carries nothing never passes, at any precision and whatever the thresholds: all of
it (nearly) zero or constant, or the same for every row, where the reference's is not by more than
the precision can resolve. A small norm of the difference does not excuse it: probabilities near
one half are nearly right when all of them are one half.

What decides. NaN, Inf and outputs that carry nothing always fail. Without labels and without a
metric, the scaled error and the cosine of every output decide, and the agreement of classes where
the first output is a classifier's. Where a guard judges accuracy itself (labels, or a metric with
`max_drop`), it is the sharper test of quantised arithmetic, whose error says little of its
accuracy: then these figures only keep int8 and fp8 from nonsense (`thresholds.GUARDED`), and the
guard decides. Floats keep their limits: beyond rounding, an fp16 network does not lose accuracy
but has a layer that under- or overflows. fp32 rows are not held to `max_drop`: no number of
images could say of them what a scaled error of 1e-4 does.

An all-zero reference has no norm to scale by and no direction: the scaled error is then the
candidate's own root mean square, and the cosine is 1 if all of it is within 1e-8, else 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from peregrine.diagnosis import Evidence, likely_cause
from peregrine.discrepancy import Discrepancy, as_float64, comparable, extent, is_exact, measure
from peregrine.errors import ReferenceFailed
from peregrine.guard import TOP1, guard_top1
from peregrine.results import Guard, LabelledAccuracy, OutputComparison, Validation, Verdict
from peregrine.thresholds import DEFAULTS, RESOLVED, Thresholds
from peregrine.types import Array, Precision, TensorSpec

__all__ = [
    "DEFAULTS",
    "Thresholds",
    "check_reference",
    "compare",
    "guard_labels",
    "judge_labels",
    "top1_disagreements",
]

Outputs = Mapping[str, Array]

_DEAD = 0.01
"""What moves by less than this share of what the reference does carries nothing."""


def check_reference(outputs: Sequence[Outputs]) -> None:
    """Check that reference outputs, one mapping per judged input, can be judged by.

    Raises:
        ReferenceFailed: NaN or +inf anywhere, or an output with no finite element; see the
            module's words on -inf.
    """
    if not outputs:
        raise ReferenceFailed("The reference gave no outputs.", fix="Give at least one input.")
    for index, mapping in enumerate(outputs):
        for name, value in mapping.items():
            if is_exact(value.dtype) or not value.size:
                continue
            found = measure(value, value)
            for word, count in (("NaN", found.reference_nan), ("Inf", found.reference_inf)):
                if count:
                    raise ReferenceFailed(
                        f"The reference's output {name!r} has {count} {word} of "
                        f"{value.size} elements for input {index + 1}.",
                        why="The model itself gives them in fp32: uninitialised or exploding "
                        "weights, or inputs outside what it was trained on.",
                        fix="Check the weights, or give inputs of your own with --feeds.",
                    )
            if found.masked == value.size:
                raise ReferenceFailed(
                    f"The reference's output {name!r} is -inf everywhere for input {index + 1}.",
                    fix="Check the model's masks, or give inputs of your own with --feeds.",
                )


def compare(
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    *,
    outputs: Sequence[TensorSpec],
    precision: Precision,
    classifier: bool,
    thresholds: Mapping[str, float] | None = None,
    labelled: LabelledAccuracy | None = None,
    guard: Guard | None = None,
    real_only: bool = False,
) -> Validation:
    """Judge a candidate's outputs, one mapping per judged input, against the reference's.

    Args:
        reference: of each judged input, its outputs by name. A stack of photos is one input:
            figures that are per input are over the whole stack.
        candidate: the same.
        outputs: the model's, in order.
        precision: whose thresholds count.
        classifier: the first output holds scores over classes; its first axis is the batch.
        thresholds: override the precision's own.
        labelled: top-1 on labelled images, for the record. Without a `guard` it is judged by
            the precision's `top1_loss`.
        guard: the verdict on accuracy. A failed one fails the validation; an undecided one is
            kept and fails nothing.
        real_only: only real inputs are judged; for the record.

    Raises:
        ValueError: not one candidate mapping for each reference mapping, or none at all.
        OptionError: as of `Thresholds.of`.
    """
    if len(reference) != len(candidate) or not reference:
        raise ValueError("compare needs one candidate mapping for every reference mapping")
    if guard is None and labelled is not None:
        guard = guard_labels(labelled, precision, thresholds=thresholds)
    guarded = guard is not None and (guard.measure == TOP1 or guard.max_drop is not None)
    limits = Thresholds.of(precision, thresholds, guarded=guarded)
    compared = tuple(
        _compare_output(spec, reference, candidate, precision, limits, classifier and place == 0)
        for place, spec in enumerate(outputs)
    )
    agreements = [c.top1_agreement for c in compared if c.top1_agreement is not None]
    reasons = [c.reason for c in compared if not c.passed]
    if guard is not None and guard.verdict is Verdict.FAILED:
        reasons.append(guard.reason)
    return Validation(
        passed=not reasons,
        non_equal_percent=max((c.non_equal_percent for c in compared), default=0.0),
        non_equal_percent_1e3=max((c.non_equal_percent_1e3 for c in compared), default=0.0),
        scaled_error=max((c.scaled_error for c in compared), default=0.0),
        cosine=min((c.cosine for c in compared), default=1.0),
        max_abs=max((c.max_abs for c in compared), default=0.0),
        nan_count=sum(c.nan_count for c in compared),
        inf_count=sum(c.inf_count for c in compared),
        top1_agreement=min(agreements, default=None),
        inputs_judged=len(reference),
        outputs=compared,
        thresholds=dataclasses.asdict(limits),
        labelled=labelled,
        reason=" ".join(reasons),
        guard=guard,
        real_only=real_only,
    )


def judge_labels(
    names: Sequence[str],
    labels: Sequence[int],
    reference_logits: Array,
    candidate_logits: Array,
) -> LabelledAccuracy:
    """Top-1 of reference and candidate, image by image.

    Args:
        names: of the images.
        labels: the right class of each.
        reference_logits: shape (images, classes), or with further axes of size 1.
        candidate_logits: the same shape. A row with NaN has class -1: no answer is right.
    """
    count = len(names)
    if not len(labels) == len(reference_logits) == len(candidate_logits) == count or not count:
        raise ValueError("judge_labels needs one label and one row of scores for every image")
    expected, got = (_classes(_rows(x)) for x in (reference_logits, candidate_logits))
    right = np.asarray(labels)
    return LabelledAccuracy(
        images=tuple(names),
        labels=tuple(int(label) for label in labels),
        reference=tuple(int(c) for c in expected),
        candidate=tuple(int(c) for c in got),
        reference_top1=float((expected == right).mean()),
        candidate_top1=float((got == right).mean()),
        changed=tuple(name for name, a, b in zip(names, expected, got, strict=True) if a != b),
    )


def guard_labels(
    labelled: LabelledAccuracy,
    precision: Precision,
    *,
    max_drop: float | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Guard:
    """The guard on top-1, from the answers to labelled images.

    `max_drop`, in points, is for reduced precision; an fp32 row is always judged by `top1_loss`
    of its `thresholds`, as any row is without `max_drop`.
    """
    return guard_top1(
        labelled.labels,
        labelled.reference,
        labelled.candidate,
        max_drop=None if precision is Precision.FP32 else max_drop,
        top1_loss=Thresholds.of(precision, thresholds).top1_loss,
    )


def top1_disagreements(reference: Array, candidate: Array, tie: float) -> tuple[int, int]:
    """Rows whose class is not the reference's, and rows in all.

    A row agrees when the class that the candidate picks has, in the reference, a score within
    `tie` standard deviations (of the row) of the best. A row with NaN or +inf never does.
    """
    expected, got = _rows(reference), _rows(candidate)
    picked = np.take_along_axis(expected, np.argmax(got, axis=1, keepdims=True), axis=1)[:, 0]
    scores = np.ma.masked_invalid(expected)
    margin = tie * np.ma.filled(scores.std(axis=1), 0.0)
    agrees = picked >= expected.max(axis=1) - margin
    agrees &= ~(np.isnan(got) | np.isposinf(got)).any(axis=1)
    return int((~agrees).sum()), len(agrees)


def _compare_output(
    spec: TensorSpec,
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    precision: Precision,
    limits: Thresholds,
    is_scores: bool,
) -> OutputComparison:
    """One output over every judged input."""
    found: list[Discrepancy] = []
    broken = ""
    wrong_rows = rows = 0
    exact = is_exact(reference[0][spec.name].dtype)
    for index, (expected_all, got_all) in enumerate(zip(reference, candidate, strict=True)):
        expected, got = expected_all[spec.name], got_all.get(spec.name)
        if not broken and (problem := _form_problem(spec, expected, got)):
            broken = f"Output {spec.name!r} {problem}{_of_inputs(index, len(reference))}."
        if got is None or not comparable(expected, got):
            got = np.zeros_like(expected)
        found.append(measure(expected, got))
        if is_scores and not exact and expected.ndim and expected.size:
            wrong, of = top1_disagreements(expected, got, limits.tie)
            wrong_rows, rows = wrong_rows + wrong, rows + of
    size = max(1, sum(d.size for d in found))
    worst = max(range(len(found)), key=lambda i: (not found[i].sound, found[i].scaled_error))
    reason = broken or _failure(spec, found, worst, exact, wrong_rows, rows, limits, precision)
    if not broken and not exact and found[worst].sound:
        for index, (expected_all, got_all) in enumerate(zip(reference, candidate, strict=True)):
            if lost := _nothing(expected_all[spec.name], got_all[spec.name], precision):
                where = _of_inputs(index, len(found))
                worst, reason = index, f"Output {spec.name!r} {lost}{where}"
                break
    if reason and not broken:
        allowed = {p: DEFAULTS[p].scaled_error for p in Precision} | {
            precision: limits.scaled_error
        }
        case = Evidence(spec.name, worst, reference, candidate, precision, allowed)
        reason += f": {likely_cause(case)}."
    return OutputComparison(
        output=spec.name,
        passed=not reason,
        non_equal_percent=100.0 if broken else 100 * sum(d.non_equal for d in found) / size,
        non_equal_percent_1e3=100.0 if broken else 100 * sum(d.non_equal_1e3 for d in found) / size,
        scaled_error=max(d.scaled_error for d in found),
        cosine=min(d.cosine for d in found),
        max_abs=max(d.max_abs for d in found),
        nan_count=sum(d.nan for d in found),
        inf_count=sum(d.inf for d in found),
        top1_agreement=1 - wrong_rows / rows if rows else None,
        reason=reason,
    )


def _form_problem(spec: TensorSpec, expected: Array, got: Array | None) -> str:
    """What is wrong with an output before any of its values is looked at."""
    if got is None:
        return "is missing"
    if got.shape != expected.shape:
        return f"has shape {got.shape}, the reference's has {expected.shape}"
    if got.dtype.name != spec.dtype:
        return f"has dtype {got.dtype.name}, the model says {spec.dtype}"
    if not comparable(expected, got):
        return f"has dtype {got.dtype.name}, the reference's has {expected.dtype.name}"
    return ""


def _failure(
    spec: TensorSpec,
    found: Sequence[Discrepancy],
    worst: int,
    exact: bool,
    wrong_rows: int,
    rows: int,
    limits: Thresholds,
    precision: Precision,
) -> str:
    """How an output fails, as the start of a sentence; empty when it passes."""
    d = found[worst]
    where = _of_inputs(worst, len(found))
    if not d.sound:
        counts = [
            f"{count} {words}"
            for count, words in (
                (d.reference_nan, "NaN in the reference"),
                (d.reference_inf, "Inf in the reference"),
                (d.nan, "NaN"),
                (d.inf, "Inf"),
                (d.unmasked, "finite where the reference is -inf"),
            )
            if count
        ]
        return f"Output {spec.name!r}: of {d.size} elements, {' and '.join(counts)}{where}"
    if exact:
        if not any(x.unequal for x in found):
            return ""
        return (
            f"Output {spec.name!r} must be equal, and {sum(x.unequal for x in found)} of "
            f"{sum(x.size for x in found)} elements differ"
        )
    cosine = min(x.cosine for x in found)
    if d.scaled_error > limits.scaled_error or cosine < limits.cosine:
        return (
            f"Output {spec.name!r} is off by {d.scaled_error:.2g} of the reference's norm, with a "
            f"cosine of {cosine:.6g}{where} ({precision} may be off by {limits.scaled_error:g}, "
            f"with a cosine of {limits.cosine:g})"
        )
    if wrong_rows > math.ceil((1 - limits.top1_agreement) * rows - 1e-9):
        return (
            f"Output {spec.name!r} names another class than the reference in {wrong_rows} of "
            f"{rows} rows ({precision} must agree in {limits.top1_agreement:.0%})"
        )
    return ""


def _nothing(expected: Array, got: Array, precision: Precision) -> str:
    """How an output carries nothing, though the reference's does; empty where it does."""
    r, c = extent(expected), extent(got)
    if r.largest and c.largest <= _DEAD * r.largest:
        return f"is nearly zero: at most {c.largest:.2g}, the reference's {r.largest:.2g}"
    least = RESOLVED[precision] * r.largest
    for words, kept, there in (
        ("is nearly constant: its values span", c.span, r.span),
        ("hardly depends on the input: its rows differ by", c.over_rows, r.over_rows),
    ):
        if there > least and kept <= _DEAD * there:
            return f"{words} {kept:.2g}, the reference's {there:.2g}"
    return ""


def _of_inputs(index: int, count: int) -> str:
    return f", input {index + 1} of {count}" if count > 1 else ""


def _rows(scores: Array) -> npt.NDArray[np.float64]:
    """Scores as (rows, classes); one-dimensional scores are one row."""
    values = as_float64(scores)
    return values.reshape(1, -1) if values.ndim == 1 else values.reshape(len(values), -1)


def _classes(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The class of each row, -1 where a score is NaN."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))
