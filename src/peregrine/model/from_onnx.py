"""An ONNX graph as a model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.errors import OptionError, Unsupported
from peregrine.model import graph_facts, onnx_file, symbols
from peregrine.model.images import Preprocessing
from peregrine.model.inputs import random_array
from peregrine.model.model import Model
from peregrine.model.options import LoadOptions
from peregrine.model.probe import Observation, OnnxRunner, name_outputs
from peregrine.types import TensorSpec

if TYPE_CHECKING:
    import onnx


def load_file(path: Path, directory: Path, options: LoadOptions) -> Model:
    """Read, check and copy a `.onnx` file with its external data."""
    preprocessing, notes = _sidecar(path)
    return _model(
        onnx_file.read(path),
        path.parent,
        directory,
        options,
        Model(
            name=options.name or path.stem,
            directory=directory,
            inputs=(),
            outputs=(),
            source=str(path),
            weights="from the file",
            preprocessing=preprocessing,
            notes=notes,
        ),
    )


def load_proto(proto: onnx.ModelProto, directory: Path, options: LoadOptions) -> Model:
    """Check and write a graph that the caller holds in memory."""
    import onnx

    directory.mkdir(parents=True, exist_ok=True)
    written = directory / onnx_file.ONNX_FILE
    onnx.save(proto, written)
    name = options.name or proto.graph.name or "model"
    return _model(
        onnx_file.read(written),
        directory,
        directory,
        options,
        Model(
            name=name,
            directory=directory,
            inputs=(),
            outputs=(),
            source=f"onnx.ModelProto {name}",
            weights="from the graph",
        ),
    )


def _model(
    graph: onnx.ModelProto, home: Path, directory: Path, options: LoadOptions, bare: Model
) -> Model:
    raw_inputs, raw_outputs = onnx_file.specs(graph)
    found = symbols.resolve(
        raw_inputs, given=options.inputs, dims=options.dims, example=options.example
    )
    outputs = tuple(
        found.rename(spec) for spec in onnx_file.infer_outputs(graph, found.renames, raw_outputs)
    )
    ranges = {**graph_facts.integer_ranges(graph, found.inputs), **found.ranges}
    sha256 = onnx_file.write(graph, directory, found.inputs, outputs, home)
    known = {symbol for spec in found.inputs for symbol in spec.symbols}
    if any(set(spec.symbols) - known for spec in outputs):
        named = _observe(directory, found, outputs, ranges)
        if named != outputs:
            outputs = named
            sha256 = onnx_file.write(graph, directory, found.inputs, outputs, home)
    model = replace(
        bare,
        inputs=found.inputs,
        outputs=outputs,
        batch=found.batch,
        dims=found.dims,
        ranges=ranges,
        onnx=onnx_file.ONNX_FILE,
        sha256=sha256,
        parameters=onnx_file.parameter_count(graph),
        classifier=graph_facts.is_classifier(graph, outputs),
        notes=(*bare.notes, *found.notes, *_foreign(graph)),
    )
    model.save()
    return model


def _observe(
    directory: Path,
    found: symbols.Symbols,
    outputs: tuple[TensorSpec, ...],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[TensorSpec, ...]:
    """`outputs` with the open dimensions that turn out to be the batch, by running the graph at
    two batch sizes. Unchanged where ONNX Runtime cannot: that is for its backend to report."""
    if not found.batch:
        return outputs
    rng = np.random.default_rng(0)
    observed = []
    try:
        runner = OnnxRunner(directory / onnx_file.ONNX_FILE)
        for batch in (2, 3):
            sizes = {**found.dims, found.batch: batch}
            feeds = {
                spec.name: random_array(spec, spec.resolve(sizes), ranges.get(spec.name), rng)
                for spec in found.inputs
            }
            shapes = tuple(array.shape for array in runner.run(feeds))
            observed.append(Observation(sizes, shapes))
    except Unsupported:
        return outputs
    return name_outputs(outputs, observed)


def _foreign(graph: onnx.ModelProto) -> Sequence[str]:
    return [
        f"uses operators outside the ONNX standard: {domain} ({', '.join(operators)})"
        for domain, operators in onnx_file.foreign_operators(graph).items()
    ]


def _sidecar(path: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Preprocessing from `NAME.json` beside `NAME.onnx`, when there is one that says it: among
    other things, or nothing else."""
    beside = path.with_suffix(".json")
    try:
        record = json.loads(beside.read_text())
        said = record.get("preprocessing")
        if said is None and "size" in record:
            Preprocessing.parse(record)
            said = record
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, AttributeError, OptionError) as error:
        return {}, (f"{beside.name} beside the model was not understood ({error})",)
    # Prose says it to people only; whoever feeds photos is asked for the data form then.
    return (dict(said) if isinstance(said, Mapping) else {}), ()
