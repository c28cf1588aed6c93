"""What samples of a latency say: order statistics, an honest interval, signs of noise.

Percentiles are always taken of the samples themselves, never of other percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from peregrine.results import LatencyMs

PAPER_RUNS = 50
"""Runs the paper takes of every inference."""

_Floats = npt.NDArray[np.float64]

_RESAMPLES = 1000
_CHUNK = 1 << 21  # elements resampled at a time: 16 MiB

_DRIFT = 0.05
_SPREAD = 0.20
_SLOW_SHARE = 0.02
_TIMER_SHARE = 0.01
_MODE_SHARE = 0.10
_MODE_GAP = 0.10
# Ashman's D of the best split: 2.65 for a normal, 3.5 for a uniform distribution, so above 5
# there are two heaps.
_MODE_SEPARATION = 5.0


def latency_ms(samples: Sequence[float]) -> LatencyMs:
    """Order statistics of `samples` (milliseconds, at least one).

    Percentiles interpolate linearly between samples; `std` is the sample standard deviation
    (n - 1), and 0 for a single sample.
    """
    values = _values(samples)
    p50, p90, p95, p99 = map(float, np.percentile(values, [50, 90, 95, 99]))
    return LatencyMs(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        min=float(values.min()),
        max=float(values.max()),
    )


def bootstrap_ci_of_median(samples: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the median, by a circular block bootstrap.

    Samples of a latency are not independent: a busy neighbour, a hot core or a clock step
    slows dozens in a row, and a bootstrap that draws them one by one would then promise
    several times too narrow an interval. Drawing runs of consecutive samples keeps that
    dependence. The run is as long as the dependence seems to last (twice the integrated
    autocorrelation time of "above the median or not"), at least n^(1/3), at most n/5. Ends
    wrap around, so that every sample is drawn equally often.

    It tells of the noise there was while sampling, not of the machine ten minutes later: only
    interleaved rounds can compare candidates.
    """
    values = _values(samples)
    count = len(values)
    if count == 1:
        return float(values[0]), float(values[0])
    length = _block_length(values)
    blocks = math.ceil(count / length)
    rng = np.random.default_rng(seed)
    wrapped = np.concatenate([values, values[:length]])
    runs = np.lib.stride_tricks.sliding_window_view(wrapped, length)[:count]
    medians: list[_Floats] = []
    step = max(1, _CHUNK // (blocks * length))
    for start in range(0, _RESAMPLES, step):
        rows = min(step, _RESAMPLES - start)
        picks = rng.integers(0, count, (rows, blocks))
        drawn = runs[picks].reshape(rows, -1)[:, :count]
        medians.append(np.median(drawn, axis=1, overwrite_input=True))
    low, high = np.quantile(np.concatenate(medians), [0.025, 0.975])
    return float(low), float(high)


def noise_warnings(
    samples: Sequence[float], *, asked: int = PAPER_RUNS, timer_ms: float = 0.0
) -> tuple[str, ...]:
    """What a reader of these samples (milliseconds, in the order taken) must know, in sentences.

    Fewer samples than were `asked` for, drift, two speeds, outliers, a wide spread, a timer whose
    own cost (`timer_ms`) shows. Noise is reported and never a reason to discard or to abort.
    """
    values = _values(samples)
    median = float(np.median(values))
    found = []
    if len(values) < asked:
        found.append(f"only {len(values)} of {asked} samples fitted the time limit")
    if timer_ms > _TIMER_SHARE * median:
        found.append(
            f"reading the clock takes {timer_ms * 1e3:.2f} us, "
            f"{100 * timer_ms / max(median, 1e-9):.0f}% of one inference"
        )
    if len(values) >= 10:
        found += [text for text in (_drift(values), _two_speeds(values)) if text]
        slow = float((values > 2 * median).mean())
        if slow > _SLOW_SHARE:
            found.append(f"{slow:.0%} of the samples took more than twice the median")
        low, high = map(float, np.percentile(values, [25, 75]))
        if high - low > _SPREAD * median:
            found.append(f"the middle half of the samples spans {(high - low) / median:.0%}")
    return tuple(found)


def _drift(values: _Floats) -> str:
    """Whether the second half was slower or faster beyond chance."""
    half = len(values) // 2
    first, second = values[:half], values[half:]
    ratio = float(np.median(second) / max(float(np.median(first)), 1e-12))
    if abs(ratio - 1) <= _DRIFT:
        return ""
    (low1, high1), (low2, high2) = map(bootstrap_ci_of_median, (list(first), list(second)))
    if low1 <= high2 and low2 <= high1:
        return ""
    word = "slower" if ratio > 1 else "faster"
    return f"it drifted: the second half of the samples is {abs(ratio - 1):.0%} {word}"


def _two_speeds(values: _Floats) -> str:
    """Whether samples fall in two heaps, by the split that explains most variance (Otsu)."""
    logs = np.sort(np.log(np.maximum(values, 1e-12)))
    count = len(logs)
    below = np.arange(1, count)
    sums, squares = np.cumsum(logs), np.cumsum(logs**2)
    mean1, mean2 = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (mean2 - mean1) ** 2
    cut = int(np.argmax(between))
    share = (cut + 1) / count
    gap = float(mean2[cut] - mean1[cut])
    var1 = squares[cut] / (cut + 1) - mean1[cut] ** 2
    var2 = (squares[-1] - squares[cut]) / (count - cut - 1) - mean2[cut] ** 2
    width = math.sqrt(max(float(var1 + var2), 1e-18))
    if min(share, 1 - share) < _MODE_SHARE or gap < math.log1p(_MODE_GAP):
        return ""
    if math.sqrt(2) * gap / width < _MODE_SEPARATION:
        return ""
    slow, fast = math.exp(float(mean2[cut])), math.exp(float(mean1[cut]))
    return (
        f"it ran at two speeds: {share:.0%} of the samples near {fast:.3g} ms, "
        f"the rest near {slow:.3g} ms"
    )


def _block_length(values: _Floats) -> int:
    """Samples to draw in a row; see `bootstrap_ci_of_median`."""
    count: int = len(values)
    floor = math.ceil(math.cbrt(count))
    above = (values > np.median(values)).astype(np.float64)
    centred = above - above.mean()
    power = float(centred @ centred)
    if power == 0:
        return floor
    spectrum = np.fft.rfft(centred, 2 * count)
    acf = np.fft.irfft(np.abs(spectrum) ** 2, 2 * count)[: count // 2] / power
    # Sum the autocorrelation up to where it first drowns in its own noise.
    drowned = np.flatnonzero(acf < 2 / math.sqrt(count))
    last = int(drowned[0]) if len(drowned) else len(acf)
    time = 1 + 2 * float(acf[1:last].sum())
    return min(max(floor, math.ceil(2 * time)), max(1, count // 5))


def _values(samples: Sequence[float]) -> _Floats:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("expected at least one sample")
    return values
