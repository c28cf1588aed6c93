"""Outputs against the reference's: figures, what is not finite, top-1, labels."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from judging import disturbed, judge, logits, spec
from peregrine.discrepancy import measure
from peregrine.errors import ReferenceFailed
from peregrine.guard import guard_top1
from peregrine.results import Verdict
from peregrine.types import Precision
from peregrine.validate import (
    DEFAULTS,
    check_reference,
    compare,
    guard_labels,
    judge_labels,
)

finite = st.floats(-1e6, 1e6, width=32)
float_arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=finite
)

pairs = hnp.array_shapes(max_dims=3, max_side=3).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=finite)] * 2)
)


class TestFigures:
    def test_the_papers_percentage_of_non_equal_elements(self):
        # numpy.isclose(candidate, reference, rtol=1e-4, atol=1e-8), counted by hand.
        reference = np.array([1.0, 1.0, 10.0, 0.0, 0.0, -2.0, 3.0, 4.0], np.float64)
        changes = [0.9e-4, 1.1e-4, 9e-4, 0.9e-8, 1.1e-8, 1.9e-4, 2e-3, 5e-3]
        candidate = reference + np.array(changes)
        found = judge(reference, candidate)
        assert found.non_equal_percent == 100 * 4 / 8
        assert found.non_equal_percent_1e3 == 100 * 2 / 8

    @given(float_arrays, st.integers(0, 99), st.sampled_from([1e-6, 1e-4, 1e-3, 1e-1]))
    def test_it_is_numpys_isclose(self, reference, seed, scale):
        rng = np.random.default_rng(seed)
        candidate = (reference * (1 + scale * rng.normal(size=reference.shape))).astype(np.float32)
        found = judge(reference, candidate)
        wide, base = candidate.astype(np.float64), reference.astype(np.float64)
        for percent, rtol in (
            (found.non_equal_percent, 1e-4),
            (found.non_equal_percent_1e3, 1e-3),
        ):
            equal = np.isclose(wide, base, rtol=rtol, atol=1e-8)
            assert percent == pytest.approx(100 * (~equal).mean())

    def test_error_cosine_and_largest_difference_of_a_known_pair(self):
        found = judge(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
        assert found.scaled_error == pytest.approx(0.1)
        assert found.max_abs == 0.5
        assert found.cosine == pytest.approx(27 / (5 * np.hypot(3, 4.5)))

    def test_the_worst_input_counts(self):
        reference = [np.ones(4), 2 * np.ones(4)]
        found = judge(reference, [np.ones(4), 2.2 * np.ones(4)])
        assert found.scaled_error == pytest.approx(0.1)
        assert found.inputs_judged == 2
        assert "input 2 of 2" in found.reason

    @given(pairs)
    def test_scaled_error_is_zero_just_for_equal_arrays(self, pair):
        a, b = pair
        assert (judge(a, b).scaled_error == 0) == bool((a == b).all())

    @given(float_arrays)
    def test_the_reference_itself_always_passes(self, array):
        for precision in Precision:
            found = judge(array, array.copy(), precision, classifier=True)
            assert found.passed, found.reason
            assert (found.non_equal_percent, found.max_abs, found.cosine) == (
                0,
                0,
                pytest.approx(1),
            )

    @given(float_arrays, st.sampled_from([2.0**-60, 0.25, 1024.0]))
    def test_scaled_error_and_cosine_know_no_unit(self, array, unit):
        assume(np.abs(array).max() > 1e-3)
        candidate = disturbed(array, 1e-3)
        one, other = judge(array, candidate), judge(array * unit, candidate * unit)
        assert other.scaled_error == pytest.approx(one.scaled_error, rel=1e-5)
        assert other.cosine == pytest.approx(one.cosine)

    def test_an_all_zero_reference_divides_by_nothing(self):
        zeros = np.zeros(4, np.float32)
        assert judge(zeros, zeros).scaled_error == 0
        assert judge(zeros, zeros + np.float32(1e-9)).passed
        found = judge(zeros, np.full(4, 0.5, np.float32))
        assert not found.passed
        assert (found.scaled_error, found.cosine) == (0.5, 0.0)

    @pytest.mark.parametrize("size", [1e-200, 1e200])
    def test_squares_that_leave_float64_do_no_harm(self, size):
        reference = size * np.array([3.0, 4.0])
        found = judge(reference, size * np.array([3.0, 4.5]))
        assert found.scaled_error == pytest.approx(0.1)
        assert found.max_abs == pytest.approx(0.5 * size)

    def test_more_than_one_chunk(self):
        reference = np.random.default_rng(0).normal(size=(3, 1_000_003)).astype(np.float32)
        candidate = reference.copy()
        candidate[2, -1] += 1
        found = measure(reference, candidate)
        assert (found.unequal, found.non_equal, found.size) == (1, 1, reference.size)
        assert found.max_abs == pytest.approx(1, rel=1e-5)
        expected = np.linalg.norm((candidate - reference).ravel()) / np.linalg.norm(reference)
        assert found.scaled_error == pytest.approx(float(expected), rel=1e-4)

    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn])
    def test_short_floats_are_compared_as_the_numbers_they_are(self, dtype):
        reference = np.array([1.0, 2.0, 4.0]).astype(dtype)
        candidate = np.array([1.0, 2.0, 5.0]).astype(dtype)
        found = judge(reference, candidate, Precision.BF16)
        assert found.scaled_error == pytest.approx(1 / np.sqrt(21))
        assert judge(reference, reference.copy()).passed

    def test_empty_outputs_pass(self):
        assert judge(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).passed

    def test_complex_outputs_are_compared(self):
        reference = np.array([3 + 4j, 0])
        assert judge(reference, reference.copy()).passed
        assert judge(reference, np.array([3 + 4.5j, 0])).scaled_error == pytest.approx(0.1)


class TestNotFinite:
    @given(float_arrays, st.integers(0, 10**6), st.sampled_from([np.nan, np.inf, -np.inf]))
    def test_never_passes_wherever_it_is(self, array, place, value):
        for precision in Precision:
            bad = array.copy()
            bad.flat[place % bad.size] = value
            found = judge(array, bad, precision)
            assert not found.passed
            assert found.nan_count + found.inf_count == 1
            assert np.isfinite([found.scaled_error, found.cosine, found.max_abs]).all()

    @given(float_arrays, st.integers(0, 10**6), st.sampled_from([np.nan, np.inf]))
    def test_a_reference_that_has_it_judges_nothing(self, array, place, value):
        bad = array.copy()
        bad.flat[place % bad.size] = value
        assert not judge(bad, bad.copy()).passed
        assert not judge(bad, array).passed
        with pytest.raises(ReferenceFailed):
            check_reference([{"ok": array}, {"y": bad}])

    def test_a_mask_of_minus_infinity_must_be_kept_exactly(self):
        masked = np.array([[1.0, 2.0, -np.inf], [3.0, -np.inf, -np.inf]], np.float32)
        check_reference([{"y": masked}])
        assert judge(masked, masked.copy(), classifier=True).passed
        lost = np.where(np.isinf(masked), np.float32(-65504), masked)
        found = judge(masked, lost, Precision.FP16)
        assert not found.passed
        assert "a mask was lost" in found.reason
        more = masked.copy()
        more[0, 0] = -np.inf
        assert not judge(masked, more).passed

    def test_a_reference_that_is_all_mask_is_refused(self):
        with pytest.raises(ReferenceFailed, match="-inf everywhere"):
            check_reference([{"y": np.full(3, -np.inf)}])

    def test_integers_need_no_check_and_nothing_is_no_reference(self):
        check_reference([{"y": np.arange(3), "z": np.zeros((0, 2))}])
        with pytest.raises(ReferenceFailed):
            check_reference([])


class TestForm:
    @pytest.mark.parametrize(
        ("candidate", "words"),
        [
            ({}, "'y' is missing"),
            ({"y": np.ones((4, 2), np.float32)}, "shape (4, 2), the reference's has (2, 4)"),
            ({"y": np.ones((2, 4), np.float16)}, "dtype float16, the model says float32"),
            ({"y": np.full((2, 4), "a")}, "dtype str"),
        ],
    )
    def test_a_wrong_form_is_a_failure_in_words(self, candidate, words):
        reference = np.ones((2, 4), np.float32)
        found = compare(
            [{"y": reference}] * 2,
            [{"y": reference}, candidate],
            outputs=[spec(reference)],
            precision=Precision.INT8,
            classifier=True,
        )
        assert not found.passed
        assert words in found.reason
        assert "input 2 of 2" in found.reason
        assert found.non_equal_percent == 100

    @given(hnp.arrays(np.int64, (2, 3), elements=st.integers(-(2**62), 2**62)))
    def test_integers_must_be_equal_even_where_float64_sees_no_difference(self, array):
        changed = array.copy()
        changed[0, 0] += 1
        assert judge(array, array.copy(), Precision.INT8).passed
        assert not judge(array, changed, Precision.INT8).passed

    def test_booleans_and_text_must_be_equal(self):
        for array, other in (
            (np.array([True, False]), np.array([True, True])),
            (np.array(["cat", "dog"], object), np.array(["cat", "cat"], object)),
            (np.array([1, 2]).astype(ml_dtypes.int4), np.array([1, 3]).astype(ml_dtypes.int4)),
        ):
            assert judge(array, array.copy(), Precision.FP8).passed
            found = judge(array, other, Precision.FP8)
            assert not found.passed
            assert "1 of 2 elements differ" in found.reason

    def test_lists_of_different_length_are_a_mistake_of_the_caller(self):
        for reference, candidate in (([{}], []), ([], [])):
            with pytest.raises(ValueError, match="one candidate mapping"):
                compare(
                    reference, candidate, outputs=[], precision=Precision.FP32, classifier=False
                )


class TestNothing:
    """An output that carries nothing never passes, even where the thresholds forbid nothing."""

    anything = {"scaled_error": 1e9, "cosine": -1.0}  # noqa: RUF012

    @given(
        st.floats(-300, 30),
        st.integers(0, 99),
        st.sampled_from(list(Precision)),
        st.sampled_from([0.0, 1e-3]),
    )
    def test_zeros_fail_however_small_the_reference(self, exponent, seed, precision, left):
        reference = logits(4, 6, seed).astype(np.float64) * 10.0**exponent
        found = judge(reference, reference * left, precision, thresholds=self.anything)
        assert not found.passed
        assert "nearly zero" in found.reason
        assert judge(reference, reference * 0.5, precision, thresholds=self.anything).passed

    @pytest.mark.parametrize("precision", list(Precision))
    @pytest.mark.parametrize("scale", [0.05, 1e-2])
    def test_a_constant_fails_though_it_is_near(self, precision, scale):
        reference = (0.5 + scale * logits(20, 1)).astype(np.float32)
        candidate = np.full_like(reference, reference.mean())
        found = judge(reference, candidate, precision, thresholds=self.anything)
        assert not found.passed
        assert "nearly constant" in found.reason

    def test_rows_that_are_all_the_same_fail_though_they_are_near(self):
        common = 10 * logits(1, 50)
        reference = common + 0.5 * logits(8, 50, seed=5)
        candidate = np.repeat(reference.mean(0, keepdims=True), 8, axis=0)
        assert measure(reference, candidate).scaled_error < DEFAULTS[Precision.INT8].scaled_error
        found = judge(reference, candidate, Precision.INT8)
        assert not found.passed
        assert "does not depend on the input" in found.reason

    def test_what_the_precision_cannot_resolve_may_be_constant(self):
        reference = np.float32(1 - np.array([1e-5, 2e-5, 3e-5, 0]))
        rounded = reference.astype(np.float16).astype(np.float32)
        assert np.ptp(rounded) == 0
        assert judge(reference, rounded, Precision.FP16).passed
        assert judge(np.full(4, 0.3), np.full(4, 0.3)).passed

    def test_a_mask_is_no_reason_to_fail(self):
        reference = np.array([[1.0, 2.0, -np.inf], [3.0, -np.inf, -np.inf]], np.float32)
        assert judge(reference, reference.copy(), thresholds=self.anything).passed

    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16])
    def test_short_floats_are_judged_too(self, dtype):
        reference = logits().astype(dtype)
        assert judge(reference, reference.copy(), Precision.BF16).passed
        found = judge(reference, np.zeros_like(reference), Precision.BF16)
        assert "nearly zero" in found.reason


class TestTop1:
    def test_another_class_is_seen_though_the_error_is_small(self):
        reference = logits(50, 1000)
        candidate = reference.copy()
        best = reference.max()
        reference[7, :2] = best + 1.0, best + 0.9
        candidate[7, :2] = best + 0.9, best + 1.0
        found = judge(reference, candidate, classifier=True, thresholds={"scaled_error": 0.1})
        assert found.top1_agreement == pytest.approx(49 / 50)
        assert not found.passed
        assert "another class" in found.reason
        assert judge(reference, candidate, thresholds={"scaled_error": 0.1}).passed

    def test_a_tie_of_the_reference_may_go_either_way(self):
        reference = np.array([[5.0, 5.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
        candidate = np.array([[5.0, 5.00001, 0.0], [1.0, 0.0, 0.0]], np.float32)
        assert reference.argmax(1)[0] != candidate.argmax(1)[0]
        found = judge(reference, candidate, classifier=True)
        assert (found.passed, found.top1_agreement) == (True, 1.0)

    def test_one_row_of_eight_is_no_measure_of_a_hundredth(self):
        reference = logits(8, 10)
        reference[0, :2] = 10, 9.5
        candidate = reference.copy()
        candidate[0, :2] = 9.5, 10
        loose = {"scaled_error": 0.1, "cosine": 0.9}
        assert judge(reference, candidate, Precision.FP16, classifier=True, thresholds=loose).passed
        assert not judge(reference, candidate, classifier=True, thresholds=loose).passed

    def test_a_row_with_nan_agrees_with_nothing(self):
        reference = logits(2, 4)
        candidate = reference.copy()
        candidate[1, 2] = np.nan
        assert judge(reference, candidate, classifier=True).top1_agreement == 0.5

    def test_scores_with_trailing_axes_of_one_are_scores(self):
        reference = logits(4, 10).reshape(4, 10, 1, 1)
        assert judge(reference, reference.copy(), classifier=True).top1_agreement == 1.0

    def test_only_the_first_output_is_a_classifiers(self):
        array = logits()
        found = compare(
            [{"y": array, "z": array}],
            [{"y": array, "z": array}],
            outputs=[spec(array), spec(array, "z")],
            precision=Precision.FP32,
            classifier=True,
        )
        assert [o.top1_agreement for o in found.outputs] == [1.0, None]


class TestLabels:
    def test_right_answers_image_by_image(self):
        reference = np.eye(4, 5, dtype=np.float32)
        candidate = reference.copy()
        candidate[3] = [0, 0, 0, 0, 1]
        found = judge_labels(["a", "b", "c", "d"], [0, 1, 0, 3], reference, candidate)
        assert found.reference == (0, 1, 2, 3)
        assert found.candidate == (0, 1, 2, 4)
        assert (found.reference_top1, found.candidate_top1) == (0.75, 0.5)
        assert found.changed == ("d",)

    def test_a_row_of_nan_is_no_answer(self):
        scores = np.eye(2, dtype=np.float32)
        broken = np.full((2, 2), np.nan, np.float32)
        found = judge_labels(["a", "b"], [0, 1], scores, broken)
        assert found.candidate == (-1, -1)
        assert found.candidate_top1 == 0.0

    @pytest.mark.parametrize(
        ("precision", "passes"), [(Precision.FP32, False), (Precision.INT8, True)]
    )
    def test_losing_right_answers_fails_by_precision(self, precision, passes):
        scores = np.eye(10, dtype=np.float32)
        worse = scores.copy()
        worse[0] = np.roll(worse[0], 1)
        labelled = judge_labels([str(n) for n in range(10)], range(10), scores, worse)
        found = judge(scores, scores.copy(), precision, labelled=labelled)
        assert found.passed is passes
        assert found.labelled is labelled
        assert passes or "1 fewer, at most 0 allowed" in found.reason

    def test_gaining_right_answers_is_no_failure(self):
        scores = np.eye(4, dtype=np.float32)
        labelled = judge_labels(list("abcd"), [1, 1, 2, 3], scores, scores[[1, 1, 2, 3]])
        assert judge(scores, scores.copy(), labelled=labelled).passed

    def test_a_failed_guard_fails_and_an_undecided_one_is_kept(self):
        scores = np.eye(10, dtype=np.float32)[np.arange(120) % 10]
        labels = np.arange(120) % 10
        for wrong, max_drop, verdict in (
            (60, 5.0, Verdict.FAILED),
            (1, 0.5, Verdict.UNDECIDED),
            (1, 10.0, Verdict.OK),
        ):
            answers = labels.copy()
            answers[:wrong] = (answers[:wrong] + 1) % 10
            guard = guard_top1(labels, labels, answers, max_drop=max_drop, top1_loss=0.0)
            found = judge(scores, scores.copy(), Precision.INT8, guard=guard, real_only=True)
            assert guard.verdict is verdict
            assert found.passed is (verdict is not Verdict.FAILED)
            assert (found.guard, found.real_only) == (guard, True)
            assert found.reason == ("" if found.passed else guard.reason)

    def test_the_guard_of_labels_holds_reduced_precision_to_the_limit_alone(self):
        scores = np.eye(10, dtype=np.float32)
        labelled = judge_labels([str(n) for n in range(10)], range(10), scores, scores)
        assert guard_labels(labelled, Precision.INT8, max_drop=0.5).verdict is Verdict.UNDECIDED
        assert guard_labels(labelled, Precision.FP32, max_drop=0.5).verdict is Verdict.OK
        assert guard_labels(labelled, Precision.INT8).verdict is Verdict.OK

    def test_every_image_needs_a_label(self):
        with pytest.raises(ValueError, match="every image"):
            judge_labels(["a", "b"], [1], np.eye(2), np.eye(2))
