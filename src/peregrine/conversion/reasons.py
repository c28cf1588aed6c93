"""Why a tensor does not fit a precision, from its values in fp32: a cause and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from peregrine.model.graphs import Graph
from peregrine.types import Array

FP16_LARGEST = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
"""6.1e-5. Below it fp16 loses bits, one for every halving."""
FP16_ZERO = 2.0**-25
"""3.0e-8: half of fp16's smallest number. What is not above it becomes zero."""
_E4M3_SPAN = 448 / 2.0**-6
"""Largest over smallest normal number of FP8 E4M3."""

# Where a cause is worth naming. Trained networks measure outlier ratios of 2 to 5 and a share of
# subnormal values below 1% (resnet50, mobilenet_v2, efficientnet_lite0 on photos).
_SUBNORMAL_SHARE = 0.1
_ZERO_SHARE = 0.01
_ORDINARY = 1e-3
"""A node's own error in fp16 up to which there is nothing to explain: twice its rounding."""
_CHANNEL_RATIO = 10.0
_VALUE_RATIO = 10.0
_CUT = 0.9
_MOST_FOR_PERCENTILE = 1 << 16


@dataclass(slots=True)
class Facts:
    """A float32 tensor over the items it was seen on."""

    channel_axis: int | None = None
    largest: float = 0.0
    """Of |x|."""
    low: float = 0.0
    high: float = 0.0
    values: int = 0
    nonzero: int = 0
    subnormal: int = 0
    """Non-zero values below fp16's smallest normal number, those that become zero included."""
    zeroed: int = 0
    """Non-zero values that become zero in fp16."""
    percentiles: list[float] = field(default_factory=list)
    """The 99.9th of |x|, of each item."""
    channels: Array | None = None
    """Largest |x| of each channel."""

    def add(self, values: Array) -> None:
        """One more item."""
        size = np.abs(values)
        finite = size[np.isfinite(size)]
        if not finite.size:
            return
        self.largest = max(self.largest, float(finite.max()))
        self.low = min(self.low, float(np.min(values, initial=0.0, where=np.isfinite(values))))
        self.high = max(self.high, float(np.max(values, initial=0.0, where=np.isfinite(values))))
        nonzero = finite > 0
        self.values += finite.size
        self.nonzero += int(nonzero.sum())
        self.subnormal += int((nonzero & (finite < FP16_SMALLEST_NORMAL)).sum())
        self.zeroed += int((nonzero & (finite <= FP16_ZERO)).sum())
        # Sorting every value of every tensor would take longer than the network itself.
        sample = finite[:: max(1, finite.size // _MOST_FOR_PERCENTILE)]
        self.percentiles.append(float(np.percentile(sample, 99.9)))
        axis = self.channel_axis
        if axis is not None and values.ndim > 1:
            axis %= values.ndim
            others = tuple(i for i in range(values.ndim) if i != axis)
            found = np.max(size, axis=others, initial=0.0, where=np.isfinite(size))
            if self.channels is None or self.channels.shape != found.shape:
                self.channels = found
            else:
                self.channels = np.maximum(self.channels, found)

    @property
    def channel_ratio(self) -> float:
        """Largest over median of the channels' largest |x|; 1 where there are few channels."""
        if self.channels is None or self.channels.size < 3:
            return 1.0
        median = float(np.median(self.channels))
        return self.largest / median if median > 0 else math.inf if self.largest else 1.0

    @property
    def value_ratio(self) -> float:
        """Largest |x| over its 99.9th percentile; 1 for a tensor too small to have one."""
        if not self.percentiles or self.values < 2000 * len(self.percentiles):
            return 1.0
        usual = max(self.percentiles)
        return self.largest / usual if usual > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How the converted graph quantises a tensor."""

    low: float
    high: float

    @property
    def span(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor of a node, as a reason is looked for in it."""

    tensor: str
    words: str
    """`its input`, `its output`, `its weights`."""
    facts: Facts
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    cause: str
    """range, underflow, outliers or coarse."""
    words: str
    tensor: str = ""
    """Whose values they are; empty where no single tensor is to blame."""

    def __str__(self) -> str:
        return f"{self.cause}: {self.words}"


def find(graph: Graph, seen: Sequence[Seen], error: float) -> Reason:
    """The likeliest single cause for the error of a node with these tensors.

    Args:
        graph: what it was converted to.
        seen: its inputs, weights and outputs, in fp32.
        error: scaled error of its own output; Inf where that is not finite.
    """
    if not seen:
        return Reason("coarse", _coarse(graph, error))
    if graph is Graph.FP16:
        found = _range(seen) or _underflow(seen, error)
    elif graph is Graph.BF16:
        found = None  # its range is fp32's
    elif graph is Graph.FP8:
        found = _range(seen) or _small_in_fp8(seen)
    else:
        # Weights have a scale a channel; what has no fixed scale stays as it is, but for
        # activations that are quantised as they come.
        ranged = [s for s in seen if s.scale or (graph is Graph.DYNAMIC and s.words == "its input")]
        found = _cut(ranged) or _outliers(ranged)
    return found or Reason("coarse", _coarse(graph, error))


def _range(seen: Sequence[Seen]) -> Reason | None:
    worst = max(seen, key=lambda s: s.facts.largest)
    if worst.facts.largest <= FP16_LARGEST:
        return None
    return Reason(
        "range",
        f"{worst.words} reaches {worst.facts.largest:.3g}, and fp16 ends at 65504",
        worst.tensor,
    )


def _underflow(seen: Sequence[Seen], error: float) -> Reason | None:
    if error < _ORDINARY:
        return None  # small values that nobody misses, as a softmax has

    def shares(s: Seen) -> tuple[float, float]:
        total = max(s.facts.nonzero, 1)
        return s.facts.zeroed / total, s.facts.subnormal / total

    worst = max(seen, key=shares)
    zeroed, subnormal = shares(worst)
    if zeroed >= _ZERO_SHARE:
        return Reason(
            "underflow",
            f"{zeroed:.0%} of the values of {worst.words} become zero in fp16 and {subnormal:.0%} "
            f"are below its smallest normal number, 6.1e-05; the largest is "
            f"{worst.facts.largest:.2g}",
            worst.tensor,
        )
    worst = max(seen, key=lambda s: shares(s)[1])
    subnormal = shares(worst)[1]
    if subnormal >= _SUBNORMAL_SHARE:
        return Reason(
            "underflow",
            f"{subnormal:.0%} of the values of {worst.words} are below fp16's smallest normal "
            "number, 6.1e-05, and lose digits",
            worst.tensor,
        )
    return None


def _cut(seen: Sequence[Seen]) -> Reason | None:
    """A calibrator that left the largest values out of its range."""
    worst, share = None, _CUT
    for s in seen:
        if s.scale is None or not s.facts.largest:
            continue
        # What an activation function takes away anyway is no loss: only the far end counts.
        reached = max(abs(s.scale.low), abs(s.scale.high)) / s.facts.largest
        if reached < share:
            worst, share = s, reached
    if worst is None or max(worst.facts.channel_ratio, worst.facts.value_ratio) < _CHANNEL_RATIO:
        return None
    facts = worst.facts
    if facts.channel_ratio >= _CHANNEL_RATIO:
        who = f"one channel of {worst.words} reaches {_times(facts.channel_ratio)} the others'"
    else:
        who = f"a few values of {worst.words} reach {_times(facts.value_ratio)} the others'"
    return Reason(
        "outliers",
        f"{who} range, up to {facts.largest:.3g}; the range was cut at "
        f"{facts.largest * share:.3g}, which loses them and leaves the others "
        f"{_steps(worst, max(facts.channel_ratio, facts.value_ratio))} of int8",
        worst.tensor,
    )


def _outliers(seen: Sequence[Seen]) -> Reason | None:
    if not seen:
        return None
    worst = max(seen, key=lambda s: s.facts.channel_ratio)
    ratio = worst.facts.channel_ratio
    if ratio >= _CHANNEL_RATIO:
        steps = _steps(worst, ratio)
        return Reason(
            "outliers",
            f"one channel of {worst.words} reaches {_times(ratio)} the others' range, so that "
            f"int8 has {steps} left for them",
            worst.tensor,
        )
    worst = max(seen, key=lambda s: s.facts.value_ratio)
    ratio = worst.facts.value_ratio
    if ratio >= _VALUE_RATIO:
        return Reason(
            "outliers",
            f"a few values of {worst.words} reach {_times(ratio)} its 99.9th percentile, so that "
            f"int8 has {_steps(worst, ratio)} left for all others",
            worst.tensor,
        )
    return None


def _steps(seen: Seen, ratio: float) -> str:
    """Steps of int8 over the range of what is not an outlier."""
    usual = seen.facts.largest / ratio
    negative = usual if seen.facts.low < 0 else 0.0
    span = seen.scale.span if seen.scale else seen.facts.high - seen.facts.low
    steps = int(255 * (usual + negative) / span) if span > 0 else 0
    return "1 step" if steps == 1 else f"{steps} steps"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if math.isfinite(ratio) else "infinitely many times"


def _small_in_fp8(seen: Sequence[Seen]) -> Reason | None:
    for s in seen:
        if s.facts.channel_ratio > _E4M3_SPAN:
            return Reason(
                "outliers",
                f"one channel of {s.words} reaches {_times(s.facts.channel_ratio)} the others' "
                f"range, more than FP8 E4M3 spans ({_E4M3_SPAN:.0f})",
                s.tensor,
            )
    return None


def _coarse(graph: Graph, error: float) -> str:
    step = {
        Graph.FP16: "fp16 rounds at 5e-4",
        Graph.BF16: "bf16 rounds at 4e-3",
        Graph.FP8: "FP8 E4M3 rounds at 6%",
    }.get(graph, "int8 has 255 steps")
    if not math.isfinite(error):
        return f"its output is not finite, though its values fit ({step})"
    return f"{step}, and its own output is off by {error:.2g} of its size; no single cause"
