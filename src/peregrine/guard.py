"""The accuracy guard: does a candidate lose too much on real items, and can these items tell?

Reference and candidate answer the same items, so only items on which they differ say anything:
every interval here is of the paired difference. A verdict needs the whole 95% interval of the
drop on one side of what is allowed; otherwise it is undecided, with about how many more items
would decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from peregrine.errors import ReferenceFailed
from peregrine.ratios import t975
from peregrine.results import Guard, Verdict
from peregrine.types import Array

TOP1 = "top-1"
SCORE_INTERVAL = "paired score interval (Tango 1998)"

_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)
_BISECTIONS = 60
_MOST_ITEMS = 10**7
"""Beyond this many items "more would decide" is no advice."""
_UNSEEN = 3.0
"""The rule of three: what was not seen in n items happens, at 95%, in less than 3/n of them."""
_RESAMPLES = 10_000
_CHUNK = 1 << 21  # elements resampled at a time: 16 MiB
_FEWEST_TO_RESAMPLE = 10
_MARGIN = 1.05
"""More items are advised than a square-root law asks for: the bootstrap's ends are noisy."""

_Floats = npt.NDArray[np.float64]


def guard_top1(
    labels: Sequence[int],
    reference_classes: Sequence[int],
    candidate_classes: Sequence[int],
    *,
    max_drop: float | None,
    top1_loss: float,
) -> Guard:
    """Judge the top-1 of a candidate by images that the reference answered too.

    Args:
        labels: the right class of each image.
        reference_classes: the reference's answers; -1 is never right.
        candidate_classes: the candidate's.
        max_drop: points of top-1 that may be lost. Ok when the interval's upper end is within
            it, failed when its lower end is beyond it, else undecided.
        top1_loss: without `max_drop`, the net loss that is allowed, as a share of the images,
            rounded up to whole images. It judges what was seen, and never is undecided.

    Raises:
        ValueError: not one answer of each for every label, or none at all.
    """
    if not len(labels) == len(reference_classes) == len(candidate_classes) or not len(labels):
        raise ValueError("guard_top1 needs one answer of each for every image, and an image")
    right = np.asarray(labels)
    was, now = np.asarray(reference_classes) == right, np.asarray(candidate_classes) == right
    items, worse, better = len(right), int((was & ~now).sum()), int((now & ~was).sum())
    low, high = paired_interval(worse, better, items)
    found = Guard(
        measure=TOP1,
        unit="%",
        items=items,
        reference=100 * float(was.mean()),
        candidate=100 * float(now.mean()),
        drop=100 * (worse - better) / items,
        ci95=(100 * low, 100 * high),
        method=SCORE_INTERVAL,
        verdict=Verdict.OK,
        worse=worse,
        better=better,
        p_value=mcnemar(worse, better),
    )
    if max_drop is not None:
        return _against_limit(
            found, max_drop, lambda: _more_counted(worse, better, items, max_drop / 100)
        )
    allowed = math.ceil(top1_loss * items - 1e-9)
    lost = worse - better
    if lost <= allowed:
        return replace(found, reason=f"{_seen(found)}.")
    ending = f"{lost} fewer, at most {allowed} allowed"
    return replace(found, verdict=Verdict.FAILED, reason=f"{_seen(found)}: {ending}.")


