import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peregrine.errors import ReferenceFailed
from peregrine.guard import guard_scores, guard_top1, mcnemar, paired_interval
from peregrine.results import Verdict


@st.composite
def counts(draw, most=400):
    """(worse, better, items)."""
    items = draw(st.integers(1, most))
    worse = draw(st.integers(0, items))
    return worse, draw(st.integers(0, items - worse)), items


within = st.floats(0.02, 0.98)
"""Where in its interval a limit lies: it is undecided by it."""


def between(interval, share):
    low, high = interval
    return low + share * (high - low)


def answers(worse, better, items, right=0):
    """Labels, reference's and candidate's classes with that many of each kind."""
    labels = np.zeros(items, int)
    reference, candidate = np.ones(items, int), np.ones(items, int)
    reference[:worse] = 0
    candidate[worse : worse + better] = 0
    both = slice(worse + better, worse + better + right)
    reference[both] = candidate[both] = 0
    return labels, reference, candidate


def top1(worse, better, items, max_drop=None, top1_loss=0.0):
    return guard_top1(*answers(worse, better, items), max_drop=max_drop, top1_loss=top1_loss)


def scores(reference, candidate, max_drop=None, seed=0):
    return guard_scores(
        "m:f", np.array(reference), np.array(candidate), max_drop=max_drop, seed=seed
    )


def coverage(n, worse, better):
    """The exact probability that the interval holds the true drop, over all samples of n."""
    true, total = worse - better, 0.0
    logs = [math.log(p) if p else -math.inf for p in (worse, better, 1 - worse - better)]
    for b in range(n + 1):
        for c in range(n + 1 - b):
            log = math.lgamma(n + 1)
            for count, each in zip((b, c, n - b - c), logs, strict=True):
                log += count * each - math.lgamma(count + 1) if count else 0.0
            probability = math.exp(log)
            if probability < 1e-9:
                continue
            low, high = paired_interval(b, c, n)
            total += probability * (low - 1e-9 <= true <= high + 1e-9)
    return total


class TestPairedInterval:
    @pytest.mark.parametrize(
        ("worse", "better", "items", "low", "high"),
        [
            # Fagerland, Lydersen and Laake 2014 ("Recommended tests and confidence intervals for
            # paired binomial proportions"): airway hyper-responsiveness, (1, 1, 7, 12).
            (1, 7, 21, -0.517, -0.026),
            # The same as the R package PropCIs gives for its own example.
            (40, 20, 160, 0.0309, 0.2181),
        ],
    )
    def test_published_examples(self, worse, better, items, low, high):
        found = paired_interval(worse, better, items)
        digits = 3 if abs(low) > 0.1 else 4
        assert found == pytest.approx((low, high), abs=0.51 * 10**-digits)

    @given(st.integers(1, 10**6))
    def test_nothing_lost_has_wilsons_width(self, items):
        z2 = 1.959963984540054**2
        low, high = paired_interval(0, 0, items)
        assert -low == high == pytest.approx(z2 / (items + z2))

    @given(counts())
    def test_it_holds_the_estimate_within_what_can_be(self, given_counts):
        worse, better, items = given_counts
        low, high = paired_interval(worse, better, items)
        assert -1 <= low <= (worse - better) / items <= high <= 1
        assert low < high

    @given(counts())
    def test_swapping_roles_mirrors_it(self, given_counts):
        worse, better, items = given_counts
        low, high = paired_interval(worse, better, items)
        assert paired_interval(better, worse, items) == (-high, -low)

    @given(counts(), st.integers(2, 9))
    def test_the_same_rates_on_more_items_lie_within(self, given_counts, times):
        worse, better, items = given_counts
        low, high = paired_interval(worse, better, items)
        inner = paired_interval(worse * times, better * times, items * times)
        assert low - 1e-12 <= inner[0] <= inner[1] <= high + 1e-12
        assert inner[1] - inner[0] < high - low

    @given(counts())
    def test_losing_one_more_moves_it_up(self, given_counts):
        worse, better, items = given_counts
        assume(worse + better < items)
        low, high = paired_interval(worse, better, items)
        more = paired_interval(worse + 1, better, items)
        assert more[0] > low - 1e-12
        assert more[1] > high - 1e-12

    @pytest.mark.parametrize(("worse", "better"), [(0.05, 0.05), (0.1, 0.02), (0.02, 0.02)])
    def test_it_covers_what_it_says_at_sixty_items(self, worse, better):
        assert 0.93 <= coverage(60, worse, better) <= 0.999

    def test_it_covers_what_it_says_at_small_discordance(self):
        found = [
            coverage(n, worse, better)
            for n, (worse, better) in itertools.product(
                (40, 120), ((0.01, 0.01), (0.03, 0.0), (0.03, 0.01), (0.08, 0.04), (0.2, 0.1))
            )
        ]
        assert np.mean(found) >= 0.945
        assert min(found) >= 0.90


