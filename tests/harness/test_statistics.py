import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peregrine.harness.statistics import bootstrap_ci_of_median, latency_ms, noise_warnings

times = st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=200)


def autocorrelated(rng, count, memory):
    """log-normal samples around a median of 1 that remember the one before."""
    noise = rng.normal(0, np.sqrt(1 - memory**2), count)
    level = np.empty(count)
    level[0] = rng.normal()
    for i in range(1, count):
        level[i] = memory * level[i - 1] + noise[i]
    return np.exp(0.1 * level)


def coverage(draw, tries=300):
    hits = 0
    for seed in range(tries):
        low, high = bootstrap_ci_of_median(draw(np.random.default_rng(seed)))
        hits += low <= 1 <= high
    return hits / tries


def test_order_statistics_of_a_known_list():
    found = latency_ms([float(n) for n in range(1, 101)])
    assert (found.p50, found.min, found.max, found.mean) == (50.5, 1, 100, 50.5)
    assert found.p90 == pytest.approx(90.1)
    assert found.p99 == pytest.approx(99.01)
    assert found.std == pytest.approx(29.0115, abs=1e-4)


def test_one_sample_is_its_own_summary():
    found = latency_ms([3.0])
    assert (found.p50, found.p99, found.std) == (3.0, 3.0, 0.0)
    assert bootstrap_ci_of_median([3.0]) == (3.0, 3.0)


@pytest.mark.parametrize("function", [latency_ms, bootstrap_ci_of_median, noise_warnings])
def test_no_samples_are_refused(function):
    with pytest.raises(ValueError, match="at least one sample"):
        function([])


@given(times)
def test_percentiles_are_ordered_and_within_the_samples(samples):
    found = latency_ms(samples)
    ordered = [found.min, found.p50, found.p90, found.p95, found.p99, found.max]
    assert ordered == sorted(ordered)
    assert (found.min, found.max) == (min(samples), max(samples))


@settings(max_examples=30)
@given(times)
def test_the_interval_holds_the_median_or_touches_it(samples):
    low, high = bootstrap_ci_of_median(samples)
    assert min(samples) <= low <= high <= max(samples)
    if len(samples) >= 30:
        assert low <= np.median(samples) <= high


@settings(max_examples=10)
@given(times, st.floats(0.01, 100))
def test_the_interval_scales_with_the_unit(samples, unit):
    scaled = bootstrap_ci_of_median([s * unit for s in samples])
    assert scaled == pytest.approx([b * unit for b in bootstrap_ci_of_median(samples)])


def test_the_interval_is_the_same_every_time():
    samples = list(np.random.default_rng(0).lognormal(size=100))
    assert bootstrap_ci_of_median(samples) == bootstrap_ci_of_median(samples)


def test_the_interval_covers_the_true_median_of_independent_samples():
    assert coverage(lambda rng: rng.lognormal(0, 0.1, 60)) >= 0.91


def test_the_interval_covers_it_when_samples_depend_on_each_other():
    # Drawn one by one the same samples give intervals that cover it about 60% of the time.
    assert coverage(lambda rng: autocorrelated(rng, 400, 0.8)) >= 0.87


def test_ten_thousand_samples_take_no_time_that_a_race_would_feel():
    samples = np.random.default_rng(0).lognormal(size=10_000)
    began = time.perf_counter()
    low, high = bootstrap_ci_of_median(samples)
    assert time.perf_counter() - began < 10
    assert low < 1 < high


def quiet(count=400, seed=0):
    return 5 * np.random.default_rng(seed).lognormal(0, 0.02, count)


def test_a_quiet_run_has_nothing_to_say():
    assert noise_warnings(quiet()) == ()


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_quiet_runs_raise_no_false_alarm(seed):
    assert noise_warnings(quiet(200, seed)) == ()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (quiet(12), "only 12 of 50 samples"),
        (np.concatenate([quiet(200), 1.3 * quiet(200, 1)]), "30% slower"),
        (np.concatenate([quiet(200), 0.8 * quiet(200, 1)]), "20% faster"),
        (np.where(np.arange(400) % 3 == 0, 2.0, 1.0) * quiet(), "two speeds"),
        (np.where(np.arange(400) % 20 == 0, 4.0, 1.0) * quiet(), "more than twice the median"),
        (5 * np.random.default_rng(1).uniform(1, 2, 400), "the middle half"),
    ],
)
def test_noise_is_named(samples, words):
    assert any(words in text for text in noise_warnings(samples)), noise_warnings(samples)


def test_a_timer_that_costs_more_than_a_hundredth_is_named():
    assert any("clock" in text for text in noise_warnings(quiet() / 5000, timer_ms=6e-5))
    assert noise_warnings(quiet(), timer_ms=6e-5) == ()


def test_few_samples_are_said_where_more_were_asked_for():
    assert noise_warnings(quiet(12), asked=12) == ()
    (said,) = noise_warnings(quiet(12), asked=20)
    assert "12 of 20" in said
