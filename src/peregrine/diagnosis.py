"""What an output that failed looks like: cheap tests for the usual mistakes, in order.

A cause named here is a guess worth checking first. It explains a verdict and never makes one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peregrine.discrepancy import as_float64, comparable, extent, is_exact, measure
from peregrine.types import Array, Precision

_MOST_ROWS = 512
_MOST_SORTED = 1 << 22

_CLEARLY = 10
"""An explanation must leave ten times less to explain."""
_MISPLACED = 0.05
"""The least scaled error of an output whose elements are in another order."""

_DEAD = 0.01
"""Less than this share of what the reference has is nothing."""
_MANY = 0.5
"""The share of elements whose loss is worth naming."""

_LARGEST = {Precision.FP16: 65504.0, Precision.FP8: 448.0}
_SMALLEST = {Precision.FP16: 6e-8, Precision.BF16: 9e-41, Precision.FP8: 2e-3}
_NAMES = {Precision.FP8: "fp8 (E4M3)"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One failed output of one input, and the others it might have been mixed up with."""

    output: str
    input: int
    reference: Sequence[Mapping[str, Array]]
    candidate: Sequence[Mapping[str, Array]]
    precision: Precision
    allowed: Mapping[Precision, float]
    """The scaled error that each precision is allowed."""

    @property
    def expected(self) -> Array:
        return self.reference[self.input][self.output]

    @property
    def got(self) -> Array:
        return self.candidate[self.input][self.output]

    @property
    def tolerance(self) -> float:
        return self.allowed[self.precision]

    def matches(self, other: Array) -> bool:
        """Whether some other array explains the output: within tolerance of it, and ten times
        nearer to it than to what was expected."""
        if not comparable(other, self.got):
            return False
        found = measure(other, self.got)
        if is_exact(other.dtype):
            return found.unequal == 0
        own = measure(self.expected, self.got).scaled_error
        return found.sound and found.scaled_error <= min(self.tolerance, own / _CLEARLY)


def likely_cause(case: Evidence) -> str:
    """The likely cause of a failure, as the end of a sentence; never empty.

    The output must be there, in the reference's shape.
    """
    tests = (
        _not_finite,
        _zeros,
        _mixed_up,
        _rows,
        _flushed,
        _saturated,
        _factor,
        _nearly_zeros,
        _constant,
        _offset,
        _order,
    )
    for test in tests:
        if cause := test(case):
            return cause
    return _precision(case)


def _not_finite(case: Evidence) -> str:
    found = measure(case.expected, case.got)
    if found.reference_nan or found.reference_inf:
        return "the reference itself is not finite, so nothing can be judged by it"
    if found.unmasked and not (found.nan or found.inf):
        return "a mask was lost: values where the reference has -inf"
    if not found.nan and not found.inf:
        return ""
    if case.precision not in _LARGEST:
        return "likely an overflow or an invalid operation inside, such as a division by zero"
    ends, largest = _LARGEST[case.precision], extent(case.expected).largest
    where = "the" if largest > ends else "so it happened inside: the"
    return (
        f"likely overflow: {_name(case.precision)} ends at {ends:g}, "
        f"{where} reference's largest value is {largest:.2g}"
    )


def _zeros(case: Evidence) -> str:
    if case.got.any():
        return ""
    return _vanished(case, "all zeros") or "all zeros, as if the output had never been written"


def _nearly_zeros(case: Evidence) -> str:
    largest, left = extent(case.expected).largest, extent(case.got).largest
    if left >= _DEAD * largest:
        return ""
    words = f"nearly zeros (at most {left:.2g})"
    return _vanished(case, words) or f"{words}, the reference's largest value is {largest:.2g}"


def _vanished(case: Evidence, words: str) -> str:
    """Why values became zero, where the precision can make them so."""
    if case.precision in _SMALLEST:
        return f"{words}, likely {_underflow(case)}"
    if case.precision is Precision.INT8:
        return (
            f"{words}, likely from ranges that are far too wide: int8 has 255 steps, and what is "
            "under half of one is 0; the reference's largest value is "
            f"{extent(case.expected).largest:.2g}"
        )
    return ""


def _underflow(case: Evidence) -> str:
    """`underflow: ...` with the numbers that make it so."""
    smallest, largest = _SMALLEST[case.precision], extent(case.expected).largest
    where = "the" if largest < smallest else "so it happened inside: the"
    return (
        f"underflow: {_name(case.precision)} has nothing smaller than {smallest:.0e}, "
        f"{where} reference's largest value is {largest:.2g}"
    ).replace("e-0", "e-")


def _name(precision: Precision) -> str:
    return _NAMES.get(precision, str(precision))


def _mixed_up(case: Evidence) -> str:
    for name, other in case.reference[case.input].items():
        if name != case.output and case.matches(other):
            return f"it is the reference's output {name!r}: outputs are swapped"
    for index, outputs in enumerate(case.reference):
        if index != case.input and case.matches(outputs[case.output]):
            return f"it is the answer to input {index + 1}: stale or mixed-up results"
    return ""


