"""The judgement of a candidate's outputs: against the reference's, and on labelled items."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output of a candidate against the reference, over every judged input."""

    output: str
    passed: bool
    non_equal_percent: float
    """Elements outside `numpy.isclose(rtol=1e-4, atol=1e-8)`, in percent: the paper's measure."""
    non_equal_percent_1e3: float
    """The same at rtol=1e-3, the paper's Table III."""
    scaled_error: float
    """max over inputs of ||candidate - reference|| / ||reference||, Euclidean norms."""
    cosine: float
    """Smallest cosine similarity over inputs."""
    max_abs: float
    nan_count: int
    inf_count: int
    """NaN and Inf elements that the reference does not have at the same place."""
    top1_agreement: float | None = None
    """Share of rows with the reference's arg max (ties within the tolerance count as equal);
    None where the output is no classifier's."""
    reason: str = ""
    """A plain sentence where it did not pass: how far, likely why."""


@dataclass(frozen=True, slots=True)
class LabelledAccuracy:
    """Top-1 on labelled images, image by image."""

    images: tuple[str, ...]
    labels: tuple[int, ...]
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    reference_top1: float
    """Share of images, 0 to 1."""
    candidate_top1: float
    changed: tuple[str, ...]
    """Images where the candidate's class is not the reference's."""


class Verdict(enum.StrEnum):
    """What the accuracy guard says of a candidate."""

    OK = "ok"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Guard:
    """Accuracy of candidate and reference on the same real items, item by item."""

    measure: str
    """`top-1` of labelled images, or the user's metric as `module:function`."""
    unit: str
    """`%` (points of a share) or empty for a metric's own unit."""
    items: int
    reference: float
    """Mean over items, in percent for top-1."""
    candidate: float
    drop: float
    """`reference - candidate`, in `unit`: above zero is a loss."""
    ci95: tuple[float, float]
    """95% interval of the drop, from the items' paired differences."""
    method: str
    """How the interval was made, e.g. `paired score interval (Tango 1998)`."""
    verdict: Verdict
    worse: int
    """Items that the reference has better than the candidate (right and wrong, for top-1)."""
    better: int
    max_drop: float | None = None
    """What the user allows, in `unit`; None judges the drop itself by `top1_loss`."""
    p_value: float | None = None
    """Exact McNemar test that candidate and reference are equally often right; top-1 only."""
    more_items: int | None = None
    """About how many more items would decide, where it is undecided."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Validation:
    """The judgement of one candidate. The flat figures are the worst over its outputs."""

    passed: bool
    non_equal_percent: float
    non_equal_percent_1e3: float
    scaled_error: float
    cosine: float
    max_abs: float
    nan_count: int
    inf_count: int
    top1_agreement: float | None
    inputs_judged: int
    outputs: tuple[OutputComparison, ...]
    thresholds: Mapping[str, float]
    labelled: LabelledAccuracy | None = None
    reason: str = ""
    guard: Guard | None = None
    real_only: bool = False
    """Only real inputs were judged: a quantised graph is calibrated for them, not for noise."""
