"""A PyTorch module or program as a model directory: exported, and rebuildable in a worker."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from peregrine.errors import ExportError, ModelError, OptionError
from peregrine.model import export, graph_facts, onnx_file, symbols, trust, weights, zoo
from peregrine.model.importing import importable_from
from peregrine.model.inputs import BATCH, InputSpec
from peregrine.model.model import Model, ModuleSource
from peregrine.model.module import (
    Positional,
    call_factory,
    keyword_inputs,
    open_torchscript,
    parameter_count,
    to_tensor,
)
from peregrine.model.options import LoadOptions
from peregrine.model.program import (
    PROGRAM_FILE,
    export_program,
    module_of,
    open_program,
    save_program,
    specs,
)
from peregrine.types import TensorSpec

_TORCHSCRIPT_FILE = "module.torchscript"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a module comes from, and how a worker may rebuild it.

    `kind` is that of `ModuleSource`, or "memory" for a module that only this process has.
    """

    kind: str
    name: str
    source: str
    weights: str
    ref: str = ""
    search_path: tuple[str, ...] = ()
    file: Path | None = None
    classifier: bool | None = None
    """None where only the graph tells."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()


def load_zoo(name: str, directory: Path, options: LoadOptions) -> Model:
    """A network of the zoo."""
    entry = zoo.entry(name)
    module, words = zoo.build(name, weights=options.weights, seed=options.seed)
    own = InputSpec(TensorSpec("x", "float32", (BATCH, *entry.shape)))
    origin = _Origin(
        "zoo",
        name,
        name,
        words,
        ref=name,
        classifier=not words.startswith(zoo.RANDOM),
        preprocessing=entry.preprocessing,
        output_names=("logits",),
    )
    return _load(module, origin, directory, options, options.inputs or (own,))


def load_factory(ref: str, directory: Path, options: LoadOptions) -> Model:
    """What `package.module:factory` returns."""
    search_path = (str(Path.cwd()),)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = call_factory(ref, search_path)
    origin = _Origin(
        "factory",
        ref.partition(":")[2],
        ref,
        f"as {ref} made them (seed {options.seed})",
        ref=ref,
        search_path=search_path,
    )
    return _load(module, origin, directory, options, options.inputs)


def load_module(module: nn.Module, directory: Path, options: LoadOptions) -> Model:
    """A module that the caller holds; it is left as it was."""
    kind = type(module).__name__
    origin = _Origin("memory", kind.lower(), f"torch.nn.Module {kind}", "as the caller set them")
    modes = [(part, part.training) for part in module.modules()]
    try:
        return _load(module, origin, directory, options, options.inputs)
    finally:
        for part, training in modes:
            part.training = training


def load_pickle(path: Path, directory: Path, options: LoadOptions) -> Model:
    """A trusted `.pt` or `.pth`: TorchScript, or a pickled module.

    Raises:
        ModelUntrusted: `options.trust` is false.
        ModelError: it holds something else, e.g. a state dict.
    """
    trust.refuse_pickle(path, options.trust)
    if trust.is_torchscript(path):
        module = open_torchscript(path)
        origin = _Origin("torchscript", path.stem, str(path), "from the file", file=path)
        return _load(module, origin, directory, options, options.inputs)
    with importable_from((str(Path.cwd()),)):
        try:
            found: object = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:
            raise ModelError(
                f"{path} cannot be unpickled.",
                why=f"{type(error).__name__}: {str(error)[:400]}",
                fix="Run from the directory that holds the code of its classes.",
            ) from error
    if isinstance(found, nn.Module):
        origin = _Origin("memory", path.stem, str(path), "from the file")
        return _load(found, origin, directory, options, options.inputs)
    keys = list(found)[:3] if isinstance(found, Mapping) else []
    raise ModelError(
        f"{path} holds a {type(found).__name__}, not a module.",
        why=f"It looks like a state dict ({', '.join(map(str, keys))}, ...): weights alone."
        if keys
        else "",
        fix="Write a function that builds the network and loads these weights, and name it: "
        "peregrine bench package.module:function --input name:dtype:shape",
    )


def load_program(path: Path, directory: Path, options: LoadOptions) -> Model:
    """A torch.export program (`.pt2`)."""
    trust.check_program(path, options.trust)
    program = open_program(path)
    raw, _ = specs(program)
    origin = _Origin("exported", path.stem, str(path), "from the file", file=path)
    found = symbols.resolve(raw, given=options.inputs, dims=options.dims, example=options.example)
    return _finish(module_of(program), origin, directory, options, found, program)


def _load(
    module: nn.Module,
    origin: _Origin,
    directory: Path,
    options: LoadOptions,
    inputs: Sequence[InputSpec],
) -> Model:
    if not inputs and options.example:
        inputs = symbols.from_example(options.example)
    if not inputs:
        raise _needs_inputs(module, origin)
    found = symbols.resolve(
        [item.spec for item in inputs],
        given=inputs,
        dims=options.dims,
        example=options.example,
    )
    module.eval()
    if any(tensor.device.type != "cpu" for tensor in module.state_dict().values()):
        raise ModelError(
            "The module is not on the CPU.",
            why="Each backend moves it to the device that it races on.",
            fix="Call module.cpu() before.",
        )
    return _finish(module, origin, directory, options, found, None)


def _finish(
    module: nn.Module,
    origin: _Origin,
    directory: Path,
    options: LoadOptions,
    found: symbols.Symbols,
    program: ExportedProgram | None,
) -> Model:
    keywords = keyword_inputs(module, [spec.name for spec in found.inputs])
    positional = Positional(module, keywords) if keywords else module
    samples = export.sample_module(
        positional, found.inputs, found.batch, found.dims, found.ranges, options.seed
    )
    adapted = bool(keywords) or not samples[0].plain
    if adapted:
        positional = Positional(module, keywords)
    if origin.output_names:
        samples = [replace(sample, names=origin.output_names) for sample in samples]
    outputs = export.output_specs(samples)

    @functools.cache
    def as_program() -> ExportedProgram:
        if program is not None:
            return program
        example = [to_tensor(array) for array in samples[0].feeds.values()]
        return export_program(positional, example, found.inputs)

    exported = export.export_onnx(positional, as_program, samples, found.inputs, outputs, directory)
    source, problem = _module_source(module, origin, directory, as_program, adapted)
    if source is None and not exported.sha256:
        raise ExportError(
            f"{origin.source} can neither be exported to ONNX nor handed to a worker.",
            why=exported.error,
            fix="Name it as package.module:factory, so that a worker can build it.",
        )
    ranges, classifier = dict(found.ranges), graph_facts.scores_shape(outputs[0])
    if exported.sha256:
        graph = onnx_file.read(directory / onnx_file.ONNX_FILE)
        ranges = {**graph_facts.integer_ranges(graph, found.inputs), **ranges}
        classifier = graph_facts.is_classifier(graph, outputs)
    notes = [*found.notes, *([problem] if problem else [])]
    if exported.failures and exported.sha256:
        notes += [*exported.failures, f"exported to ONNX by the {exported.exporter} exporter"]
    model = Model(
        name=options.name or origin.name,
        directory=directory,
        inputs=found.inputs,
        outputs=outputs,
        batch=found.batch,
        dims=found.dims,
        ranges=ranges,
        onnx=onnx_file.ONNX_FILE if exported.sha256 else "",
        onnx_error=exported.error,
        module=source,
        sha256=exported.sha256 or _file_hash(directory, source),
        source=origin.source,
        weights=origin.weights,
        parameters=parameter_count(module),
        classifier=classifier if origin.classifier is None else origin.classifier,
        notes=tuple(notes),
        preprocessing=origin.preprocessing,
    )
    model.save()
    return model


def _module_source(
    module: nn.Module,
    origin: _Origin,
    directory: Path,
    program: Callable[[], ExportedProgram],
    adapted: bool,
) -> tuple[ModuleSource | None, str]:
    """What a worker rebuilds the module from; or None and why there is nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    if origin.kind == "torchscript" and origin.file is not None:
        (directory / _TORCHSCRIPT_FILE).write_bytes(origin.file.read_bytes())
        return ModuleSource("torchscript", program=_TORCHSCRIPT_FILE, adapt=adapted), ""
    try:
        if origin.kind in ("zoo", "factory"):
            weights.save(module, directory / weights.WEIGHTS_FILE)
            source = ModuleSource(
                origin.kind,
                ref=origin.ref,
                weights=weights.WEIGHTS_FILE,
                search_path=origin.search_path,
                adapt=adapted,
            )
            return source, ""
        save_program(program(), directory / PROGRAM_FILE)
    except ModelError as error:
        why = " ".join(f"{error.what} {error.why}".split())[:400]
        return None, (
            f"PyTorch backends cannot race it: {why}. Its ONNX graph was traced and agrees on "
            "random inputs; it may still miss a branch of the code"
        )
    return ModuleSource("exported", program=PROGRAM_FILE), ""


def _file_hash(directory: Path, source: ModuleSource | None) -> str:
    if source is None:
        return ""
    with (directory / (source.program or source.weights)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needs_inputs(module: nn.Module, origin: _Origin) -> OptionError:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    except (TypeError, ValueError):  # TorchScript shows no signature
        names = []
    first = (names or ["x"])[0]
    return OptionError(
        f"{origin.source} does not say what its inputs look like.",
        why=f"Its forward takes: {', '.join(names)}." if names else "",
        fix=f"Add one --input for each, e.g. --input {first}:float32:Bx3x224x224 or "
        f"--input {first}:int64:Bx128=0..30522.",
    )
