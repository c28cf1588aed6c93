"""One candidate's outputs against the reference's: which inputs judge it, and by what guard.

A quantised graph is calibrated for real inputs, and noise may leave its ranges: where there is
real data, it is judged on that alone. Labels or the user's metric then guard its accuracy.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.discrepancy import comparable, is_exact, measure
from peregrine.errors import OptionError
from peregrine.guard import guard_scores
from peregrine.harness import wire
from peregrine.harness.judged import IMAGES, FeedSet, image_chunk
from peregrine.harness.process import Worker
from peregrine.harness.reference import Judging
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory, slug
from peregrine.metric import load_metric, score
from peregrine.model.model import Model
from peregrine.results import Guard, Validation
from peregrine.types import Array, Candidate, Precision
from peregrine.validate import compare, guard_labels, judge_labels

_CALIBRATED = (Precision.INT8, Precision.FP8)
_UNSTEADY = "The same input gives another output the second time: something in the runtime races."
_STEADY = 1e-2
"""Scaled difference between two runs of one input. Sums in another order leave far less."""

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Answers:
    """What reference and candidate say to the same inputs."""

    feeds: Path
    expected: Outputs
    got: Outputs
    real: bool
    images: bool = False


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges the candidates of a race."""

    run: RunDirectory
    model: Model
    request: Request
    judging: Judging

    def check(self) -> None:
        """Score the reference by the user's metric, before anything is raced.

        Raises:
            OptionError: it cannot be loaded, it fails, or there is nothing real to score.
            ReferenceFailed: it gives the reference no finite score.
        """
        if not self.request.metric:
            return
        if not self.judging.has_real:
            raise OptionError(
                f"There is nothing for the metric {self.request.metric} to score.",
                why="A metric is of real inputs, and all that judges here is random.",
                fix="Give --feeds FILE, --images DIR or --calibration DIR.",
            )
        answers = [self._of_reference(s.feeds(self.run), s.outputs(self.run)) for s in self._real]
        if self.judging.images:
            feeds = self.run.file("feeds", IMAGES)
            answers.append(self._of_reference(feeds, self.judging.image_outputs(self.run), True))
        self._scored(Candidate("reference"), answers)

    @property
    def _real(self) -> list[FeedSet]:
        return [s for s in self.judging.sets if s.real]

    @staticmethod
    def _of_reference(feeds: Path, outputs: Outputs, images: bool = False) -> Answers:
        return Answers(feeds, outputs, outputs, True, images)

    def real_only(self, candidate: Candidate) -> bool:
        """Whether random inputs say nothing about this candidate."""
        return candidate.precision in _CALIBRATED and self.judging.has_real

    def first(
        self,
        worker: Worker,
        candidate: Candidate,
        batches: tuple[int, ...],
        phase: Callable[[str, str], None],
    ) -> Validation:
        """All inputs but random ones of the later `batches`, which wait for their own sessions."""
        real_only = self.real_only(candidate)
        sets = [
            s
            for s in self.judging.sets
            if s.real or (not real_only and (s.batch == batches[0] or s.batch not in batches))
        ]
        answers = []
        for number, feed_set in enumerate(sets):
            phase("validate", f"{number + 1} of {len(sets)}")
            answers.append(self._one(worker, candidate, feed_set))
        if sets:
            # Once more: a runtime may be right at its first inferences and race at later ones.
            answers.append(self._one(worker, candidate, sets[0]))
        steady = not sets or _same(answers[0].got, answers[-1].got)
        if self.judging.images:
            phase("images", str(len(self.judging.images)))
            answers.append(self._stream(worker, candidate, batches[0]))
        labelled = None
        if self.judging.labels:
            name = self.model.outputs[0].name
            labelled = judge_labels(
                self.judging.images,
                self.judging.labels,
                answers[-1].expected[name],
                answers[-1].got[name],
            )
        guard = None
        if self.request.metric:
            guard = self._scored(candidate, answers)
        elif labelled is not None:
            guard = guard_labels(
                labelled,
                candidate.precision,
                max_drop=self.request.max_drop,
                thresholds=self.request.thresholds,
            )
        validation = self._compare(candidate, answers, labelled=labelled, guard=guard)
        if validation.passed or steady:
            return validation
        return dataclasses.replace(validation, reason=f"{validation.reason} {_UNSTEADY}")

    def batch(self, worker: Worker, candidate: Candidate, batch: int) -> Validation:
        """One more batch, before it is measured."""
        if not self.real_only(candidate):
            lead = self.judging.lead(batch)
            expected = self.judging.expected(self.run, self.model, batch)
            got = self._outputs(worker, candidate, "outputs", lead.feeds(self.run), batch)
            answers = [Answers(lead.feeds(self.run), expected, got, lead.real)]
        elif self.judging.images:
            answers = [self._stream(worker, candidate, batch)]
        else:
            answers = [self._one(worker, candidate, self._real[0])]
        return self._compare(candidate, answers)

    def _one(self, worker: Worker, candidate: Candidate, feed_set: FeedSet) -> Answers:
        feeds = feed_set.feeds(self.run)
        got = self._outputs(worker, candidate, "outputs", feeds, feed_set.batch)
        return Answers(feeds, feed_set.outputs(self.run), got, feed_set.real)

    def _stream(self, worker: Worker, candidate: Candidate, batch: int) -> Answers:
        """The stack of items, so many at a time."""
        feeds = self.run.file("feeds", IMAGES)
        chunk = image_chunk(self.model, batch)
        got = self._outputs(worker, candidate, "stream", feeds, chunk)
        return Answers(feeds, self.judging.image_outputs(self.run), got, True, images=True)

    def _outputs(
        self, worker: Worker, candidate: Candidate, command: str, feeds: Path, batch: int
    ) -> Outputs:
        out = self.run.file("outputs", slug(candidate.id))
        worker.call(
            command,
            timeout_s=self.request.timeout_s,
            feeds=str(feeds),
            batch=batch,
            out=str(out),
        )
        arrays = wire.load_arrays(out)
        shutil.rmtree(out)
        return arrays

    def _scored(self, candidate: Candidate, answers: list[Answers]) -> Guard:
        """The user's metric on every real input."""
        metric = load_metric(self.request.metric)
        scores: dict[bool, list[Array]] = {True: [], False: []}
        for answer in answers:
            if not answer.real:
                continue
            inputs = wire.load_arrays(answer.feeds)
            has_labels = answer.images and bool(self.judging.labels)
            labels = np.asarray(self.judging.labels) if has_labels else None
            for is_reference, outputs in ((True, answer.expected), (False, answer.got)):
                scores[is_reference].append(score(metric, outputs, inputs, labels))
        # What is allowed is for reduced precision: fp32 must be right.
        allowed = None if candidate.precision is Precision.FP32 else self.request.max_drop
        return guard_scores(
            self.request.metric,
            np.concatenate(scores[True]),
            np.concatenate(scores[False]),
            max_drop=allowed,
            seed=self.request.seed,
        )

    def _compare(self, candidate: Candidate, answers: list[Answers], **extra: Any) -> Validation:
        thresholds: Mapping[str, float] | None = self.request.thresholds or None
        return compare(
            [a.expected for a in answers],
            [a.got for a in answers],
            outputs=self.model.outputs,
            precision=candidate.precision,
            classifier=self.model.classifier,
            thresholds=thresholds,
            real_only=self.real_only(candidate),
            **extra,
        )


def _same(one: Outputs, other: Outputs) -> bool:
    """Whether two runs of one input agree."""
    return all(
        comparable(one[name], other[name])
        and (found := measure(one[name], other[name])).sound
        and found.scaled_error <= _STEADY
        for name in one
        if not is_exact(one[name].dtype)
    )
