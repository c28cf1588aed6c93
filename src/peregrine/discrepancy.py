"""How far one array is from another: the raw figures, summed chunk by chunk in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from peregrine.types import Array

RTOL, RTOL_1E3, ATOL = 1e-4, 1e-3, 1e-8
"""The paper's tolerances of `numpy.isclose`, reference second."""

_CHUNK = 1 << 20
_TEXT = "OSUT"
_Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Discrepancy:
    """Candidate against reference. Norms and the dot product are divided by `unit` (squared),
    which is 1 but for float64 arrays whose squares would leave float64's range.

    Where either side is not finite both count as zero in norms and differences.
    """

    size: int
    unit: float = 1.0
    unequal: int = 0
    """Elements that are not exactly equal."""
    non_equal: int = 0
    non_equal_1e3: int = 0
    max_abs: float = 0.0
    error_squared: float = 0.0
    reference_squared: float = 0.0
    candidate_squared: float = 0.0
    dot: float = 0.0
    nan: int = 0
    """The candidate's, where the reference has none."""
    inf: int = 0
    """The candidate's, where the reference does not have the same one."""
    unmasked: int = 0
    """The candidate is finite where the reference is -inf."""
    reference_nan: int = 0
    reference_inf: int = 0
    """+inf only."""
    masked: int = 0
    """The reference is -inf."""

    @property
    def scaled_error(self) -> float:
        """||candidate - reference|| / ||reference||; the candidate's root mean square where the
        reference is all zeros."""
        if self.reference_squared > 0:
            return math.sqrt(self.error_squared) / math.sqrt(self.reference_squared)
        return math.sqrt(self.candidate_squared / max(self.size, 1)) * self.unit

    @property
    def cosine(self) -> float:
        """Cosine similarity. Against an all-zero reference: 1 when all is within tolerance, else
        0; of an all-zero candidate: 0."""
        if self.reference_squared == 0:
            return 0.0 if self.non_equal else 1.0
        if self.candidate_squared == 0:
            return 0.0
        norms = math.sqrt(self.reference_squared) * math.sqrt(self.candidate_squared)
        return min(1.0, max(-1.0, self.dot / norms))

    @property
    def factor(self) -> float:
        """The k for which k * reference is nearest to the candidate; 1 for a zero reference."""
        return self.dot / self.reference_squared if self.reference_squared > 0 else 1.0

    @property
    def sound(self) -> bool:
        """Whether everything is finite where it should be, and -inf where it should be."""
        return not (
            self.nan or self.inf or self.unmasked or self.reference_nan or self.reference_inf
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of anything there is in an array. Values that are not finite are left out."""

    size: int = 0
    largest: float = 0.0
    """Largest absolute value."""
    low: float = 0.0
    high: float = 0.0
    over_rows: float = 0.0
    """The most that one element moves from row to row of the first axis; 0 for a single row."""

    @property
    def span(self) -> float:
        return self.high - self.low


def extent(values: Array) -> Extent:
    """The extent of an array of any real dtype."""
    if not values.size or values.dtype.kind in _TEXT + "c":
        return Extent()
    if is_exact(values.dtype):
        values = as_float64(values)  # numpy knows no limits of 4-bit integers
    finite = np.isfinite(values)
    everything = bool(finite.all())

    def reduced(ufunc: np.ufunc, start: float, axis: int | None) -> _Floats:
        if everything:
            return as_float64(np.asarray(ufunc.reduce(values, axis=axis)))
        found = ufunc.reduce(as_float64(values), axis=axis, initial=start, where=finite)
        return np.asarray(found, np.float64)

    if not finite.any():
        return Extent(values.size)
    low = float(reduced(np.minimum, math.inf, None))
    high = float(reduced(np.maximum, -math.inf, None))
    over_rows = 0.0
    if values.ndim > 1 and len(values) > 1:
        moves = reduced(np.maximum, -math.inf, 0) - reduced(np.minimum, math.inf, 0)
        # -inf - inf, where no row has a finite value
        over_rows = float(np.max(moves, initial=0.0, where=np.isfinite(moves)))
    return Extent(values.size, max(abs(low), abs(high)), low, high, over_rows)


def is_exact(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype must be equal: integers, booleans, text."""
    return dtype.kind in "biu" + _TEXT or dtype.name.startswith(("int", "uint"))


def comparable(reference: Array, candidate: Array) -> bool:
    """Whether `measure` can take the two: one shape, and both text, both complex, or neither."""
    kinds = [(a.dtype.kind in _TEXT, a.dtype.kind == "c") for a in (reference, candidate)]
    return reference.shape == candidate.shape and kinds[0] == kinds[1]


def measure(reference: Array, candidate: Array) -> Discrepancy:
    """The figures of two `comparable` arrays of any dtype, bfloat16 and fp8 included."""
    if not comparable(reference, candidate):
        raise ValueError("arrays of different shapes or kinds have no discrepancy")
    r, c = _flat(reference), _flat(candidate)
    found = Discrepancy(size=len(r), unit=_unit(r, c))
    for start in range(0, len(r), _CHUNK):
        _add(found, r[start : start + _CHUNK], c[start : start + _CHUNK])
    return found


def as_float64(values: Array) -> _Floats:
    """Any real array in float64. NaN stays NaN without a warning."""
    with np.errstate(invalid="ignore", over="ignore"):
        return values.astype(np.float64)


def _add(found: Discrepancy, reference: Array, candidate: Array) -> None:
    differs = reference != candidate
    found.unequal += int(differs.sum())
    if reference.dtype.kind in _TEXT:
        r = np.ones(len(reference))
        c = np.where(differs, 0.0, 1.0)
    else:
        r, c = as_float64(reference), as_float64(candidate)
    r_finite, c_finite = np.isfinite(r), np.isfinite(c)
    both = r_finite & c_finite
    wrong = ~both
    if wrong.any():
        same = r == c  # equal infinities
        wrong &= ~same
        found.reference_nan += int(np.isnan(r).sum())
        found.reference_inf += int(np.isposinf(r).sum())
        found.masked += int(np.isneginf(r).sum())
        found.unmasked += int((np.isneginf(r) & c_finite).sum())
        found.nan += int((np.isnan(c) & ~np.isnan(r)).sum())
        found.inf += int((np.isinf(c) & ~same).sum())
        # A lost value costs its own size; what has no reference value costs nothing here, since
        # the counts above fail it anyway.
        r, c = np.where(r_finite, r, 0.0), np.where(both, c, 0.0)
    error = np.abs(c - r)
    for name, rtol in (("non_equal", RTOL), ("non_equal_1e3", RTOL_1E3)):
        beyond = (error > ATOL + rtol * np.abs(r)) | wrong
        setattr(found, name, getattr(found, name) + int(beyond.sum()))
    found.max_abs = max(found.max_abs, float(error.max()))
    if found.unit != 1:
        r, c = r / found.unit, c / found.unit
        error = np.abs(c - r)
    found.error_squared += float(error @ error)
    found.reference_squared += float(r @ r)
    found.candidate_squared += float(c @ c)
    found.dot += float(r @ c)


def _flat(values: Array) -> Array:
    flat = np.ravel(values)
    return flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat


def _unit(reference: Array, candidate: Array) -> float:
    """What to divide by so that squares stay in range; float64 alone can need other than 1."""
    if np.float64 not in (reference.dtype, candidate.dtype):
        return 1.0
    largest = 0.0
    for values in (reference, candidate):
        for start in range(0, len(values), _CHUNK):
            chunk = np.abs(as_float64(values[start : start + _CHUNK]))
            largest = max(largest, float(np.max(chunk, initial=0.0, where=np.isfinite(chunk))))
    return largest if largest > 1e100 or 0 < largest < 1e-100 else 1.0
