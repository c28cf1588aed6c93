"""The public verbs. The command line is a thin skin over these."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine import engines
from peregrine.bundle import BundleSession, open_session
from peregrine.bundle import load as load_bundle
from peregrine.checkup import Checkup
from peregrine.checkup import doctor as check_up
from peregrine.compiler.explain import Explanation
from peregrine.compiler.explain import explain as explain_engine
from peregrine.engines import Listed
from peregrine.errors import FeedError, NoCandidate, OptionError
from peregrine.events import Observer, ignore
from peregrine.hardware import visible_gpu
from peregrine.harness.artifact import keep_winner
from peregrine.harness.assemble import assemble
from peregrine.harness.precisions import resolve
from peregrine.harness.race import Loader, race, resume
from peregrine.harness.request import IN_MEMORY, SWEEP, Request
from peregrine.harness.rundir import RunDirectory, default_path
from peregrine.model.inputs import InputSpec, parse_input
from peregrine.model.items import RANDOM
from peregrine.model.model import Model
from peregrine.processor import cpu_flags
from peregrine.results import Report
from peregrine.select import Objective
from peregrine.suite import ask as suites
from peregrine.suite.render import write_study
from peregrine.suite.run import Progress, Watch, begin, unwatched
from peregrine.suite.run import run as run_races
from peregrine.suite.study import read
from peregrine.types import Array, Feeds, Target

if TYPE_CHECKING:
    import onnx
    import torch

    Source = str | os.PathLike[str] | torch.nn.Module | onnx.ModelProto

Inputs = Mapping[str, Array] | Sequence[Array] | Array
Calibrating = str | os.PathLike[str] | Inputs | Iterable[str | os.PathLike[str] | Inputs]


def bench(
    model: Source,
    inputs: Inputs | None = None,
    *,
    objective: Objective | str | None = None,
    calibration: Calibrating | None = None,
    out: str | os.PathLike[str] | None = None,
    observer: Observer = ignore,
    **options: Any,
) -> Report:
    """Race every workflow this machine can run on a model, and report.

    Args:
        model: a zoo name, a path (`.onnx`, `.pt2`), `package.module:factory`, a PyTorch module,
            or an onnx ModelProto.
        inputs: example arrays by name, or in the model's order; they fix what the model leaves
            open and are judged on beside random inputs. The first dimension is the batch.
        objective: what to win at; the smallest latency when None.
        calibration: what int8 and fp8 get their ranges from. A path or several: a directory of
            photos or of `.npz` files, an `.npz` or `.npy`; the word "random"; or an iterable of
            feeds, each a dict of arrays by input name, or one array for a model of one input.
            Without `inputs`, feeds or images of the user's own, part of it judges.
        out: the run directory to make; `runs/NAME-TIME` when None.
        observer: told of everything as it happens.
        **options: fields of `peregrine.harness.request.Request`, e.g. `batches=(1, 8)`.

    Returns:
        The report, also on disk as raw rows in `report.run_dir`.

    Raises:
        PeregrineError: see `peregrine.errors`; what was measured before is kept on disk.
    """
    words, feeds = _calibrating(calibration)
    request = make_request(model, objective=objective, calibration=words, **options)
    path = Path(out) if out else default_path(_label(model), Path.cwd())
    loader = None if isinstance(model, str | os.PathLike) else _loader(model, inputs, request)
    if isinstance(model, str | os.PathLike) and inputs is not None:
        loader = _loader(model, inputs, request)
    return race(
        request,
        path,
        loader=loader,
        given=_given(model, inputs, request),
        calibrating=feeds,
        observer=observer,
    )


def resume_bench(
    run_dir: str | os.PathLike[str], *, observer: Observer = ignore, model: Source | None = None
) -> Report:
    """Go on with an interrupted race. A model that was passed in memory is only needed again
    when the race stopped before it was written."""
    path = Path(run_dir)
    request = RunDirectory.read(path).request
    loader = None if model is None else _loader(model, None, request)
    return resume(path, loader=loader, observer=observer)


def make_request(
    model: Source, *, objective: Objective | str | None = None, **options: Any
) -> Request:
    """A request with defaults that fit together.

    The precisions `"auto"` become those that the device computes in.
    With no batch named, batch 1 is measured in full and 1, 2, 4 ... 256 are swept; with batches
    named, only those are measured.
    """
    if options.get("device", "auto") == "auto":
        options["device"] = "cuda:0" if visible_gpu(0) else "cpu"
    if "precisions" in options:
        options["precisions"] = resolve(options["precisions"], options["device"], cpu_flags())
    if labels := options.get("labels"):
        options["labels"] = str(Path(labels).absolute())  # a worker may start elsewhere
        if not Path(labels).is_file():
            raise OptionError(f"There are no labels {labels}.", fix="Check the path.")
    batches = tuple(options.pop("batches", ()) or ())
    sweep = tuple(options.pop("sweep", () if batches else SWEEP))
    batches = batches or (1,)
    if objective is None or isinstance(objective, str):
        objective = Objective.parse(objective or "latency", batch=None)
    if objective.goal == "latency" and objective.batch not in batches:
        objective = Objective.latency(objective.max_memory_mb, batches[0])
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else _label(model)
    try:
        return Request(source=source, objective=objective, batches=batches, sweep=sweep, **options)
    except TypeError as error:
        known = ", ".join(Request.__dataclass_fields__)
        raise OptionError(str(error), fix=f"The options are: {known}.") from None


def build(
    model: Source,
    out: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    force: bool = False,
    observer: Observer = ignore,
    **options: Any,
) -> Path:
    """Race a model, then keep the winner as a bundle that `load` brings back.

    Takes what `bench` takes. `force` replaces a bundle that is there already.

    Raises:
        NoCandidate: no row was valid, so that there is nothing to keep.
    """
    target = Path(out)
    if target.exists() and not force:
        raise OptionError(f"{target} exists already.", fix="Name another --out, or give --force.")
    with tempfile.TemporaryDirectory(prefix="peregrine-build-") as scratch:
        run_dir = options.pop("run_dir", None) or Path(scratch) / "run"
        report = bench(model, inputs, out=run_dir, observer=observer, **options)
        return build_from(report, target, force=force)


def build_from(report: Report, out: Path, *, force: bool = False) -> Path:
    """Keep the winner of a race that was run already."""
    if report.winner is None:
        rows = "\n".join(f"{r.id}: {r.status}. {r.reason}" for r in report.candidates)
        raise NoCandidate(
            "There is no winner to keep.",
            why=rows,
            fix="Fix one of the rows above, or loosen the objective's limits.",
        )
    return keep_winner(RunDirectory.read(Path(report.run_dir)), report, out, force=force)


def load(path: str | os.PathLike[str], **options: Any) -> BundleSession:
    """Open a bundle: `session = load("model.bundle"); session.run({"x": x})`.

    Takes the options of `peregrine.bundle.load`: `on_mismatch` ("rebuild", "fallback" or
    "error") says what to do where the engine was built for another machine.
    """
    return load_bundle(Path(path), **options)


def session(
    model: Source,
    backend: str,
    inputs: Inputs | None = None,
    *,
    candidate: str | None = None,
    batch: int = 1,
    device: str = "cpu",
    threads: int = 0,
    input_specs: Sequence[str] = (),
    **load_options: Any,
) -> BundleSession:
    """One backend, no race: compile a model and run it in this process.

    Args:
        model: as in `bench`.
        backend: its name, e.g. "openvino".
        inputs: example arrays for what the model leaves open.
        candidate: the id of one of the backend's candidates; its first one when None.
        batch: the batch to compile for first; others are compiled when they come.
        device: "cpu" or "cuda:0".
        threads: compute threads; 0 for all physical cores.
        input_specs: declarations such as `x:float32:Bx3x224x224`.
        **load_options: `dims`, `seed`, `weights`, `trust`: see `peregrine.model.load`.
    """
    from peregrine.types import Profile

    request = make_request(model, input_specs=tuple(input_specs), **load_options)
    scratch = Path(tempfile.mkdtemp(prefix="peregrine-session-"))
    try:
        loaded = _loader(model, inputs, request)(scratch)
        target = Target(device, Profile.fixed(loaded.sizes(batch)), threads)
        opened = open_session(loaded, backend, candidate_id=candidate, target=target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    # The session may compile for another batch later, from the model directory.
    opened.on_close(weakref.finalize(opened, shutil.rmtree, scratch, ignore_errors=True))
    return opened


def doctor() -> Checkup:
    """What can run here, what cannot, why, and the fix."""
    return check_up()


def kept() -> list[Listed]:
    """The engines, converted graphs and timings that are kept between runs, last used first."""
    return engines.kept()


def prune(max_bytes: int) -> list[Listed]:
    """Drop what was used longest ago until the rest fits in `max_bytes`; 0 drops all. Returns
    what went."""
    return engines.prune(max_bytes)


def explain(path: str | os.PathLike[str]) -> Explanation:
    """How an engine of the native backend spends its time and memory, step by step.

    Args:
        path: an engine's directory, or a bundle that holds one.

    Raises:
        BundleError: there is no engine, or there are several.
        BundleCorrupt: a file of it is damaged.
    """
    return explain_engine(Path(path))


def open_report(run_dir: str | os.PathLike[str]) -> Report:
    """The report of an earlier race, made anew from its raw rows."""
    return assemble(RunDirectory.read(Path(run_dir)))


def run_suite(
    name: str,
    out: str | os.PathLike[str],
    *,
    time_limit_s: float | None = None,
    watch: Watch = unwatched,
    keep: bool = False,
    command: str = "",
    **asked: Any,
) -> tuple[Progress, list[Path]]:
    """Repeat a published study on this machine: "paper" or "resnet50".

    A directory that holds the same suite is gone on with: finished races are kept.

    Args:
        name: the suite.
        out: its directory, made where it is missing.
        time_limit_s: begin no race that would end after so many seconds.
        watch: a context for each race, which gives its observer.
        keep: keep inputs, weights and engines of finished races.
        command: the command line, for the reports.
        **asked: arguments of `peregrine.suite.ask.make_ask`, e.g. `batches=(1, 8)`.

    Returns:
        How far it came, and the files written: tables and figures of what there is.

    Raises:
        PeregrineError: see `peregrine.errors`; what was measured before is kept on disk.
    """
    path = Path(out)
    ask = suites.make_ask(name, **asked)
    begin(ask, path)
    progress = run_races(
        ask, path, time_limit_s=time_limit_s, watch=watch, keep=keep, command=command
    )
    return progress, write_study(read([path]), path)


def resume_suite(
    name: str,
    path: str | os.PathLike[str],
    *,
    time_limit_s: float | None = None,
    watch: Watch = unwatched,
    keep: bool = False,
    command: str = "",
) -> tuple[Progress, list[Path]]:
    """Go on with a suite as it was asked for. Takes and returns what `run_suite` does."""
    where = Path(path)
    ask = suites.Ask.load(where)
    if ask.suite != name:
        raise OptionError(
            f"{where} holds the suite {ask.suite}.",
            fix=f"Go on with it: peregrine suite {ask.suite} --resume {where}.",
        )
    progress = run_races(
        ask, where, time_limit_s=time_limit_s, watch=watch, keep=keep, command=command
    )
    return progress, write_study(read([where]), where)


def report_suite(
    pieces: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write a suite's tables and figures again, or those of several pieces as one suite.

    Returns the files written: in `out`, or in the one piece's own directory.
    """
    paths = [Path(piece) for piece in pieces]
    if out is None and len(paths) != 1:
        raise OptionError(
            "Several pieces have no directory in common.", fix="Name one: --out merged."
        )
    return write_study(read(paths), Path(out) if out is not None else paths[0])


