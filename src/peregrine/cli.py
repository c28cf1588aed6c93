"""The command line: every verb is one call of the public API, plus how its answer is shown."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from peregrine.errors import OptionError, PeregrineError

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from peregrine.results import Report
    from peregrine.types import Precision


class _Verbs(TyperGroup):
    """Errors of ours are three lines and an exit code, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PeregrineError as error:
            _say_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted. What was done is kept; go on with --resume.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Whoever read our output has left; nothing is lost but the printing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


app = typer.Typer(
    name="peregrine",
    cls=_Verbs,
    help="Race every way this machine can run a trained model, prove each one right, "
    "and keep the winner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
env_app = typer.Typer(help="Backends in a virtual environment of their own.", no_args_is_help=True)
app.add_typer(env_app, name="env")

_UNITS = {"": 1.0, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0**2}


def parse_size_mb(text: str) -> float:
    """A size such as `500`, `500MB` or `4GiB` in MiB; a bare number is MiB."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b").strip()
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        value = float(number.removesuffix(unit)) * _UNITS[unit]
    except (KeyError, ValueError):
        raise OptionError(
            f"{text!r} is no size.", fix="Write it as 500MB or 4GiB; a bare number is MB."
        ) from None
    if not value > 0:
        raise OptionError(f"A size of {text} cannot be met.", fix="Give a size above 0.")
    return value


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` as integers."""
    try:
        batches = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise OptionError(
            f"{text!r} is no list of batches.", fix="Write whole numbers: --batch 1,8,32."
        ) from None
    return tuple(dict.fromkeys(batches))


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """`fp32,fp16` as precisions."""
    from peregrine.types import Precision

    try:
        return tuple(dict.fromkeys(Precision(part.strip()) for part in text.split(",")))
    except ValueError:
        raise OptionError(
            f"{text!r} is no list of precisions.", fix=f"Use some of: {', '.join(Precision)}."
        ) from None


def parse_pairs(pairs: list[str], flag: str, kind: type[int] | type[float]) -> dict[str, Any]:
    """`NAME=VALUE` options as a dict."""
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            parsed[name] = kind(value)
        except ValueError:
            equals = ""
        if not equals:
            raise OptionError(f"{pair!r} is not NAME=VALUE.", fix=f"Write it as {flag} name=4.")
    return parsed


# Options that `bench` and `build` share.
_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A zoo name, an .onnx or .pt2 file, or package.module:factory.",
        show_default=False,
    ),
]
_Batch = Annotated[
    str,
    typer.Option(
        "--batch", help="Batches to measure in full, e.g. 1,8,32. Without it: 1, then a sweep."
    ),
]
_Objective = Annotated[str, typer.Option("--objective", help="latency, throughput or memory.")]
_MaxLatency = Annotated[
    float | None, typer.Option("--max-latency", metavar="MS", help="Limit of the objective.")
]
_MaxMemory = Annotated[
    str, typer.Option("--max-memory", metavar="SIZE", help="Limit of the objective, e.g. 500MB.")
]
_Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:DTYPE:SHAPE",
        help="Declare an input, e.g. x:float32:Bx3x224x224 or ids:int64:Bx128=0..30522. "
        "Only needed where the model leaves it open. Repeat for several.",
    ),
]
_Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Size of a symbolic dimension."),
]
_FeedFiles = Annotated[
    list[Path] | None,
    typer.Option("--feeds", metavar="FILE", help="An .npz or .npy to judge on. Repeatable."),
]
_Images = Annotated[
    str,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Photos to judge on (labels.txt in it: 'file class'). 'default' for a few that "
        "come with scikit-image.",
    ),
]
_Preprocessing = Annotated[
    str,
    typer.Option(
        "--preprocessing", metavar="FILE", help="JSON that says how a photo becomes an input."
    ),
]
_Backends = Annotated[
    list[str] | None, typer.Option("--backend", help="Only this backend. Repeatable.")
]
_Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ID", help="Only this candidate; * is allowed. Repeatable."),
]
_Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="ID", help="Not this candidate or backend. Repeatable."),
]
_Seed = Annotated[int, typer.Option("--seed", help="Of random weights and inputs.")]
_Weights = Annotated[
    str, typer.Option("--weights", help="auto, pretrained or random: for zoo networks.")
]
_Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda:0, or auto: an NVIDIA GPU where there is one.")
]
_Precision = Annotated[
    str, typer.Option("--precision", help="Precisions to race, e.g. fp32,fp16 on a GPU.")
]
_Threads = Annotated[int, typer.Option("--threads", help="Compute threads; 0: physical cores.")]
_Runs = Annotated[int, typer.Option("--runs", help="Samples a measurement, at least.")]
_Rounds = Annotated[int, typer.Option("--rounds", help="Interleaved rounds of the final.")]
_Timeout = Annotated[
    float, typer.Option("--timeout", metavar="S", help="Longest step of one worker, seconds.")
]
_WorkerMemory = Annotated[
    str,
    typer.Option("--worker-memory", metavar="SIZE", help="Kill a worker above this, e.g. 8GiB."),
]
_FindMax = Annotated[
    bool, typer.Option("--find-max-batch", help="Search for the largest batch that fits.")
]
_Thresholds = Annotated[
    list[str] | None,
    typer.Option("--threshold", metavar="NAME=VALUE", help="Override a validation threshold."),
]
_AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Let a row win that fell back elsewhere.")
]
_Trust = Annotated[bool, typer.Option("--trust", help="Load pickles: they can run any code.")]
_RunDir = Annotated[
    Path | None, typer.Option("--out", metavar="RUN_DIR", help="Directory of the run.")
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


def _options(
    batch: str,
    objective: str,
    max_latency: float | None,
    max_memory: str,
    inputs: list[str] | None,
    dims: list[str] | None,
    feeds: list[Path] | None,
    images: str,
    preprocessing: str,
    backends: list[str] | None,
    only: list[str] | None,
    skip: list[str] | None,
    thresholds: list[str] | None,
    worker_memory: str,
    **plain: Any,
) -> dict[str, Any]:
    """Command-line words as the API's keyword arguments."""
    from peregrine.select import Objective

    batches = parse_batches(batch) if batch else ()
    for path in (*(feeds or ()), *([Path(preprocessing)] if preprocessing else ())):
        if not path.is_file():
            raise OptionError(f"There is no file {path}.", fix="Check the path.")
    return {
        "batches": batches,
        "objective": Objective.parse(
            objective,
            max_latency_ms=max_latency,
            max_memory_mb=parse_size_mb(max_memory) if max_memory else None,
            batch=batches[0] if batches and objective == "latency" else None,
        ),
        "input_specs": tuple(inputs or ()),
        "dims": parse_pairs(dims or [], "--dim", int),
        # Workers and a later --resume may start elsewhere.
        "feeds": tuple(str(path.absolute()) for path in feeds or ()),
        "images": images if images in ("", "default") else str(Path(images).absolute()),
        "preprocessing": str(Path(preprocessing).absolute()) if preprocessing else "",
        "backends": tuple(backends or ()),
        "only": tuple(only or ()),
        "skip": tuple(skip or ()),
        "thresholds": parse_pairs(thresholds or [], "--threshold", float),
        "worker_memory_mb": parse_size_mb(worker_memory) if worker_memory else 0.0,
        "command": shlex.join(["peregrine", *sys.argv[1:]]),
        **plain,
    }


@app.command()
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)] = "",
    batch: _Batch = "",
    objective: _Objective = "latency",
    max_latency: _MaxLatency = None,
    max_memory: _MaxMemory = "",
    inputs: _Inputs = None,
    dims: _Dims = None,
    feeds: _FeedFiles = None,
    images: _Images = "",
    preprocessing: _Preprocessing = "",
    backends: _Backends = None,
    only: _Only = None,
    skip: _Skip = None,
    device: _Device = "auto",
    precision: _Precision = "fp32",
    seed: _Seed = 0,
    weights: _Weights = "auto",
    threads: _Threads = 0,
    runs: _Runs = 50,
    rounds: _Rounds = 15,
    timeout: _Timeout = 600.0,
    worker_memory: _WorkerMemory = "",
    find_max_batch: _FindMax = False,
    thresholds: _Thresholds = None,
    allow_fallback: _AllowFallback = False,
    trust: _Trust = False,
    out: _RunDir = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN_DIR", help="Go on with a run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
    quiet: _Quiet = False,
) -> None:
    """Race every workflow on MODEL: validate, measure, name the winner."""
    from peregrine import api

    if bool(model) == (resume is not None):
        raise OptionError(
            "Name either a model or a run to resume.",
            fix="peregrine bench MODEL, or peregrine bench --resume RUN_DIR.",
        )
    with _watched(quiet) as observer:
        if resume is not None:
            report = api.resume_bench(resume, observer=observer)
        else:
            report = api.bench(
                model,
                out=out,
                observer=observer,
                **_options(
                    batch,
                    objective,
                    max_latency,
                    max_memory,
                    inputs,
                    dims,
                    feeds,
                    images,
                    preprocessing,
                    backends,
                    only,
                    skip,
                    thresholds,
                    worker_memory,
                    device=device,
                    precisions=parse_precisions(precision),
                    seed=seed,
                    weights=weights,
                    threads=threads,
                    min_runs=runs,
                    final_rounds=rounds,
                    timeout_s=timeout,
                    find_max_batch=find_max_batch,
                    allow_fallback=allow_fallback,
                    trust=trust,
                ),
            )
    _show(report, as_json=as_json)
    if report.winner is None:
        raise typer.Exit(6)


