"""How much slower one thing is than another, from measurements taken in pairs.

A noisy neighbour changes absolute times by several times within minutes, but it slows both
members of a pair that was measured moments apart. So only the ratio within a pair is used,
and ratios are averaged on the logarithm: "a over b" and "b over a" then agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST_TO_RESAMPLE = 8
_RESAMPLES = 10_000

# Student's t at 97.5% for 1..10 degrees of freedom; above, 1.96 + 2.4/df + 3/df^2 is within 0.3%.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A geometric mean of paired ratios, and its 95% interval."""

    mean: float
    low: float
    high: float
    pairs: int

    def within(self, indifference: float) -> bool:
        """Whether no difference was shown: the interval holds 1, or the mean is closer to 1
        than a factor of 1 + `indifference`."""
        return self.low <= 1 <= self.high or abs(math.log(self.mean)) < math.log1p(indifference)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive values. ValueError when empty or not all positive."""
    if not values or min(values) <= 0:
        raise ValueError("a geometric mean needs positive values")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def paired_ratio(times: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> Ratio:
    """The ratio `times[i] / baseline[i]` over pairs `i`, with its 95% interval.

    From 8 pairs on, the interval is a bootstrap over pairs. The plain percentile interval is
    too narrow for so few (at 8 pairs it covers 89%), so its percentiles are widened to those
    that give Student's t coverage for normal data ("expanded percentile", Hesterberg 2015).
    Below 8 pairs there is too little to resample, and the interval is Student's t on the
    logarithms. Equal seeds give mirrored intervals for swapped arguments.

    Args:
        times: positive, at least 2 of them.
        baseline: positive, as many.
    """
    if len(times) != len(baseline) or len(times) < 2:
        raise ValueError("paired_ratio needs at least two pairs")
    logs = np.log(np.asarray(times, np.float64)) - np.log(np.asarray(baseline, np.float64))
    if not np.isfinite(logs).all():
        raise ValueError("paired_ratio needs positive, finite times")
    pairs = len(logs)
    mean = float(logs.mean())
    if pairs < _FEWEST_TO_RESAMPLE:
        half = t975(pairs - 1) * float(logs.std(ddof=1)) / math.sqrt(pairs)
        low, high = mean - half, mean + half
    else:
        widened = math.sqrt(pairs / (pairs - 1)) * t975(pairs - 1)
        tail = 0.5 * math.erfc(widened / math.sqrt(2))
        picks = np.random.default_rng(seed).integers(0, pairs, (_RESAMPLES, pairs))
        low, high = map(float, np.quantile(logs[picks].mean(axis=1), [tail, 1 - tail]))
    return Ratio(math.exp(mean), math.exp(low), math.exp(high), pairs)


def t975(df: int) -> float:
    """Student's t at 97.5% for `df` degrees of freedom, at least 1."""
    return _T975[df - 1] if df <= len(_T975) else 1.96 + 2.4 / df + 3 / df**2
