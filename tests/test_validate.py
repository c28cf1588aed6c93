import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peregrine.discrepancy import measure
from peregrine.errors import OptionError, ReferenceFailed
from peregrine.guard import guard_scores, guard_top1
from peregrine.results import Verdict
from peregrine.thresholds import GUARDED
from peregrine.types import Precision, TensorSpec
from peregrine.validate import (
    DEFAULTS,
    Thresholds,
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


def spec(array, name="y"):
    return TensorSpec(name, array.dtype.name, array.shape)


def judge(reference, candidate, precision=Precision.FP32, *, classifier=False, **more):
    """One output named y; lists are several inputs."""
    references = reference if isinstance(reference, list) else [reference]
    candidates = candidate if isinstance(candidate, list) else [candidate]
    return compare(
        [{"y": r} for r in references],
        [{"y": c} for c in candidates],
        outputs=[spec(references[0])],
        precision=precision,
        classifier=classifier,
        **more,
    )


def logits(rows=8, classes=10, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, classes)).astype(np.float32)


def disturbed(values, scale, seed=1):
    """Values with independent noise of `scale` times their norm."""
    noise = np.random.default_rng(seed).normal(0, 1, values.shape)
    noise *= scale * np.linalg.norm(values) / np.linalg.norm(noise)
    return (values + noise).astype(values.dtype)


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


class TestThresholds:
    @pytest.mark.parametrize(
        ("precision", "passes", "fails"),
        [
            (Precision.FP32, 2e-5, 3e-4),
            (Precision.TF32, 3e-3, 5e-2),
            (Precision.FP16, 3e-3, 5e-2),
            (Precision.BF16, 3e-2, 2e-1),
            (Precision.INT8, 2e-1, 5e-1),
            (Precision.FP8, 2e-1, 5e-1),
        ],
    )
    def test_each_precision_may_lose_what_it_must(self, precision, passes, fails):
        reference = logits(64, 100)
        assert judge(reference, disturbed(reference, passes), precision).passed
        assert not judge(reference, disturbed(reference, fails), precision).passed

    @pytest.mark.parametrize(
        ("precision", "dtype"),
        [(Precision.FP16, np.float16), (Precision.BF16, ml_dtypes.bfloat16)],
    )
    def test_a_network_that_really_computes_in_short_floats_passes_there_only(
        self, precision, dtype
    ):
        rng = np.random.default_rng(0)
        exact = coarse = rng.normal(size=(16, 256)).astype(np.float32)
        for _ in range(12):  # layers of He-initialised weights with ReLU
            weights = (rng.normal(size=(256, 256)) * np.sqrt(2 / 256)).astype(np.float32)
            exact = np.maximum(exact @ weights, 0)
            rounded = weights.astype(dtype).astype(np.float32)
            coarse = np.maximum(coarse.astype(dtype).astype(np.float32) @ rounded, 0)
        assert judge(exact, coarse, precision).passed
        assert not judge(exact, coarse, Precision.FP32).passed

    def test_the_defaults_do_not_contradict_themselves(self):
        for limits in (*DEFAULTS.values(), *GUARDED.values()):
            assert limits.cosine <= np.sqrt(1 - limits.scaled_error**2)

    def test_fields_can_be_set_one_by_one(self):
        reference = logits()
        candidate = disturbed(reference, 1e-3)
        assert not judge(reference, candidate).passed
        found = judge(reference, candidate, thresholds={"scaled_error": 1e-2, "cosine": 0.99})
        assert found.passed
        assert found.thresholds["scaled_error"] == 1e-2
        assert found.thresholds["top1_agreement"] == 1.0

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ({"scaled_eror": 1.0}, "Did you mean 'scaled_error'"),
            ({"cosine": 2.0}, "no sense"),
            ({"scaled_error": -1.0}, "no sense"),
            ({"top1_loss": float("nan")}, "no sense"),
        ],
    )
    def test_nonsense_is_refused(self, overrides, words):
        with pytest.raises(OptionError, match=words):
            Thresholds.of(Precision.FP16, overrides)


