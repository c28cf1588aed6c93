import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peregrine.ratios import geometric_mean, paired_ratio

positive = st.floats(1e-3, 1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=2, max_size=20)


def coverage(rounds, ratio, *, spread=0.03, tries=600):
    """How often the interval holds the true ratio, of pairs under a common, violent load."""
    hits = 0
    for seed in range(tries):
        rng = np.random.default_rng(seed)
        load = rng.lognormal(0, 1, rounds)
        base = load * rng.lognormal(0, spread, rounds)
        slower = load * ratio * rng.lognormal(0, spread, rounds)
        found = paired_ratio(list(slower), list(base))
        hits += found.low <= ratio <= found.high
    return hits / tries


@pytest.mark.parametrize("rounds", [3, 5, 7, 15, 30])
def test_the_interval_covers_the_true_ratio_about_95_times_of_100(rounds):
    assert 0.92 <= coverage(rounds, 1.2) <= 0.99


def test_load_that_both_feel_cancels():
    base = [1.0, 40.0, 3.0, 0.2, 7.0]
    found = paired_ratio([1.5 * b for b in base], base)
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


@given(pairs)
def test_swapping_the_two_mirrors_the_interval(pairs):
    a, b = zip(*pairs, strict=True)
    one, other = paired_ratio(a, b), paired_ratio(b, a)
    assert one.mean * other.mean == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1, rel=1e-6)
    assert one.within(0.01) == other.within(0.01)


@given(pairs)
def test_the_mean_is_inside_its_interval(pairs):
    a, b = zip(*pairs, strict=True)
    found = paired_ratio(a, b)
    assert found.low <= found.mean * (1 + 1e-9)
    assert found.mean <= found.high * (1 + 1e-9)


def test_what_is_too_small_to_matter_is_no_difference_however_sure():
    base = [1.0] * 10
    assert paired_ratio([1.004] * 10, base).within(0.01)
    assert not paired_ratio([1.02] * 10, base).within(0.01)


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2)
    for bad in ([], [1.0, 0.0], [-1.0]):
        with pytest.raises(ValueError, match="positive"):
            geometric_mean(bad)


@pytest.mark.parametrize(
    ("times", "base"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])]
)
def test_pairs_that_are_none_are_refused(times, base):
    with pytest.raises(ValueError, match=r"pairs|positive"), np.errstate(divide="ignore"):
        paired_ratio(times, base)


def test_an_infinite_time_is_refused():
    with pytest.raises(ValueError, match="finite"):
        paired_ratio([math.inf, 1.0], [1.0, 1.0])