@app.command()
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)] = "",
    out: Annotated[
        Path, typer.Option("--out", metavar="BUNDLE", help="Bundle directory to make.")
    ] = Path("model.bundle"),
    from_run: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN_DIR", help="Keep the winner of a run that was made."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    batch: _Batch = "",
    objective: _Objective = "latency",
    max_latency: _MaxLatency = None,
    max_memory: _MaxMemory = "",
    inputs: _Inputs = None,
    dims: _Dims = None,
    feeds: _FeedFiles = None,
    images: _Images = "",
    preprocessing: _Preprocessing = "",
    backends: _Backends = None,
    only: _Only = None,
    skip: _Skip = None,
    device: _Device = "auto",
    precision: _Precision = "fp32",
    seed: _Seed = 0,
    weights: _Weights = "auto",
    threads: _Threads = 0,
    timeout: _Timeout = 600.0,
    thresholds: _Thresholds = None,
    trust: _Trust = False,
    quiet: _Quiet = False,
) -> None:
    """Race MODEL, then keep the winner as a bundle that loads in two lines."""
    from peregrine import api

    if bool(model) == (from_run is not None):
        raise OptionError(
            "Name either a model or a run.",
            fix="peregrine build MODEL --out BUNDLE, or peregrine build --from RUN_DIR.",
        )
    if from_run is not None:
        made = api.build_from(api.open_report(from_run), out, force=force)
    else:
        with _watched(quiet) as observer:
            made = api.build(
                model,
                out,
                force=force,
                observer=observer,
                **_options(
                    batch or "1",
                    objective,
                    max_latency,
                    max_memory,
                    inputs,
                    dims,
                    feeds,
                    images,
                    preprocessing,
                    backends,
                    only,
                    skip,
                    thresholds,
                    "",
                    device=device,
                    precisions=parse_precisions(precision),
                    seed=seed,
                    weights=weights,
                    threads=threads,
                    timeout_s=timeout,
                    trust=trust,
                ),
            )
    console = _console()
    console.print(f"Bundle: {made}", markup=False, highlight=False)
    console.print(
        f'import peregrine\nsession = peregrine.load("{made}")', markup=False, highlight=False
    )


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Show any earlier run again: table, HTML, plots."""
    from peregrine import api

    _show(api.open_report(run_dir), as_json=as_json)


@app.command()
def doctor() -> None:
    """What can run here, what cannot, why, and the exact command that fixes it."""
    from peregrine import api
    from peregrine.report.checkup import render_checkup

    found = api.doctor()
    render_checkup(found, _console())
    if not found.anything_runs:
        raise typer.Exit(4)


@env_app.command("create")
def env_create(
    name: Annotated[str, typer.Argument(help="A version set; `env list` shows them.")],
) -> None:
    """Make a virtual environment with versions known to work together."""
    from peregrine import environments

    console = _console(stderr=True)
    made = environments.create(
        name, report=lambda line: console.print(line, markup=False, highlight=False, style="dim")
    )
    _console().print(f"{made.name} is ready; it serves {', '.join(made.backends)}.", markup=False)


@env_app.command("add")
def env_add(
    name: str,
    backends: Annotated[list[str], typer.Option("--backend", help="A backend it serves.")],
    python: Annotated[Path | None, typer.Option("--python", help="A ready interpreter.")] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="A directory of installed packages.")
    ] = None,
) -> None:
    """Point backends at a ready interpreter or a site directory."""
    from peregrine import environments

    made = environments.add(name, backends, python=python, site=site)
    _console().print(f"{made.name} serves {', '.join(made.backends)}.", markup=False)


@env_app.command("list")
def env_list() -> None:
    """The environments there are, and the version sets that could be made."""
    from peregrine import environments
    from peregrine.report.checkup import render_environments

    render_environments(environments.list_all(), environments.version_sets(), _console())


@env_app.command("remove")
def env_remove(name: str) -> None:
    """Forget an environment, and delete it if `create` made it."""
    from peregrine import environments

    gone = environments.remove(name)
    _console().print(f"Removed {gone.name}.", markup=False)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _watched(quiet: bool) -> Any:
    """A context that gives the observer: the live view, or nothing."""
    import contextlib

    from peregrine.events import ignore

    if quiet:
        return contextlib.nullcontext(ignore)
    from peregrine.report.progress import live

    return live(_console(stderr=True))


def _show(report: Report, *, as_json: bool) -> None:
    """Write the run's files, then print the table or the JSON."""
    from peregrine.report.render_all import write_all

    write_all(report, Path(report.run_dir))
    if as_json:
        sys.stdout.write((Path(report.run_dir) / "report.json").read_text() + "\n")
        return
    from peregrine.report.table import render

    render(report, _console())


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    # A polite kill ends like Ctrl-C: workers gone, rows kept.
    signal.signal(signal.SIGTERM, _as_interrupt)
    app()


def _say_error(error: PeregrineError) -> None:
    console = _console(stderr=True)
    console.print("Error:", style="bold red", end=" ")
    console.print(error.what, markup=False, highlight=False)
    for label, text in (("Why:", error.why), ("Fix:", error.fix)):
        if text:
            console.print(label, style="bold", end=" ")
            console.print(text, markup=False, highlight=False)