def guard_scores(
    measure: str, reference: Array, candidate: Array, *, max_drop: float | None, seed: int
) -> Guard:
    """Judge a candidate by a user's metric, item by item.

    Scores that are only ever 0 and 1 are counted, and get the interval that top-1 gets. From 10
    items on, other scores get a bootstrap of the mean paired difference: bias-corrected and
    accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals"), its normal quantile
    widened to Student's t as Hesterberg (2015) does, since plain ones are too narrow for few
    items. Below 10 items it is Student's t, and `method` says that it is rough. Items that all
    differ by the same have no spread: then the interval reaches as far as if, unseen, the share
    of items that the score interval allows for lost the whole range of the reference's scores.

    Without `max_drop` the guard reports and fails nothing but scores that are not finite: how
    much of a metric's own unit is too much cannot be known, and a loss that is certain may be
    one that nobody minds.

    Args:
        measure: its name.
        reference: shape (items,), more is better.
        candidate: the same shape. A NaN or Inf among them always fails.
        max_drop: of the mean score, in the metric's unit.
        seed: of the bootstrap; the same seed gives the same interval.

    Raises:
        ReferenceFailed: a score of the reference is not finite.
        ValueError: other shapes, or no item.
    """
    was, now = (np.asarray(x, np.float64) for x in (reference, candidate))
    if was.ndim != 1 or was.shape != now.shape or not len(was):
        raise ValueError("guard_scores needs one score of each for every item, and an item")
    if broken := int((~np.isfinite(was)).sum()):
        raise ReferenceFailed(
            f"{measure} gives the reference {broken} scores of {len(was)} that are not finite.",
            why="A candidate's scores are compared with the reference's.",
            fix="Let the metric return a number for every item.",
        )
    finite = np.isfinite(now)
    differences = was[finite] - now[finite]
    lost = int((~finite).sum())
    drop = float(differences.mean()) if len(differences) else 0.0
    (low, high), method = ((drop, drop), "none") if lost else _interval(was, now, seed)
    found = Guard(
        measure=measure,
        unit="",
        items=len(was),
        reference=float(was.mean()),
        candidate=float(now[finite].mean()) if len(differences) else 0.0,
        drop=drop,
        ci95=(min(low, drop), max(high, drop)),
        method=method,
        verdict=Verdict.OK,
        worse=int((differences > 0).sum()) + lost,
        better=int((differences < 0).sum()),
    )
    if lost:
        text = f"{measure} gives the candidate {lost} scores of {len(was)} that are not finite."
        return replace(found, verdict=Verdict.FAILED, max_drop=max_drop, reason=text)
    if max_drop is None:
        return replace(found, reason=f"{_seen(found)}; no limit was given.")
    if len(was) == 1:
        text = (
            f"{_seen(found)}; at most {max_drop:g} allowed: undecided, since one score has no "
            "spread. Let the metric return a score for every item."
        )
        return replace(found, verdict=Verdict.UNDECIDED, max_drop=max_drop, reason=text)
    if method == SCORE_INTERVAL:
        return _against_limit(
            found,
            max_drop,
            lambda: _more_counted(found.worse, found.better, len(was), max_drop),
        )
    return _against_limit(found, max_drop, lambda: _more_scored(found, differences, max_drop))


def paired_interval(worse: float, better: float, items: float) -> tuple[float, float]:
    """The 95% interval of the drop `(worse - better) / items`, as a share of items.

    Tango's score interval (T. Tango 1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17:891-908):
    the drops d that a score test with the restricted maximum-likelihood estimate of the
    discordance does not reject. It stays within [-1, 1] and keeps a width when nothing differs:
    z^2 / (items + z^2) either way, Wilson's. Counts need not be whole.

    Args:
        worse: items that the reference has right and the candidate wrong.
        better: items the other way round.
        items: all of them, above 0.
    """
    return -_upper_end(better, worse, items), _upper_end(worse, better, items)


def mcnemar(worse: int, better: int) -> float:
    """Two-sided exact p-value that either kind of discordant item is equally likely (McNemar
    1947, by the binomial distribution)."""
    count = worse + better
    tail = sum(math.comb(count, k) for k in range(min(worse, better) + 1))
    return min(1.0, float(2 * tail / (1 << count)))


def _upper_end(worse: float, better: float, items: float) -> float:
    """The d above the observed drop at which Tango's statistic is -z, by bisection: the
    statistic falls with d."""
    lost, discordant, won = (worse - better) / items, (worse + better) / items, better / items

    def inside(d: float) -> bool:
        # The restricted estimate q of P(better): the larger root of 2q^2 + linear q + constant,
        # written so that nothing cancels.
        linear = (2 - lost) * d - discordant
        constant = -won * d * (1 - d)
        root = math.sqrt(max(0.0, linear**2 - 8 * constant))
        if linear > 0:
            q = -2 * constant / (root + linear)
        else:
            q = (root - linear) / 4
        variance = max(0.0, 2 * q + d * (1 - d))
        return d - lost < _Z * math.sqrt(variance / items)

    low, high = lost, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return high


def _more_counted(worse: int, better: int, items: int, limit: float) -> int | None:
    """Items to add until `paired_interval` lies on one side of `limit`, at the rates observed.

    Where nothing differed the rates are not zero but unseen: half of the rule of three each.
    None where the drop is the limit, so that no number would do.
    """
    if math.isclose((worse - better) / items, limit, abs_tol=1e-12):
        return None
    unseen = min(1.0, _UNSEEN / items) / 2 if not worse + better else 0.0
    lost, won = worse / items + unseen, better / items + unseen

    def decides(count: int) -> bool:
        low, high = paired_interval(lost * count, won * count, count)
        return high <= limit or low > limit

    above = items + 1
    while not decides(above):
        above *= 2
        if above > _MOST_ITEMS:
            return None
    below = items if above == items + 1 else above // 2
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if decides(middle) else (middle, above)
    return above - items