class TestWhatDecides:
    """Quantised arithmetic that keeps its top-1 may be far off; without labels it may not."""

    reference = logits(64, 100)
    off = disturbed(reference, 0.45)
    labels = reference.argmax(1)

    def test_labels_are_the_sharper_test_of_int8(self):
        right = guard_top1(self.labels, self.labels, self.labels, max_drop=10, top1_loss=0)
        for precision in (Precision.INT8, Precision.FP8):
            assert not judge(self.reference, self.off, precision).passed
            assert judge(self.reference, self.off, precision, guard=right).passed
            wild = disturbed(self.reference, 0.8)
            assert not judge(self.reference, wild, precision, guard=right).passed
        for precision in (Precision.FP16, Precision.BF16):
            assert not judge(self.reference, self.off, precision, guard=right).passed

    def test_a_metric_is_only_where_a_limit_makes_it_decide(self):
        scores = np.linspace(0.5, 0.9, 200)
        for max_drop, passes in ((None, False), (0.1, True)):
            guard = guard_scores("m:f", scores, scores, max_drop=max_drop, seed=0)
            assert guard.verdict is Verdict.OK
            assert judge(self.reference, self.off, Precision.INT8, guard=guard).passed is passes

    def test_a_threshold_of_the_users_own_is_kept(self):
        right = guard_top1(self.labels, self.labels, self.labels, max_drop=10, top1_loss=0)
        own = {"scaled_error": 0.4}
        assert not judge(
            self.reference, self.off, Precision.INT8, guard=right, thresholds=own
        ).passed

    def test_classes_must_agree_though_labels_are_right(self):
        right = guard_top1(self.labels, self.labels, self.labels, max_drop=10, top1_loss=0)
        other = self.reference.copy()
        rows = np.arange(20)
        second = np.argsort(other, axis=1)[:20, -2]
        best = self.labels[:20]
        other[rows, best], other[rows, second] = other[rows, second], other[rows, best]
        found = judge(self.reference, other, Precision.INT8, guard=right, classifier=True)
        assert not found.passed
        assert "another class" in found.reason

    def test_every_output_counts_without_labels(self):
        boxes, scores = logits(seed=1), logits(seed=2)
        found = compare(
            [{"boxes": boxes, "scores": scores}],
            [{"boxes": boxes, "scores": disturbed(scores, 0.5)}],
            outputs=[spec(boxes, "boxes"), spec(scores, "scores")],
            precision=Precision.INT8,
            classifier=False,
        )
        assert [o.passed for o in found.outputs] == [True, False]
        assert found.outputs[1].scaled_error == pytest.approx(0.5, rel=1e-3)

    def test_a_stack_of_photos_is_one_input(self):
        worst = self.reference.copy()
        worst[0] = disturbed(worst[0], 0.9)
        assert judge(self.reference, worst, Precision.INT8).passed
        one_by_one = judge(list(self.reference), list(worst), Precision.INT8)
        assert not one_by_one.passed


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