class TestMcNemar:
    def test_known_values(self):
        assert mcnemar(0, 0) == 1.0
        assert mcnemar(5, 5) == 1.0
        assert mcnemar(0, 6) == pytest.approx(2 / 64)
        assert mcnemar(7, 1) == pytest.approx(2 * 9 / 256)
        assert 0 < mcnemar(1500, 1300) < 0.001

    @given(st.integers(0, 300), st.integers(0, 300))
    def test_it_is_a_probability_whichever_way(self, worse, better):
        assert 0 < mcnemar(worse, better) == mcnemar(better, worse) <= 1


class TestTop1:
    def test_figures_are_points_and_counts(self):
        labels, reference, candidate = answers(3, 2, 120, right=104)
        found = guard_top1(labels, reference, candidate, max_drop=0.5, top1_loss=0.0)
        assert (found.items, found.worse, found.better) == (120, 3, 2)
        assert found.reference == pytest.approx(100 * 107 / 120)
        assert found.candidate == pytest.approx(100 * 106 / 120)
        assert found.drop == pytest.approx(100 / 120)
        assert found.ci95 == pytest.approx(tuple(100 * x for x in paired_interval(3, 2, 120)))
        assert found.p_value == 1.0
        assert "Tango 1998" in found.method

    def test_what_the_data_cannot_tell_is_undecided_in_words(self):
        found = top1(3, 2, 120, max_drop=0.5)
        assert found.verdict is Verdict.UNDECIDED
        assert found.reason == (
            "Top-1 falls by 0.8 points [-3.7, 5.7] of 120 images (3 lost, 2 won); at most 0.5 "
            "allowed: undecided, about 15,000 more images would decide."
        )

    @pytest.mark.parametrize(
        ("worse", "better", "items", "max_drop", "verdict"),
        [
            (0, 0, 120, 5.0, Verdict.OK),
            (0, 0, 120, 1.0, Verdict.UNDECIDED),
            (0, 0, 1000, 0.5, Verdict.OK),
            (20, 2, 120, 5.0, Verdict.FAILED),
            (20, 2, 120, 30.0, Verdict.OK),
            (2, 20, 120, 0.0, Verdict.OK),
        ],
    )
    def test_the_whole_interval_decides(self, worse, better, items, max_drop, verdict):
        found = top1(worse, better, items, max_drop)
        assert found.verdict is verdict
        assert (found.more_items is not None) == (verdict is Verdict.UNDECIDED)

    @given(counts(), within)
    def test_as_many_more_items_as_it_says_decide(self, given_counts, share):
        worse, better, items = given_counts
        max_drop = 100 * between(paired_interval(worse, better, items), share)
        found = top1(worse, better, items, max_drop)
        assert found.verdict is Verdict.UNDECIDED
        assume(found.more_items is not None)
        times = -(-(items + found.more_items) // items)
        low, high = paired_interval(worse * times, better * times, items * times)
        assert 100 * high <= max_drop + 1e-9 or 100 * low > max_drop - 1e-9

    @given(counts(), within)
    def test_one_item_fewer_than_it_says_would_not(self, given_counts, share):
        worse, better, items = given_counts
        assume(worse + better)
        max_drop = 100 * between(paired_interval(worse, better, items), share)
        found = top1(worse, better, items, max_drop)
        assume(found.more_items is not None)
        times = (items + found.more_items - 1) / items
        low, high = paired_interval(worse * times, better * times, items * times)
        assert 100 * low <= max_drop + 1e-9
        assert 100 * high > max_drop - 1e-9

    def test_a_drop_that_is_the_limit_is_never_decided(self):
        found = top1(1, 0, 200, max_drop=0.5)
        assert found.verdict is Verdict.UNDECIDED
        assert found.more_items is None
        assert "no number of images would decide" in found.reason

    @pytest.mark.parametrize(
        ("worse", "better", "top1_loss", "verdict"),
        [
            (1, 0, 0.0, Verdict.FAILED),
            (1, 1, 0.0, Verdict.OK),
            (0, 3, 0.0, Verdict.OK),
            (1, 0, 0.001, Verdict.OK),  # rounded up to a whole image
            (2, 0, 0.001, Verdict.FAILED),
        ],
    )
    def test_without_a_limit_the_drop_itself_is_judged(self, worse, better, top1_loss, verdict):
        found = top1(worse, better, 120, top1_loss=top1_loss)
        assert found.verdict is verdict
        assert found.max_drop is None
        assert found.ci95[0] < found.ci95[1]
        if verdict is Verdict.FAILED:
            assert f"{worse - better} fewer, at most" in found.reason

    def test_every_image_needs_answers(self):
        for labels in ([0], []):
            with pytest.raises(ValueError, match="one answer of each"):
                guard_top1(labels, [], [], max_drop=None, top1_loss=0.0)


uneven = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=10, max_size=60).filter(
    lambda pairs: len({a - b for a, b in pairs}) > 5
)


