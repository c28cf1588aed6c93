"""What an output that failed looks like: cheap tests for the usual mistakes, in order.

A cause named here is a guess worth checking first. It explains a verdict and never makes one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peregrine.discrepancy import as_float64, comparable, is_exact, measure
from peregrine.types import Array, Precision

_MOST_ROWS = 512
_MOST_SORTED = 1 << 22

_CLEARLY = 10
"""An explanation must leave ten times less to explain."""
_MISPLACED = 0.05
"""The least scaled error of an output whose elements are in another order."""

_LARGEST = {Precision.FP16: "65504", Precision.FP8: "448 (E4M3)"}
_SMALLEST = {Precision.FP16: "6e-8", Precision.FP8: "2e-3 (E4M3)"}


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
    for test in (_not_finite, _zeros, _mixed_up, _rows, _constant, _factor, _offset, _order):
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
    if case.precision in _LARGEST:
        return f"likely overflow: {case.precision} ends at {_LARGEST[case.precision]}"
    return "likely an overflow or an invalid operation inside, such as a division by zero"


def _zeros(case: Evidence) -> str:
    if case.got.any():
        return ""
    if case.precision in _SMALLEST:
        return (
            f"all zeros, likely underflow: {case.precision} has nothing smaller than "
            f"{_SMALLEST[case.precision]}"
        )
    return "all zeros, as if the output had never been written"


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
    got, expected = case.got.ravel(), case.expected.ravel()
    if len(got) > 1 and (got == got[0]).all() and not (expected == expected[0]).all():
        return f"every element is {got[0]}: saturated, or never computed"
    return ""


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
