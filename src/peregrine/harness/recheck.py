"""A valid row judged once more, in another process: what it saved, and what it computes beside
itself, must be what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peregrine.harness import wire
from peregrine.harness.batching import tile
from peregrine.harness.judged import FeedSet
from peregrine.harness.trial import Setting
from peregrine.results import CandidateResult, Validation
from peregrine.types import Array, Precision
from peregrine.validate import compare


@dataclass(frozen=True, slots=True)
class Recheck:
    """Inputs of one batch, and what the row must answer to them."""

    setting: Setting
    sets: tuple[FeedSet, ...]
    """The first is `judging.lead(batch)`."""
    expected: tuple[dict[str, Array], ...]
    precision: Precision

    @classmethod
    def of(cls, setting: Setting, row: CandidateResult, batch: int) -> Recheck:
        """By the reference's outputs, or the row's own where only real inputs judged it."""
        judging, model = setting.judging, setting.model
        lead = judging.lead(batch)
        own = setting.own_outputs(row.candidate, batch)
        if own.is_dir():  # the same but for rounding
            return cls(setting, (lead,), (wire.load_arrays(own),), Precision.FP16)
        sets = (lead, *(s for s in judging.for_batch(batch) if s != lead))
        outputs = (s.outputs(setting.run) for s in sets)
        expected = tuple(tile(model.outputs, model.batch, o, batch) for o in outputs)
        return cls(setting, sets, expected, row.precision)

    def judge(self, found: Sequence[dict[str, Array]]) -> Validation:
        """Judge answers; the i-th is to the i-th of `sets`, which begin anew where they end."""
        return compare(
            [self.expected[i % len(self.expected)] for i in range(len(found))],
            found,
            outputs=self.setting.model.outputs,
            precision=self.precision,
            classifier=self.setting.model.classifier,
            thresholds=self.setting.request.thresholds or None,
        )
