"""What an output must keep to, by precision, and the measurements behind it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from peregrine.errors import OptionError, did_you_mean
from peregrine.types import Precision


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an output must keep to. Integers and booleans must be equal, NaN and Inf are never
    allowed, whatever these say."""

    scaled_error: float
    """Largest allowed ||candidate - reference|| / ||reference||, for any judged input. A stack
    of images is one input: the norms are over all of them, and single ones may be worse."""
    cosine: float
    """Smallest allowed cosine similarity, for any judged input."""
    top1_agreement: float
    """Smallest allowed share of rows with the reference's class, over all judged inputs. The
    rows that may disagree are rounded up, since one row of eight is no measure of 1%."""
    tie: float
    """Two scores of a row are tied when nearer than this share of the row's standard deviation."""
    top1_loss: float
    """Largest allowed net loss of right answers on labelled images, as a share of images;
    rounded up to whole images."""

    @classmethod
    def of(
        cls,
        precision: Precision,
        overrides: Mapping[str, float] | None = None,
        *,
        guarded: bool = False,
    ) -> Thresholds:
        """The defaults of a precision, with some of the fields set otherwise.

        `guarded`: a guard judges the accuracy, so that the defaults need only catch nonsense.

        Raises:
            OptionError: an unknown field, or a value that no output could meet or fail.
        """
        defaults = (GUARDED if guarded else DEFAULTS)[precision]
        known = [f.name for f in dataclasses.fields(cls)]
        for name, value in (overrides or {}).items():
            if name not in known:
                raise OptionError(
                    f"There is no threshold {name!r}.{did_you_mean(name, known)}",
                    fix=f"Use one of: {', '.join(known)}.",
                )
            low, high = (-1.0, 1.0) if name == "cosine" else (0.0, math.inf)
            if name in ("top1_agreement", "top1_loss"):
                high = 1.0
            if not low <= value <= high:
                raise OptionError(
                    f"A threshold {name} of {value} makes no sense.",
                    fix=f"Give a number from {low:g} to {high:g}.",
                )
        return dataclasses.replace(defaults, **dict(overrides or {}))


# The scaled error is what decides; the rest would catch what it cannot see. A scaled error of e
# still leaves a cosine of at least sqrt(1 - e^2), so the cosines are the round number below that.
#
# fp32: rounding is 6e-8 a step; other orders of summation, fused operations and Winograd
#   convolutions leave 1e-6 to 1e-5 at the end of a network of 150 layers. 1e-4 lets all of that
#   pass and still catches tf32 or bf16 arithmetic that slipped in (3e-4 and up).
# tf32, fp16: both round at 5e-4; one layer measures 2e-4, a conditioned network 1e-3 to 5e-3.
# bf16: rounds at 4e-3, eight times as coarse; a trained EfficientNet-Lite0 measures 0.04 over 120
#   photos and 0.08 on the worst of them.
# int8, fp8 (E4M3 rounds at 6%): on the same photos, two quantisers of the same network that keep
#   its top-1 within one photo leave 0.11 and 0.18 on average, with 0.98 of the classes; the worst
#   single photo has 0.23 and 0.45. So 0.3 over a stack is a limit that what works keeps to.
DEFAULTS: Mapping[Precision, Thresholds] = {
    Precision.FP32: Thresholds(1e-4, 0.999999, 1.0, 1e-3, 0.0),
    Precision.TF32: Thresholds(2e-2, 0.9995, 0.99, 2e-2, 0.005),
    Precision.FP16: Thresholds(2e-2, 0.9995, 0.99, 2e-2, 0.005),
    Precision.BF16: Thresholds(1e-1, 0.99, 0.97, 5e-2, 0.01),
    Precision.INT8: Thresholds(3e-1, 0.95, 0.90, 5e-2, 0.02),
    Precision.FP8: Thresholds(3e-1, 0.95, 0.90, 5e-2, 0.02),
}

_NONSENSE = {"scaled_error": 0.6, "cosine": 0.8}
GUARDED: Mapping[Precision, Thresholds] = {
    precision: dataclasses.replace(limits, **_NONSENSE)
    if precision in (Precision.INT8, Precision.FP8)
    else limits
    for precision, limits in DEFAULTS.items()
}
"""The defaults where a guard decides; see the words of `peregrine.validate`."""

RESOLVED: Mapping[Precision, float] = {
    Precision.FP32: 1e-6,
    Precision.TF32: 1e-3,
    Precision.FP16: 1e-3,
    Precision.BF16: 8e-3,
    Precision.INT8: 8e-3,
    Precision.FP8: 8e-3,
}
"""Differences within an output, as a share of its largest value, that a precision may round away.
For int8 two of its 255 steps; fp8 engines give their outputs in 16 bits."""