def _label(model: Source) -> str:
    if isinstance(model, str | os.PathLike):
        return Path(os.fspath(model).replace(":", "-")).stem
    graph = getattr(model, "graph", None)
    return str(getattr(graph, "name", "")) or type(model).__name__


def _loader(model: Source, inputs: Inputs | None, request: Request) -> Loader:
    from peregrine.model.load import load as load_model

    specs: list[InputSpec] = [parse_input(text) for text in request.input_specs]

    def loader(directory: Path) -> Model:
        return load_model(
            os.fspath(model) if isinstance(model, os.PathLike) else model,
            directory,
            inputs=specs,
            dims=request.dims,
            example=_by_name(inputs, specs),
            seed=request.seed,
            weights=request.weights,
            trust=request.trust,
        )

    return loader


def _by_name(inputs: Inputs | None, specs: Sequence[InputSpec]) -> dict[str, Array] | None:
    """Example arrays by name. Arrays without one are named by the declarations, or in order."""
    if inputs is None:
        return None
    if isinstance(inputs, Mapping):
        return {name: np.asarray(value) for name, value in inputs.items()}
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
    names = [s.spec.name for s in specs] or [f"input_{n}" for n in range(len(arrays))]
    if len(arrays) == 1 and not specs:
        names = ["input"]
    if len(names) != len(arrays):
        raise FeedError(
            f"{len(arrays)} example arrays for {len(names)} inputs.",
            fix="Pass a dict of input name to array.",
        )
    return {name: np.asarray(value) for name, value in zip(names, arrays, strict=True)}


def _calibrating(said: Calibrating | None) -> tuple[tuple[str, ...], Iterable[Any] | None]:
    """What a request says of calibration data, and the feeds where they are in memory."""
    if said is None:
        return (), None
    # A bare array or mapping is one feed, of one row or of many.
    parts: Any = [said] if isinstance(said, str | os.PathLike | Mapping | np.ndarray) else said
    if isinstance(parts, list | tuple) and all(isinstance(p, str | os.PathLike) for p in parts):
        return tuple(map(_path_word, parts)), None
    return (IN_MEMORY,), parts


def _path_word(word: str | os.PathLike[str]) -> str:
    if word == RANDOM:
        return RANDOM
    if not Path(word).exists():
        raise OptionError(
            f"There is no calibration data {os.fspath(word)}.",
            fix='Check the path. Random numbers are taken where you ask for them: "random".',
        )
    return str(Path(word).absolute())


def _given(model: Source, inputs: Inputs | None, request: Request) -> list[Feeds]:
    named = _by_name(inputs, [parse_input(text) for text in request.input_specs])
    return [named] if named else []
