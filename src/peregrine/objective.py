"""What a user wants to be best at, and what must be kept to: the objective of a race."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from peregrine.errors import OptionError, did_you_mean
from peregrine.results import Boundary, CandidateResult, Measurement


class Goal(enum.StrEnum):
    """What is to be small or large."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Objective:
    """What the winner is to be best at, and what it must keep to.

    Made by `Objective.latency`, `.throughput` and `.memory`, or by `Objective.parse`.
    """

    goal: Goal = Goal.LATENCY
    batch: int | None = 1
    """The batch that decides; None takes each row's best (throughput) or smallest (memory)."""
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    boundary: Boundary = Boundary.HOST

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"A batch of {self.batch} is no batch.", fix="Give 1 or more.")
        for name, value in (("latency", self.max_latency_ms), ("memory", self.max_memory_mb)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(
                    f"A largest {name} of {value} cannot be met.",
                    fix="Give a number above 0, or leave the limit out.",
                )

    @classmethod
    def latency(cls, max_memory_mb: float | None = None, batch: int = 1) -> Objective:
        """The smallest median latency at one batch."""
        return cls(Goal.LATENCY, batch, None, max_memory_mb)

    @classmethod
    def throughput(
        cls, max_latency_ms: float | None = None, max_memory_mb: float | None = None
    ) -> Objective:
        """The most items a second, each row at the best batch that meets the limits."""
        return cls(Goal.THROUGHPUT, None, max_latency_ms, max_memory_mb)

    @classmethod
    def memory(cls, max_latency_ms: float | None = None) -> Objective:
        """The smallest peak memory, each row at its smallest measured batch."""
        return cls(Goal.MEMORY, None, max_latency_ms)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
        batch: int | None = None,
    ) -> Objective:
        """An objective from its name ("latency", "throughput", "memory") and limits.

        Raises:
            OptionError: an unknown name (with the nearest one), or a limit or batch on the
                very thing that the objective already decides by.
        """
        name = text.strip().lower()
        if name not in list(Goal):
            raise OptionError(
                f"There is no objective {text!r}.{did_you_mean(name, Goal)}",
                fix="Use latency, throughput or memory.",
            )
        goal = Goal(name)
        if goal is Goal.LATENCY and max_latency_ms is not None:
            raise OptionError(
                "A latency objective takes no largest latency: it looks for the smallest one.",
                fix="Drop --max-latency, or use --objective throughput.",
            )
        if goal is Goal.MEMORY and max_memory_mb is not None:
            raise OptionError(
                "A memory objective takes no largest memory: it looks for the smallest one.",
                fix="Drop --max-memory, or use --objective latency.",
            )
        if goal is Goal.LATENCY:
            return cls.latency(max_memory_mb, 1 if batch is None else batch)
        return cls(goal, batch, max_latency_ms, max_memory_mb)

    def __str__(self) -> str:
        at = f" at batch {self.batch}" if self.batch is not None else ""
        limits = []
        if self.max_latency_ms is not None:
            limits.append(f"p95 latency at most {self.max_latency_ms:g} ms")
        if self.max_memory_mb is not None:
            limits.append(f"memory at most {self.max_memory_mb:g} MB")
        given = f" with {' and '.join(limits)}" if limits else ""
        where = "" if self.boundary is Boundary.HOST else f" ({self.boundary} boundary)"
        return f"{self.goal}{at}{given}{where}"

    def measurement(self, result: CandidateResult) -> Measurement | None:
        """The measurement of a row that counts, or None when none meets the objective.

        This is also the batch and boundary at which a finalist is to be measured again.
        """
        meets = [m for m in self._eligible(result) if not self._measurement_failure(result, m)]
        if not meets:
            return None
        if self.goal is Goal.THROUGHPUT:
            return max(meets, key=lambda m: m.throughput_per_s)
        return min(meets, key=lambda m: m.batch)

    def constraint_failure(self, result: CandidateResult) -> str:
        """Why a measured row does not meet the limits, in a sentence; empty when it does."""
        eligible = self._eligible(result)
        if not eligible:
            at = f" at batch {self.batch}" if self.batch is not None else ""
            return f"It was not measured{at} at the {self.boundary} boundary."
        if self.measurement(result) is not None:
            return ""
        # What fails at the smallest batch fails at them all, but for noise.
        return self._measurement_failure(result, min(eligible, key=lambda m: m.batch))

    def _eligible(self, result: CandidateResult) -> list[Measurement]:
        return [
            m
            for m in result.measurements
            if m.boundary is self.boundary and self.batch in (None, m.batch)
        ]

    def _measurement_failure(self, result: CandidateResult, m: Measurement) -> str:
        if self.max_latency_ms is not None:
            latency = in_flight_latency_ms(m) if self.goal is Goal.THROUGHPUT else m.latency_ms.p95
            if latency > self.max_latency_ms:
                percentile = "p95 latency" if latency == m.latency_ms.p95 else "latency in flight"
                return (
                    f"Its {percentile} at batch {m.batch} is {latency:.3g} ms; "
                    f"at most {self.max_latency_ms:g} ms is allowed."
                )
        if self.max_memory_mb is not None:
            memory = memory_mb(result, m)
            if memory is None:
                return "Its memory was not measured, and the objective limits it."
            if memory > self.max_memory_mb:
                return (
                    f"Its peak {_memory_of(result)} at batch {m.batch} is {memory:.0f} MB; "
                    f"at most {self.max_memory_mb:g} MB is allowed."
                )
        return ""


def in_flight_latency_ms(m: Measurement) -> float:
    """The latency a caller sees at the measured throughput, milliseconds.

    The 95th percentile of single inferences; with several in flight at least the mean that
    Little's law gives them: inferences in flight over inferences a second.
    """
    if m.parallelism == 1 or m.throughput_per_s <= 0:
        return m.latency_ms.p95
    return max(m.latency_ms.p95, 1e3 * m.parallelism * m.batch / m.throughput_per_s)


def memory_mb(result: CandidateResult, m: Measurement | None = None) -> float | None:
    """Peak MiB a row takes: at `m` where that was recorded, else at the smallest batch. None
    where nothing was.

    On a GPU it is the device's memory alone, which is what is scarce there: a limit stands for a
    smaller card, and a CUDA runtime maps gigabytes of host memory that no card must hold.
    """
    if on_gpu(result):
        device = m.device_peak_mb if m is not None else None
        if device is None and result.memory is not None:
            device = result.memory.device_peak_mb
        return device
    host = m.peak_mb if m is not None else None
    if host is None and result.memory is not None:
        host = result.memory.host_peak_mb
    return host


def on_gpu(result: CandidateResult) -> bool:
    """Whether a row ran with a GPU, by what its memory and measurements say."""
    memory = result.memory
    known = memory is not None and (memory.device_memory_by or memory.device_peak_mb is not None)
    return bool(known) or any(m.device is not None for m in result.measurements)


def _memory_of(result: CandidateResult) -> str:
    return "device memory" if on_gpu(result) else "memory"


def item_ms(m: Measurement, objective: Objective) -> float:
    """Milliseconds an item takes, as the objective counts time."""
    if objective.goal is Goal.THROUGHPUT:
        return 1e3 / max(m.throughput_per_s, 1e-12)
    return m.latency_ms.p50 / m.batch