def _more_scored(found: Guard, differences: _Floats, limit: float) -> int | None:
    """Items to add until the interval of a mean lies on one side of `limit`: it shrinks with
    the square root of their number."""
    room = abs(limit - found.drop)
    low, high = found.ci95
    end = high - found.drop if found.drop < limit else found.drop - low
    if math.isclose(found.drop, limit, rel_tol=1e-9, abs_tol=1e-15):
        return None
    spread = _Z * float(differences.std(ddof=1))
    if spread == 0:
        # The unseen share z^2 / (items + z^2) of the range; see `guard_scores`.
        needed = (found.items + _Z**2) * end / room - _Z**2
    else:
        needed = max(found.items * (end / room) ** 2, (spread / room) ** 2)
    more = math.ceil(needed * _MARGIN) - found.items
    return max(1, more) if more <= _MOST_ITEMS else None


def _interval(was: _Floats, now: _Floats, seed: int) -> tuple[tuple[float, float], str]:
    """The 95% interval of the mean of `was - now`, and how it was made."""
    differences = was - now
    items, mean = len(differences), float(differences.mean())
    if items == 1:
        return (mean, mean), "none: one score has no spread"
    rough = f", rough: {items} items" if items < _FEWEST_TO_RESAMPLE else ""
    if np.isin(np.concatenate([was, now]), (0.0, 1.0)).all():
        worse, better = int((differences > 0).sum()), int((differences < 0).sum())
        return paired_interval(worse, better, items), SCORE_INTERVAL
    if float(np.ptp(differences)) == 0:
        reach = float(np.ptp(was)) or float(np.abs(was).max())
        half = _Z**2 / (items + _Z**2) * reach
        return (mean - half, mean + half), f"range of the scores: no item differed{rough}"
    if rough:
        half = t975(items - 1) * float(differences.std(ddof=1)) / math.sqrt(items)
        return (mean - half, mean + half), f"Student's t of the paired differences{rough}"
    return _bca(differences, seed), "paired bootstrap, BCa (Efron 1987)"


def _bca(values: _Floats, seed: int) -> tuple[float, float]:
    """The BCa interval of a mean, with `t975` in place of the normal quantile."""
    items, mean = len(values), float(values.mean())
    rng = np.random.default_rng(seed)
    # Centred, so that a mirrored sample gives the mirrored interval to the last digit that counts.
    centred = values - mean
    step = max(1, _CHUNK // items)
    means = np.concatenate(
        [
            centred[rng.integers(0, items, (min(step, _RESAMPLES - start), items))].mean(axis=1)
            for start in range(0, _RESAMPLES, step)
        ]
    )
    below = float((means < 0).mean() + (means == 0).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / _RESAMPLES), 1 - 1 / _RESAMPLES))
    acceleration = float((centred**3).sum()) / (6 * float((centred**2).sum()) ** 1.5)
    widened = t975(items - 1) * math.sqrt(items / (items - 1))

    def share(quantile: float) -> float:
        shifted = bias + quantile
        return _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))

    low, high = np.quantile(means, [share(-widened), share(widened)])
    return mean + float(low), mean + float(high)


def _seen(found: Guard) -> str:
    """What was seen, as the start of a sentence."""
    name = found.measure[:1].upper() + found.measure[1:] if found.unit else found.measure
    # One image in a thousand is a tenth of a point; more images deserve more digits.
    digits = ".3g" if not found.unit else ".1f" if found.items < 1000 else ".2f"
    if found.drop == 0:
        change = f"stays at {found.reference:{digits}}{found.unit}"
    else:
        verb = "falls" if found.drop > 0 else "rises"
        points = " points" if found.unit else ""
        change = f"{verb} by {abs(found.drop):{digits}}{points}"
    low, high = (f"{end:{digits}}" for end in found.ci95)
    counts = ("lost", "won") if found.unit else ("worse", "better")
    interval = f"[{low}, {high}]" if found.drop >= 0 else f"(a drop of {low} to {high})"
    return (
        f"{name} {change} {interval} of {found.items:,} {_noun(found)} "
        f"({found.worse:,} {counts[0]}, {found.better:,} {counts[1]})"
    )


def _noun(found: Guard) -> str:
    return "images" if found.measure == TOP1 else "items"


def _against_limit(found: Guard, max_drop: float, more: Callable[[], int | None]) -> Guard:
    low, high = found.ci95
    found = replace(found, max_drop=max_drop)
    start = f"{_seen(found)}; at most {max_drop:g} allowed"
    if high <= max_drop:
        return replace(found, reason=f"{start}.")
    if low > max_drop:
        return replace(found, verdict=Verdict.FAILED, reason=f"{start}: too much.")
    needed, noun = more(), _noun(found)
    if needed is None:
        ending = f"no number of {noun} would decide at this rate, so near is it to the limit"
    else:
        ending = f"about {_about(needed)} more {noun} would decide"
    reason = f"{start}: undecided, {ending}."
    return replace(found, verdict=Verdict.UNDECIDED, more_items=needed, reason=reason)


def _about(count: int) -> str:
    """A count rounded up to two digits."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // step) * step:,}"
