"""Why a candidate's outputs are wrong, in words."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from judging import disturbed, judge, logits, spec
from peregrine.types import Precision
from peregrine.validate import (
    compare,
)


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