class TestScores:
    @given(uneven)
    def test_it_holds_the_estimate_and_mirrors_when_roles_swap(self, pairs):
        was, now = zip(*pairs, strict=True)
        found, other = scores(was, now), scores(now, was)
        assert found.ci95[0] <= found.drop <= found.ci95[1]
        assert found.drop == pytest.approx(np.mean(was) - np.mean(now))
        assert other.drop == pytest.approx(-found.drop)
        assert (other.worse, other.better) == (found.better, found.worse)
        width = found.ci95[1] - found.ci95[0]
        assert other.ci95 == pytest.approx(
            (-found.ci95[1], -found.ci95[0]), abs=0.02 * width + 1e-9
        )

    def test_it_shrinks_with_items_and_is_the_same_for_a_seed(self):
        rng = np.random.default_rng(3)
        was = rng.uniform(size=400)
        now = was - rng.normal(0.01, 0.1, 400)
        widths = []
        for items in (12, 50, 400):
            found = scores(was[:items], now[:items])
            assert found == scores(was[:items], now[:items])
            assert found.ci95 != scores(was[:items], now[:items], seed=1).ci95
            widths.append(found.ci95[1] - found.ci95[0])
        assert widths == sorted(widths, reverse=True)

    @pytest.mark.parametrize("items", [6, 15, 40])
    def test_it_covers_what_it_says(self, items):
        rng = np.random.default_rng(1)
        held = 0
        for _ in range(200):
            was = rng.uniform(size=items)
            ci = scores(was, was - rng.gamma(2, 0.05, items)).ci95
            held += ci[0] <= 0.1 <= ci[1]
        assert held >= 200 * 0.90

    @pytest.mark.parametrize(
        ("loss", "max_drop", "verdict"),
        [
            (0.05, 0.1, Verdict.OK),
            (0.05, 0.01, Verdict.FAILED),
            (0.05, 0.049, Verdict.UNDECIDED),
            (0.5, None, Verdict.OK),
        ],
    )
    def test_the_whole_interval_decides(self, loss, max_drop, verdict):
        rng = np.random.default_rng(0)
        was = rng.uniform(size=80)
        now = was - loss + rng.normal(0, 0.05, 80)
        found = scores(was, now, max_drop)
        assert found.verdict is verdict
        assert ("no limit was given" in found.reason) == (max_drop is None)
        assert "of 80 items" in found.reason

    @given(uneven, st.floats(0.02, 0.98))
    def test_as_many_more_items_as_it_says_decide(self, pairs, share):
        was, now = (np.array(x) for x in zip(*pairs, strict=True))
        max_drop = between(scores(was, now).ci95, share)
        found = scores(was, now, max_drop)
        assert found.verdict is Verdict.UNDECIDED
        times = -(-(len(was) + (found.more_items or 10**9)) // len(was))
        assume(times <= 50)
        more = scores(np.tile(was, times), np.tile(now, times), max_drop)
        assert more.verdict is not Verdict.UNDECIDED

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("max_drop", [None, 1e9])
    def test_a_score_that_is_no_number_never_passes(self, value, max_drop):
        found = scores([0.5] * 20, [0.9] * 19 + [value], max_drop)
        assert found.verdict is Verdict.FAILED
        assert "1 scores of 20 that are not finite" in found.reason
        assert np.isfinite([found.candidate, found.drop, *found.ci95]).all()
        assert found.worse == 1

    def test_nor_does_a_reference_judge_by_one(self):
        with pytest.raises(ReferenceFailed, match="1 scores of 2"):
            scores([0.5, np.nan], [0.5, 0.5])

    def test_right_and_wrong_are_counted_as_in_top_1(self):
        was, now = np.ones(120), np.ones(120)
        now[:3] = 0
        found = scores(was, now, 0.1)
        assert found.ci95 == paired_interval(3, 0, 120)
        assert found.verdict is Verdict.OK
        undecided = scores(was, now, 0.03)
        times = -(-(120 + undecided.more_items) // 120)
        again = scores(np.tile(was, times), np.tile(now, times), 0.03)
        assert again.verdict is Verdict.OK

    def test_a_few_equal_items_promise_little(self):
        few = np.linspace(0.2, 0.9, 20)
        found = scores(few, few, 0.01)
        assert found.verdict is Verdict.UNDECIDED
        assert found.ci95[1] > 0.1
        times = -(-(20 + found.more_items) // 20)
        assert scores(np.tile(few, times), np.tile(few, times), 0.01).verdict is Verdict.OK

    def test_few_items_are_called_rough(self):
        found = scores([0.5, 0.6, 0.7], [0.5, 0.55, 0.68], 1.0)
        assert "rough: 3 items" in found.method
        assert "Student" in found.method
        # By hand: mean 0.07/3, deviation 0.02517, t(2) = 4.303.
        assert found.ci95[1] == pytest.approx(0.02333 + 4.303 * 0.02517 / np.sqrt(3), rel=1e-3)

    def test_one_score_decides_nothing(self):
        found = scores([0.5], [0.4], 0.2)
        assert found.verdict is Verdict.UNDECIDED
        assert "no spread" in found.reason

    @pytest.mark.parametrize(("was", "now"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
    def test_every_item_needs_a_score(self, was, now):
        with pytest.raises(ValueError, match="one score of each"):
            scores(was, now)
