"""What a user may say about a race: the options that `bench` and `build` share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from peregrine.cli.parse import (
    existing_data,
    existing_file,
    parse_batches,
    parse_counts,
    parse_pairs,
    parse_precisions,
    parse_size_mb,
)

# One option each, in the panel of the help that it belongs to.
_model = partial(typer.Option, rich_help_panel="Model")
_raced = partial(typer.Option, rich_help_panel="What to race")
_judging = partial(typer.Option, rich_help_panel="Judging")
_limits = partial(typer.Option, rich_help_panel="Limits")
output = partial(typer.Option, rich_help_panel="Output")

ModelArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A zoo name, an .onnx or .pt2 file, or package.module:factory.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, output("--json", help="Print report.json.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceOptions:
    """The words of the command line, as typed. Defaults are those of a `Request`."""

    inputs: Annotated[
        list[str] | None,
        _model(
            "--input",
            metavar="NAME:DTYPE:SHAPE",
            help="Declare an input, e.g. x:float32:Bx3x224x224 or ids:int64:Bx128=0..30522. "
            "Only needed where the model leaves it open. Repeat for several.",
        ),
    ] = None
    dims: Annotated[
        list[str] | None,
        _model("--dim", metavar="NAME=SIZE", help="Size of a symbolic dimension. Repeatable."),
    ] = None
    weights: Annotated[
        str, _model("--weights", help="auto, pretrained or random: for zoo networks.")
    ] = "auto"
    seed: Annotated[int, _model("--seed", help="Of random weights and inputs.")] = 0
    trust: Annotated[bool, _model("--trust", help="Load pickles: they can run any code.")] = False

    batch: Annotated[
        str,
        _raced(
            "--batch",
            metavar="N,N",
            help="Batches to measure in full, e.g. 1,8,32. Without it, bench measures 1 and "
            "sweeps; build measures 1.",
        ),
    ] = ""
    precision: Annotated[
        str,
        _raced(
            "--precision",
            metavar="P,P",
            help="Precisions to race: fp32, tf32, fp16, bf16, int8, fp8, e.g. fp32,int8; or auto "
            "for those that this device computes in.",
        ),
    ] = "fp32"
    device: Annotated[
        str, _raced("--device", help="cpu, cuda:0, or auto: an NVIDIA GPU where there is one.")
    ] = "auto"
    backends: Annotated[
        list[str] | None, _raced("--backend", metavar="NAME", help="Only this backend. Repeatable.")
    ] = None
    only: Annotated[
        list[str] | None,
        _raced(
            "--only",
            metavar="ID",
            help="Only this candidate; * is allowed. Repeatable. Finds rows, too, that are raced "
            "only by name: --only '*' --only 'torch_compile[max-autotune]*'.",
        ),
    ] = None
    skip: Annotated[
        list[str] | None,
        _raced("--skip", metavar="ID", help="Not this candidate or backend. Repeatable."),
    ] = None
    streams: Annotated[
        str,
        _raced(
            "--streams",
            metavar="N,N",
            help="After the final, run its leaders with so many sessions side by side, e.g. "
            "1,2,4,8: throughput and tail latency of each.",
        ),
    ] = ""
    find_max_batch: Annotated[
        bool, _raced("--find-max-batch", help="Search for the largest batch that fits.")
    ] = False

    objective: Annotated[
        str,
        _judging("--objective", help="What the winner is best at: latency, throughput or memory."),
    ] = "latency"
    max_latency: Annotated[
        float | None, _judging("--max-latency", metavar="MS", help="A slower row cannot win.")
    ] = None
    max_memory: Annotated[
        str,
        _judging("--max-memory", metavar="SIZE", help="A larger row cannot win, e.g. 500MB."),
    ] = ""
    runs: Annotated[int, _judging("--runs", help="Samples a measurement, at least.")] = 50
    rounds: Annotated[int, _judging("--rounds", help="Interleaved rounds of the final.")] = 17
    images: Annotated[
        str,
        _judging(
            "--images",
            metavar="DIR",
            help="Photos to judge on (labels.txt in it: 'file class'). 'default' for a few that "
            "come with scikit-image.",
        ),
    ] = ""
    preprocessing: Annotated[
        Path | None,
        _judging(
            "--preprocessing", metavar="FILE", help="JSON that says how a photo becomes an input."
        ),
    ] = None
    feeds: Annotated[
        list[Path] | None,
        _judging("--feeds", metavar="FILE", help="An .npz or .npy to judge on. Repeatable."),
    ] = None
    thresholds: Annotated[
        list[str] | None,
        _judging(
            "--threshold", metavar="NAME=VALUE", help="Override a validation threshold. Repeatable."
        ),
    ] = None
    calibration: Annotated[
        list[str] | None,
        _judging(
            "--calibration",
            metavar="PATH",
            help="What int8 and fp8 get their ranges from: a directory of photos or of .npz files, "
            "or an .npz or .npy. Repeatable. Without --images or --feeds, part of it judges. "
            "'random' for random numbers, which every report marks.",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        _judging(
            "--labels",
            metavar="FILE",
            help="Classes of the photos that judge ('file class' a line), where they are not in "
            "the photos' own labels.txt.",
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        _judging(
            "--max-drop",
            metavar="X",
            help="Points of top-1, or units of --metric, that a row may lose: its whole 95% "
            "interval must be below.",
        ),
    ] = None
    metric: Annotated[
        str,
        _judging(
            "--metric",
            metavar="MODULE:FUNCTION",
            help="Your own score of outputs, an item each; more is better.",
        ),
    ] = ""
    allow_undecided: Annotated[
        bool,
        _judging("--allow-undecided", help="Let a row win whose accuracy the data cannot decide."),
    ] = False
    allow_fallback: Annotated[
        bool, _judging("--allow-fallback", help="Let a row win that fell back elsewhere.")
    ] = False

    no_cache: Annotated[
        bool,
        _raced(
            "--no-cache",
            help="Build every engine anew, as none were kept of earlier races; see `peregrine "
            "cache list`.",
        ),
    ] = False

    threads: Annotated[int, _limits("--threads", help="Compute threads; 0: physical cores.")] = 0
    jobs: Annotated[
        int,
        _limits(
            "--jobs",
            help="Rows built at a time on a GPU; each is timed alone. 0: as many as it bears.",
        ),
    ] = 0
    timeout: Annotated[
        float, _limits("--timeout", metavar="S", help="Longest step of one worker, seconds.")
    ] = 600.0
    worker_memory: Annotated[
        str, _limits("--worker-memory", metavar="SIZE", help="Kill a worker above this, e.g. 8GiB.")
    ] = ""

    repair_budget: Annotated[
        float,
        _limits(
            "--repair-budget",
            metavar="S",
            help="Seconds to repair a conversion that lost too much; 0: never.",
        ),
    ] = 120.0

    quiet: Annotated[bool, output("--quiet", help="No progress on standard error.")] = False

    def for_api(self, batches: tuple[int, ...] = ()) -> dict[str, Any]:
        """Keyword arguments of `peregrine.bench`; `batches` is taken where --batch is not given.

        Raises:
            OptionError: a word that cannot be read, or a file that is not there.
        """
        # Its module brings numpy, which `--help` does not wait for.
        from peregrine.objective import Objective

        batches = parse_batches(self.batch) if self.batch else batches
        return {
            "batches": batches,
            "objective": Objective.parse(
                self.objective,
                max_latency_ms=self.max_latency,
                max_memory_mb=parse_size_mb(self.max_memory) if self.max_memory else None,
                batch=batches[0] if batches and self.objective == "latency" else None,
            ),
            "input_specs": tuple(self.inputs or ()),
            "dims": parse_pairs(self.dims or (), "--dim", int),
            "weights": self.weights,
            "seed": self.seed,
            "trust": self.trust,
            "precisions": parse_precisions(self.precision),
            "device": self.device,
            "backends": tuple(self.backends or ()),
            "only": tuple(self.only or ()),
            "skip": tuple(self.skip or ()),
            "streams": parse_counts(self.streams, "--streams") if self.streams else (),
            "find_max_batch": self.find_max_batch,
            "min_runs": self.runs,
            "final_rounds": self.rounds,
            "images": self._image_directory(),
            "preprocessing": existing_file(self.preprocessing) if self.preprocessing else "",
            "feeds": tuple(existing_file(path) for path in self.feeds or ()),
            "thresholds": parse_pairs(self.thresholds or (), "--threshold", float),
            "calibration": tuple(existing_data(word) for word in self.calibration or ()),
            "labels": existing_file(self.labels) if self.labels else "",
            "max_drop": self.max_drop,
            "metric": self.metric,
            "repair_s": self.repair_budget,
            "allow_undecided": self.allow_undecided,
            "allow_fallback": self.allow_fallback,
            "engine_cache": not self.no_cache,
            "threads": self.threads,
            "jobs": self.jobs,
            "timeout_s": self.timeout,
            "worker_memory_mb": parse_size_mb(self.worker_memory) if self.worker_memory else 0.0,
            "command": shlex.join(["peregrine", *_from_anywhere(sys.argv[1:])]),
        }

    def _image_directory(self) -> str:
        if self.images in ("", "default"):
            return self.images
        return str(Path(self.images).absolute())


_DIRECTORIES = ("--images", "--calibration")
"""Options that name directories. Elsewhere a directory's name may be a network's, too."""


def _from_anywhere(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line; files and directories of data by their whole paths, so that
    the command means the same in any directory."""
    for before, word in zip(("", *words), words, strict=False):
        data = before in _DIRECTORIES and word not in ("default", "random")
        try:
            path = Path(word)
            named = path.is_file() or (data and path.is_dir())
            yield str(path.absolute()) if named else word
        except OSError:  # too long to be a path
            yield word
