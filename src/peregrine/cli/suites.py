"""The verbs of suites: `suite paper`, `suite resnet50`, `suite report`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peregrine.cli.console import say, watched
from peregrine.cli.options import output
from peregrine.cli.parse import parse_batches, parse_pairs, parse_precisions, parse_size_mb
from peregrine.cli.unfold import unfolded
from peregrine.errors import OptionError

if TYPE_CHECKING:
    from peregrine.suite.run import Progress

_NOT_WHOLE = 6

suite = typer.Typer(no_args_is_help=True)

_asked = partial(typer.Option, rich_help_panel="What to measure")
_limits = partial(typer.Option, rich_help_panel="Limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """What every suite takes, as typed."""

    out: Annotated[
        Path | None,
        output("--out", metavar="SUITE_DIR", help="Directory of the suite; taken up if begun."),
    ] = None
    resume: Annotated[
        Path | None,
        output("--resume", metavar="SUITE_DIR", help="Go on with a suite as it was asked for."),
    ] = None
    batches: Annotated[
        str, _asked("--batches", metavar="N,N", help="Batches, the smallest first.")
    ] = ""
    workflows: Annotated[
        str,
        _asked("--workflows", metavar="W,W", help="Only these workflows, e.g. W0,W3,native:fp16."),
    ] = ""
    precision: Annotated[
        str, _asked("--precision", metavar="P,P", help="fp32 as published; or fp32,tf32,fp16.")
    ] = "fp32"
    device: Annotated[
        str, _asked("--device", help="cpu, cuda:0, or auto: what the suite is about, if here.")
    ] = "auto"
    weights: Annotated[str, _asked("--weights", help="auto, pretrained or random.")] = "auto"
    inputs: Annotated[
        list[str] | None,
        _asked("--input", metavar="NAME:DTYPE:SHAPE", help="Input of networks by factory."),
    ] = None
    seed: Annotated[int, _asked("--seed", help="Of random weights and inputs.")] = 0
    runs: Annotated[int, _asked("--runs", help="Samples a measurement, if time allows.")] = 50
    thresholds: Annotated[
        list[str] | None,
        _asked("--threshold", metavar="NAME=VALUE", help="Override a validation threshold."),
    ] = None
    limit_memory: Annotated[
        str,
        _limits("--limit-memory", metavar="SIZE", help="Stands in for a smaller card, e.g. 4GiB."),
    ] = ""
    time_limit: Annotated[
        float | None,
        _limits(
            "--time-limit", metavar="S", help="Begin no network that would end after S seconds."
        ),
    ] = None
    threads: Annotated[int, _limits("--threads", help="Compute threads; 0: physical cores.")] = 0
    jobs: Annotated[
        int, _limits("--jobs", help="Rows built at a time on a GPU. 0: as many as it bears.")
    ] = 0
    keep: Annotated[
        bool, output("--keep", help="Keep inputs, weights and engines of finished races.")
    ] = False
    quiet: Annotated[bool, output("--quiet", help="No progress on standard error.")] = False

    def for_api(self) -> dict[str, Any]:
        """Fields of an `Ask`. Raises OptionError for a word that cannot be read."""
        return {
            "batches": parse_batches(self.batches) if self.batches else None,
            "workflows": _words(self.workflows),
            "precisions": parse_precisions(self.precision),
            "device": self.device,
            "weights": self.weights,
            "input_specs": tuple(self.inputs or ()),
            "thresholds": parse_pairs(self.thresholds or (), "--threshold", float),
            "seed": self.seed,
            "threads": self.threads,
            "jobs": self.jobs,
            "min_runs": self.runs,
            "limit_memory_mb": parse_size_mb(self.limit_memory) if self.limit_memory else None,
        }


Networks = Annotated[
    str,
    _asked("--networks", metavar="N,N", help="Zoo names or package.module:factory; all of them."),
]


@suite.command("paper")
@unfolded
def paper(networks: Networks = "", *, options: SuiteOptions) -> None:
    """Eight networks by PyTorch, Torch-TensorRT, TensorRT and ONNX Runtime, batch 1 to 256:
    tables I, III, IV and figures 2 to 6 of the paper, on this machine.

    Examples:
      peregrine suite paper --out study
      peregrine suite paper --out study --precision fp32,tf32,fp16
      peregrine suite paper --out piece1 --networks resnet18,resnet34 --time-limit 540
      peregrine suite paper --out cpu --device cpu --networks squeezenet1_1 --batches 1,2,4
      peregrine suite paper --resume study
    """
    _run("paper", options, networks=_words(networks))


@suite.command("resnet50")
@unfolded
def resnet50(networks: Networks = "", *, options: SuiteOptions) -> None:
    """ResNet-50 on CPU, CUDA and TensorRT by PyTorch, ONNX Runtime and TensorRT.

    Examples:
      peregrine suite resnet50 --out resnet50-suite
      peregrine suite resnet50 --out resnet50-suite --precision fp32,fp16
    """
    _run("resnet50", options, networks=_words(networks))


@suite.command("report")
def report(
    pieces: Annotated[
        list[Path], typer.Argument(metavar="SUITE_DIR...", help="A suite, or pieces of one.")
    ],
    out: Annotated[
        Path | None,
        output("--out", metavar="DIR", help="Where to write; needed for several pieces."),
    ] = None,
) -> None:
    """Write the tables and figures of a suite again, or of several pieces as one.

    Examples:
      peregrine suite report study
      peregrine suite report piece1 piece2 --out merged
    """
    from peregrine import api

    for path in api.report_suite(pieces, out):
        say(str(path))


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _run(name: str, options: SuiteOptions, networks: tuple[str, ...]) -> None:
    from peregrine import api

    if (options.out is None) == (options.resume is None):
        raise OptionError(
            "A suite needs a directory.",
            fix=f"Name a new one: peregrine suite {name} --out DIR; or one to go on with: "
            f"peregrine suite {name} --resume DIR.",
        )
    shared: dict[str, Any] = {
        "time_limit_s": options.time_limit,
        "keep": options.keep,
        "watch": partial(watched, quiet=options.quiet),
        "command": shlex.join(["peregrine", *sys.argv[1:]]),
    }
    if options.resume is not None:
        path = options.resume
        progress, written = api.resume_suite(name, path, **shared)
    else:
        assert options.out is not None
        path = options.out
        asked = options.for_api()
        progress, written = api.run_suite(name, path, networks=networks, **asked, **shared)
    for file in written:
        say(str(file))
    _end(name, path, progress)


def _end(name: str, path: Path, progress: Progress) -> None:
    """Say what is left, and leave with a code that tells."""
    if progress.failed:
        say(f"Not whole: {', '.join(progress.failed)}; the report says why.")
    if progress.left:
        say(f"Left for later: {', '.join(progress.left)}.")
        say(f"Go on: peregrine suite {name} --resume {path}")
    if progress.failed and not progress.done:
        raise typer.Exit(_NOT_WHOLE)
