"""What each precision may lose, and which figures decide."""

import ml_dtypes
import numpy as np
import pytest

from judging import disturbed, judge, logits, spec
from peregrine.errors import OptionError
from peregrine.guard import guard_scores, guard_top1
from peregrine.results import Verdict
from peregrine.thresholds import GUARDED
from peregrine.types import Precision
from peregrine.validate import (
    DEFAULTS,
    Thresholds,
    compare,
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
