"""The one door: a model, and the name of a graph, to a model directory that holds that graph."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from peregrine.conversion import cache
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import GRAPH_FILE, IR_FILE, Job, Made
from peregrine.conversion.prepare import prepare
from peregrine.conversion.quiet import quiet
from peregrine.conversion.saturation import reduces_range
from peregrine.errors import PeregrineError, Unsupported
from peregrine.model import onnx_file
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import Conversion, KeptLayer, from_builtins, to_builtins

_CONVERTERS = {
    Graph.FP16: ("typed", "make_typed"),
    Graph.BF16: ("typed", "make_typed"),
    Graph.U8S8: ("quantize", "make_static"),
    Graph.S8S8: ("quantize", "make_static"),
    Graph.FP8: ("fp8", "make_fp8"),
    Graph.NNCF: ("nncf", "make_nncf"),
    Graph.DYNAMIC: ("dynamic", "make_dynamic"),
}
_NOT_FOR_THE_CPU = (Graph.BF16,)
"""Graphs that ONNX Runtime has no CPU kernels for."""


def convert(
    model: Model,
    graph: Graph,
    out: Path,
    *,
    calibration: Calibration | None = None,
    keep: Sequence[KeptLayer] = (),
    calibrator: str = "",
    name: str = "",
) -> Conversion:
    """Write a model directory like `model`'s whose graph is in lower precision.

    Args:
        model: with an ONNX graph.
        graph: which.
        out: a directory that this call owns; what is in it may be overwritten.
        calibration: where the ranges come from; needed where `graph.calibrated`.
        keep: nodes of the prepared graph to leave in fp32.
        calibrator: minmax, entropy or percentile; empty to try all and keep the best.
        name: of a repaired graph; the graph's own when empty.

    Raises:
        Unsupported: the model has no ONNX graph, calibration data is missing, a library cannot
            convert it (with the library's reason), or what it made is not a valid graph with the
            model's inputs and outputs.
    """
    if not model.onnx:
        raise Unsupported(
            f"{model.name} has no ONNX graph to convert to {graph}.", why=model.onnx_error
        )
    if graph.calibrated and (calibration is None or not len(calibration)):
        raise Unsupported(f"{graph} needs calibration data.", fix="--calibration DIR_OR_NPZ")
    if not graph.calibrated:
        calibration, calibrator = None, ""
    names = frozenset(layer.node for layer in keep)
    store = cache.Store(cache.root())
    key = cache.key_of(
        {
            "model": model.sha256 or _hash([model.onnx_path]),
            "classifier": model.classifier,
            "graph": graph,
            "7-bit weights": reduces_range(graph),
            "keep": sorted(names),
            "calibrator": calibrator,
            "calibration": calibration.sha256 if calibration else "",
        }
    )
    record = store.fetch(key, out)
    cached = record is not None
    if record is None:
        started = time.perf_counter()
        made = _make(model, graph, out, calibration, names, calibrator)
        _check(model, graph, out, made)
        record = {"made": to_builtins(made), "seconds": time.perf_counter() - started}
        store.put(key, out, _files(made), record)
    else:
        made = from_builtins(record["made"], Made)
    _write_model(model, name or str(graph), out, made)
    return Conversion(
        graph=name or str(graph),
        precision=graph.precision,
        by=made.by,
        seconds=record["seconds"],
        cached=cached,
        calibration=calibration.words if calibration else "",
        random_calibration=bool(calibration and calibration.random),
        calibrator=made.calibrator,
        tried=made.tried,
        converted=made.converted,
        left=made.left,
        kept=tuple(keep),
        notes=made.notes,
    )


def _make(
    model: Model,
    graph: Graph,
    out: Path,
    calibration: Calibration | None,
    keep: frozenset[str],
    calibrator: str,
) -> Made:
    module, function = _CONVERTERS[graph]
    out.mkdir(parents=True, exist_ok=True)
    try:
        converter: Callable[[Job], Made] = getattr(
            importlib.import_module(f"peregrine.conversion.{module}"), function
        )
        job = Job(model, prepare(model), graph, out, calibration, keep, calibrator)
        _refuse_unknown(job)
        with quiet():
            return converter(job)
    except (PeregrineError, MemoryError, OSError):
        raise
    except ImportError as error:
        raise Unsupported(
            f"A library that makes {graph} graphs does not import.", why=str(error)
        ) from error
    except Exception as error:  # whatever a library's assertions are made of
        raise Unsupported(
            f"{model.name} does not convert to {graph}.",
            why=f"{type(error).__name__}: {str(error).strip()[:600]}",
        ) from error


def _refuse_unknown(job: Job) -> None:
    known = {node.name for graph in onnx_file.graphs(job.prepared.graph) for node in graph.node}
    if unknown := sorted(job.keep - known):
        raise Unsupported(
            f"{job.model.name} has no node {unknown[0]!r} to leave in fp32.",
            fix="Name nodes of the prepared graph (peregrine.conversion.prepare).",
        )


def _files(made: Made) -> list[str]:
    if made.file == IR_FILE:
        return [IR_FILE, str(Path(IR_FILE).with_suffix(".bin"))]
    return [made.file]


def _check(model: Model, graph: Graph, out: Path, made: Made) -> None:
    """Raise `Unsupported` unless the file is a graph that can stand in for the model's."""
    if made.file == IR_FILE:
        return
    import onnx

    path = out / made.file
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise Unsupported(
            f"{made.by} made a {graph} graph that fails the ONNX checker.",
            why=str(error).strip()[:600],
        ) from error
    inputs, outputs = onnx_file.specs(onnx.load(path, load_external_data=False))
    for wanted, found in ((model.inputs, inputs), (model.outputs, outputs)):
        want, got = ([f"{s.name}:{s.dtype}" for s in specs] for specs in (wanted, found))
        if want != got:
            raise Unsupported(
                f"{made.by} made a {graph} graph with other inputs or outputs.",
                why=f"{', '.join(got)} instead of {', '.join(want)}.",
            )
    if graph not in _NOT_FOR_THE_CPU:
        from peregrine.conversion.ranges import open_session

        # Its optimiser moves FP8 Q/DQ past operators that it then has no FP8 kernels for.
        open_session(onnx.load(path), optimized=graph is not Graph.FP8)


def _write_model(model: Model, graph: str, out: Path, made: Made) -> None:
    ir = made.file if made.file == IR_FILE else ""
    if ir:
        import onnx

        shutil.copyfile(model.onnx_path, out / GRAPH_FILE)
        for location in onnx_file.external_files(
            onnx.load(model.onnx_path, load_external_data=False)
        ):
            (out / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.onnx_path.parent / location, out / location)
    dataclasses.replace(
        model,
        directory=out,
        onnx=GRAPH_FILE,
        graph=graph,
        ir=ir,
        module=None,
        sha256=_hash([out / name for name in _files(made)]),
    ).save()


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