class TestCauses:
    @given(st.permutations(range(6)), st.sampled_from(list(Precision)))
    def test_rows_in_another_order_are_found(self, order, precision):
        assume(list(order) != list(range(6)))
        reference = logits(6, 40)
        found = judge(reference, reference[list(order)], precision)
        assert not found.passed
        assert "the rows of the batch are in another order" in found.reason

    @pytest.mark.parametrize(
        ("change", "precision", "words"),
        [
            (lambda y: y * 0, Precision.FP16, "underflow"),
            (lambda y: y * 0, Precision.FP32, "never been written"),
            (lambda y: np.where(y > 3, np.inf, y), Precision.FP16, "overflow: fp16 ends at 65504"),
            (lambda y: y * np.nan, Precision.FP32, "invalid operation"),
            (lambda y: y * 0 + 7, Precision.FP32, "every element is 7"),
            (lambda y: y * 2, Precision.INT8, "constant factor of 2"),
            (lambda y: disturbed(y, 0.01) / 255, Precision.INT8, "constant factor of 0.0039"),
            (lambda y: -y, Precision.FP32, "sign is flipped"),
            (lambda y: y + 3, Precision.FP32, "constant offset of 3"),
            (lambda y: y[[0] * len(y)], Precision.FP32, "every row repeats row 1"),
            (lambda y: y[[0, 0, 1, 1, 2, 2, 3, 3]], Precision.FP32, "answers to other rows"),
            (lambda y: y * (np.arange(8) < 5)[:, None], Precision.FP32, "3 of 8 rows are zeros"),
            (lambda y: y[:, ::-1], Precision.FP32, "values in another order"),
            (lambda y: disturbed(y, 2e-3), Precision.FP32, "what tf32 or fp16 arithmetic loses"),
            (lambda y: disturbed(y, 5e-2), Precision.FP32, "what bf16 arithmetic loses"),
            (lambda y: disturbed(y, 0.5), Precision.INT8, "too sensitive"),
            (lambda y: logits(8, 40, seed=9), Precision.FP32, "unrelated values"),
        ],
    )
    def test_the_usual_mistakes_are_named(self, change, precision, words):
        reference = logits(8, 40)
        found = judge(reference, change(reference).astype(np.float32), precision)
        assert not found.passed
        assert words in found.reason, found.reason
        assert found.reason.startswith("Output 'y'")
        assert found.reason.endswith(".")

    @pytest.mark.parametrize(
        ("factor", "change", "precision", "words"),
        [
            (
                4e-10,
                lambda y: y * 0,
                Precision.FP16,
                "all zeros, likely underflow: fp16 has nothing smaller than 6e-8, the reference's "
                "largest value is 3e-9.",
            ),
            (
                1,
                lambda y: y * 0,
                Precision.FP16,
                "underflow: fp16 has nothing smaller than 6e-8, so it happened inside: the "
                "reference's largest value is 7.5.",
            ),
            (1, lambda y: y * 0, Precision.INT8, "ranges that are far too wide"),
            (1, lambda y: y * 1e-3, Precision.FP32, "constant factor of 0.001"),
            (
                2e4,
                lambda y: np.where(np.abs(y) > 65504, np.inf, y),
                Precision.FP16,
                "overflow: fp16 ends at 65504, the reference's largest value is 1.5e+05",
            ),
            (
                1,
                lambda y: y * np.inf,
                Precision.FP8,
                "overflow: fp8 (E4M3) ends at 448, so it happened inside",
            ),
            (
                2e4,
                lambda y: np.clip(y, -65504, 65504),
                Precision.FP16,
                "saturated: fp16 ends at 65504, the reference's largest value is 1.5e+05",
            ),
            (
                2e-8,
                lambda y: y.astype(np.float16) * (np.abs(y) > 6e-8),
                Precision.FP16,
                "values became zero, likely underflow",
            ),
            (
                1,
                lambda y: y * 0 + 448,
                Precision.FP8,
                "every element is 448, where fp8 (E4M3) ends: saturated",
            ),
        ],
    )
    def test_underflow_and_overflow_are_named_with_numbers(self, factor, change, precision, words):
        reference = (logits(8, 40) * factor).astype(np.float32)
        with np.errstate(invalid="ignore"):
            candidate = change(reference).astype(np.float32)
        found = judge(reference, candidate, precision)
        assert not found.passed
        assert words in found.reason, found.reason

    def test_swapped_outputs_and_stale_results_are_named(self):
        a, b = logits(seed=1), logits(seed=2)
        both = [spec(a, "a"), spec(b, "b")]
        how = {"precision": Precision.FP32, "classifier": False}
        swapped = compare([{"a": a, "b": b}], [{"a": b, "b": a}], outputs=both, **how)
        assert "it is the reference's output 'b': outputs are swapped" in swapped.reason
        assert "'a': outputs are swapped" in swapped.reason
        stale = judge([a, b], [a, a])
        assert "it is the answer to input 1" in stale.reason

    @given(st.integers(0, 99), st.sampled_from([3e-4, 3e-3, 3e-2]))
    def test_mere_noise_is_not_called_a_mix_up(self, seed, scale):
        reference = logits(8, 1000, seed)
        found = judge(reference, disturbed(reference, scale, seed + 1000))
        assert "arithmetic loses" in found.reason


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
