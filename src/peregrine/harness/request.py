"""What a user asks of a race, as data that is kept in the run directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from peregrine.errors import OptionError
from peregrine.model.items import RANDOM
from peregrine.select import Objective
from peregrine.types import Precision

SWEEP = tuple(2**i for i in range(9))
"""1, 2, 4 ... 256: the paper's batches."""
IN_MEMORY = "<in memory>"
"""Stands in a request for calibration data that a program handed over."""


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that decides a race but the model's own bytes. Defaults suit one command."""

    source: str
    """What the user named: a zoo entry, a path, a factory; or words for an object in memory."""
    objective: Objective = field(default_factory=Objective.latency)
    batches: tuple[int, ...] = (1,)
    """Batches measured in full, the first of which decides a latency objective."""
    one_boundary: bool = False
    """Measure the batches behind the first at the objective's boundary alone."""
    sweep: tuple[int, ...] = ()
    """Batches swept for throughput, ascending, until saturation, memory or time ends it."""
    streams: tuple[int, ...] = ()
    """Numbers of sessions, ascending, that the final's leaders run side by side; empty: none."""
    find_max_batch: bool = False
    """Search for the largest batch that fits `worker_memory_mb`, up to `max_batch_cap`."""
    max_batch_cap: int = 256
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    backends: tuple[str, ...] = ()
    """Only these backends; empty for all."""
    only: tuple[str, ...] = ()
    """Only candidates whose id matches one of these (shell patterns are allowed). A pattern that
    begins with a whole `backend[variant]` also finds what that backend runs on request alone."""
    skip: tuple[str, ...] = ()
    """No candidates whose id or backend matches one of these."""
    first_in_final: tuple[str, ...] = ()
    """Ids that others are compared with: where memory for the final is short, they come first."""
    device: str = "cpu"
    """`cpu` or `cuda:0`; the API resolves `auto` before it comes here."""
    threads: int = 0
    seed: int = 0
    input_specs: tuple[str, ...] = ()
    """Input declarations, `name:dtype:shape[=values]`."""
    dims: Mapping[str, int] = field(default_factory=dict)
    weights: str = "auto"
    trust: bool = False
    feeds: tuple[str, ...] = ()
    """The user's `.npz` or `.npy` files to judge on."""
    images: str = ""
    preprocessing: str = ""
    """A JSON file that says how an image becomes an input, where the model does not."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    calibration: tuple[str, ...] = ()
    """What quantised graphs get their ranges from: directories of photos or of arrays, `.npz` or
    `.npy` files, or the word `random` alone."""
    labels: str = ""
    """A file of `file class-index` lines, where the photos' own directory has no labels.txt."""
    max_drop: float | None = None
    """Points of top-1 (or units of `metric`) that a row may certainly lose: the whole 95%
    interval of its drop must lie below. None judges the drop alone, by `top1_loss`."""
    metric: str = ""
    """`module:function` that scores outputs, an item each; more is better."""
    repair_s: float = 120.0
    """Seconds a failing conversion may take to be repaired; 0: never."""
    allow_undecided: bool = False
    """Let a row win whose accuracy the data cannot decide."""
    allow_fallback: bool = False
    """Let a candidate win that ran partly on another device than it names."""
    min_runs: int = 50
    """Samples a measurement, at least: the paper's number."""
    measure_s: float = 1.0
    """Seconds a measurement goes on when `min_runs` are done sooner."""
    measure_max_s: float = 60.0
    """Seconds after which a measurement ends even with fewer samples; the report says so."""
    sweep_s: float = 45.0
    """Seconds a candidate's sweep may take."""
    timeout_s: float = 600.0
    """Seconds any one step of a worker may take."""
    worker_memory_mb: float = 0.0
    """Resident MiB of a worker; 0 leaves a tenth of what is available to the rest."""
    final_rounds: int = 17
    jobs: int = 0
    """Rows that are built and judged at the same time; each is timed alone. For a GPU. 0: as many
    as the machine bears."""
    engine_cache: bool = True
    """Take an engine that an earlier race kept, where it is valid here, and keep those built.
    False builds every one anew, and keeps none."""
    command: str = ""
    """The command line that made this request, quoted for a shell."""

    def __post_init__(self) -> None:
        if not self.batches:
            raise OptionError("There is no batch to measure.", fix="Give --batch 1.")
        for batch in (*self.batches, *self.sweep):
            if batch < 1:
                raise OptionError(
                    f"A batch of {batch} is no batch.",
                    fix="Give whole numbers from 1: --batch 1,8.",
                )
        if list(self.streams) != sorted(set(self.streams)) or any(n < 1 for n in self.streams):
            raise OptionError(
                f"{', '.join(map(str, self.streams))} are no numbers of sessions.",
                fix="Give each once, from 1, the smallest first: --streams 1,2,4,8.",
            )
        if self.threads < 0:
            raise OptionError(
                f"There are no {self.threads} threads.", fix="Give 1 or more, or 0 for all cores."
            )
        if self.min_runs < 1 or self.final_rounds < 3:
            raise OptionError(
                "A race needs at least 1 run a measurement and 3 final rounds.",
                fix="Raise --runs or --rounds.",
            )
        if self.jobs < 0 or (self.jobs > 1 and not self.device.startswith("cuda")):
            raise OptionError(
                f"Rows cannot be built {self.jobs} at a time on {self.device}.",
                why="On a CPU a build takes the processors that another row is timed on.",
                fix="Use --jobs for a GPU, with 1 or more; or leave it out.",
            )
        self._check_accuracy()

    def _check_accuracy(self) -> None:
        if RANDOM in self.calibration and len(self.calibration) > 1:
            raise OptionError(
                "Random numbers beside real data would only spoil its ranges.",
                fix="Leave --calibration random out.",
            )
        if self.labels and not self.images and self.calibration in ((), (RANDOM,)):
            raise OptionError(
                "There are labels (--labels) and no photos.",
                fix="Name the photos with --images DIR or --calibration DIR.",
            )
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise OptionError(
                f"A drop of at most {self.max_drop:g} makes no sense.",
                fix="Give points of top-1, from 0: --max-drop 0.5.",
            )
        if not 0 <= self.repair_s < math.inf:
            raise OptionError(
                f"A repair cannot take {self.repair_s:g} s.",
                fix="Give seconds, or 0 to repair nothing: --repair-budget 120.",
            )
        location, _, function = self.metric.partition(":")
        if self.metric and not (location and function.isidentifier()):
            raise OptionError(
                f"The metric {self.metric!r} names no function.",
                fix="Write it as module:function: --metric my_metrics:accuracy.",
            )
