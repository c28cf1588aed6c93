"""The verbs of a race: `bench`, `build`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peregrine.cli.console import say, show, watched
from peregrine.cli.options import AsJson, ModelArgument, RaceOptions, output
from peregrine.cli.unfold import unfolded
from peregrine.errors import OptionError

_NOTHING_WON = 6


@unfolded
def bench(
    model: ModelArgument = "",
    *,
    race: RaceOptions,
    out: Annotated[
        Path | None,
        output(
            "--out", metavar="RUN_DIR", help="Directory of the run. Without it: runs/NAME-TIME."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        output(
            "--resume",
            metavar="RUN_DIR",
            help="Go on with a run that was interrupted, as it was asked for.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Race every workflow on MODEL: validate, measure, name the winner.

    Examples:
      peregrine bench resnet50 --batch 1,8,32
      peregrine bench efficientnet_lite0 --images default
      peregrine bench model.onnx --precision auto --calibration photos/ --labels labels.txt
      peregrine bench model.onnx --objective throughput --max-latency 50
      peregrine bench mypackage.nets:make_model --input x:float32:Bx3x224x224
      peregrine bench --resume RUN_DIR
    """
    from peregrine import api

    if bool(model) == (resume is not None):
        raise OptionError(
            "Name either a model or a run to resume.",
            fix="peregrine bench MODEL, or peregrine bench --resume RUN_DIR.",
        )
    with watched(quiet=race.quiet) as observer:
        if resume is not None:
            report = api.resume_bench(resume, observer=observer)
        else:
            report = api.bench(model, out=out, observer=observer, **race.for_api())
    show(report, as_json=as_json)
    if report.winner is None:
        raise typer.Exit(_NOTHING_WON)


@unfolded
def build(
    model: ModelArgument = "",
    *,
    race: RaceOptions,
    out: Annotated[
        Path, output("--out", metavar="BUNDLE", help="Bundle directory to make.")
    ] = Path("model.bundle"),
    force: Annotated[bool, output("--force", help="Replace an existing bundle.")] = False,
    from_run: Annotated[
        Path | None,
        output(
            "--from",
            metavar="RUN_DIR",
            help="Keep the winner of a run that was made; nothing is raced.",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        output(
            "--run-dir",
            metavar="RUN_DIR",
            help="Keep the run here as well. Without it only the bundle stays.",
        ),
    ] = None,
) -> None:
    """Race MODEL, then keep the winner as a bundle that loads in two lines.

    Examples:
      peregrine build model.onnx --out model.bundle
      peregrine build resnet50 --objective throughput --batch 8,32 --out resnet50.bundle
      peregrine build efficientnet_lite0 --precision auto --calibration photos/ --out model.bundle
      peregrine build --from RUN_DIR --out model.bundle
    """
    from peregrine import api

    if bool(model) == (from_run is not None):
        raise OptionError(
            "Name either a model or a run.",
            fix="peregrine build MODEL --out BUNDLE, or peregrine build --from RUN_DIR.",
        )
    if from_run is not None:
        made = api.build_from(api.open_report(from_run), out, force=force)
    else:
        # Throughput is decided by a sweep, latency at one batch.
        asked = race.for_api(batches=() if race.objective == "throughput" else (1,))
        with watched(quiet=race.quiet) as observer:
            made = api.build(model, out, force=force, observer=observer, run_dir=run_dir, **asked)
    say(f"Bundle: {made}")
    say(f'import peregrine\nsession = peregrine.load("{made}")')


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="What bench made, e.g. with --out.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show any earlier run again: table, HTML, plots."""
    from peregrine import api

    show(api.open_report(run_dir), as_json=as_json)