def _rows(case: Evidence) -> str:
    """Rows of the batch in another order, repeated, or left out."""
    expected, got = case.expected, case.got
    if expected.ndim < 2 or not 2 <= len(expected) <= _MOST_ROWS:
        return ""
    r, c = (as_float64(x.reshape(len(x), -1)) for x in (expected, got))
    if not (np.isfinite(r).all() and np.isfinite(c).all()):
        return ""
    sizes = np.linalg.norm(r, axis=1)
    own = np.linalg.norm(c - r, axis=1)
    right = own <= case.tolerance * sizes
    if right.all():
        return ""
    empty = ~c.any(axis=1)
    if right.any() and (right | empty).all():
        first = int(np.flatnonzero(~right)[0]) + 1
        return (
            f"{(~right).sum()} of {len(right)} rows are zeros, the first of them row {first}: "
            "part of the batch was not computed"
        )
    squared = (c**2).sum(1)[:, None] + (sizes**2)[None, :] - 2 * c @ r.T
    nearest = np.argmin(squared, axis=1)
    left = np.linalg.norm(c - r[nearest], axis=1)
    explained = left <= np.minimum(case.tolerance * sizes[nearest], own / _CLEARLY)
    if not (right | explained).all():
        return ""
    if len(set(nearest.tolist())) == len(nearest):
        return "the rows of the batch are in another order"
    if len(set(nearest.tolist())) == 1:
        return f"every row repeats row {nearest[0] + 1}: the batch is not computed item by item"
    return "rows of the batch are answers to other rows"


def _constant(case: Evidence) -> str:
    expected, got = extent(case.expected), extent(case.got)
    if expected.span and got.span <= _DEAD * expected.span:
        about = "" if got.span == 0 else "about "
        ends = _LARGEST.get(case.precision)
        at_end = f", where {_name(case.precision)} ends" if got.largest == ends else ""
        return (
            f"every element is {about}{got.high:.6g}{at_end}: saturated, or never computed (the "
            f"reference's go from {expected.low:.3g} to {expected.high:.3g})"
        )
    if expected.over_rows and got.over_rows <= _DEAD * expected.over_rows:
        return "every row is the same: the output does not depend on the input"
    return ""


def _flushed(case: Evidence) -> str:
    """Many values are zero that should not be, in a precision that ends early."""
    if case.precision not in _SMALLEST or is_exact(case.expected.dtype):
        return ""
    lost, of = int(((case.got == 0) & (case.expected != 0)).sum()), int((case.expected != 0).sum())
    if not of or lost < _MANY * of:
        return ""
    return f"{lost} of {of} values became zero, likely {_underflow(case)}"


def _saturated(case: Evidence) -> str:
    """Values stand at the end of the precision's range where the reference goes beyond it."""
    ends = _LARGEST.get(case.precision)
    largest = extent(case.expected).largest
    if ends is None or largest <= ends or extent(case.got).largest != ends:
        return ""
    return (
        f"saturated: {_name(case.precision)} ends at {ends:g}, "
        f"the reference's largest value is {largest:.2g}"
    )


_FORGOTTEN_SCALE = 0.005


def _factor(case: Evidence) -> str:
    if is_exact(case.expected.dtype):
        return ""
    found = measure(case.expected, case.got)
    left = math.sqrt(max(0.0, 1 - found.cosine**2))
    if not found.sound or found.reference_squared == 0:
        return ""
    if left > max(abs(found.factor - 1) / _CLEARLY, 1e-7):
        return ""
    if abs(found.factor + 1) <= case.tolerance:
        return "the sign is flipped"
    if abs(found.factor - 1) < _FORGOTTEN_SCALE:
        return ""  # rounding that leans one way; no scale anybody forgot is so near to 1
    return f"a constant factor of {found.factor:.4g}: a scale is missing or applied twice"


def _offset(case: Evidence) -> str:
    if is_exact(case.expected.dtype) or case.expected.size < 3:
        return ""
    difference = as_float64(case.got) - as_float64(case.expected)
    mean = float(difference.mean())
    if abs(mean) > 0 and float(difference.std()) <= abs(mean) / _CLEARLY:
        return f"a constant offset of {mean:.4g}: a bias is missing or applied twice"
    return ""


def _order(case: Evidence) -> str:
    """The right values in the wrong places: a layout mistake."""
    if not 2 < case.expected.size <= _MOST_SORTED:
        return ""
    r, c = (np.sort(as_float64(x.ravel())) for x in (case.expected, case.got))
    scale = float(np.linalg.norm(r))
    if scale == 0 or float(np.ptp(r)) == 0:
        return ""
    # Any noise leaves the sorted values nearer than the values, so a good deal must be misplaced.
    own = measure(case.expected, case.got).scaled_error
    left = float(np.linalg.norm(c - r)) / scale
    if own < _MISPLACED or left > min(case.tolerance, own / _CLEARLY) / _CLEARLY:
        return ""
    return "the reference's values in another order: likely a mistake of layout or transposition"


def _precision(case: Evidence) -> str:
    if is_exact(case.expected.dtype):
        return "integers and booleans must be equal; an index or a class was decided otherwise"
    found = measure(case.expected, case.got)
    limit = min((v for v in case.allowed.values() if found.scaled_error <= v), default=0.0)
    if limit > case.tolerance:
        names = " or ".join(p for p, v in case.allowed.items() if v == limit)
        return f"about what {names} arithmetic loses: likely run in less precision than asked"
    if found.cosine > 0.5:
        return f"more than {case.precision} should lose: a layer is too sensitive for it"
    return "unrelated values, as of other weights, another input, or a wrong operator"
