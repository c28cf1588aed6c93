"""A PyTorch module as an ONNX graph with symbolic dimensions, believed only after it ran."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from peregrine.errors import ExportError, ModelError, Unsupported
from peregrine.model import onnx_file
from peregrine.model.inputs import random_array
from peregrine.model.module import Positional, is_plain, named_tensors, to_array, to_tensor
from peregrine.model.probe import Observation, OnnxRunner, name_outputs
from peregrine.model.program import quiet
from peregrine.types import Array, Feeds, TensorSpec

OPSET = 18
# A protobuf message ends at 2 GiB; beyond, weights go to a file beside the graph.
_ONE_FILE_LIMIT = 1_900_000_000
# Error scaled by the norm of the module's output: two right fp32 runtimes differ by far less.
_TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a module: sizes of the symbols, feeds in, arrays out, names of the outputs.

    `plain`: the module itself returned a tensor or a flat tuple of them.
    """

    sizes: Mapping[str, int]
    feeds: Feeds
    outputs: tuple[Array, ...]
    names: tuple[str, ...]
    plain: bool


def random_inputs(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
    seed: int,
) -> dict[str, Array]:
    """Random arrays for `inputs` at these sizes."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: random_array(spec, spec.resolve(sizes), ranges.get(spec.name), rng)
        for spec in inputs
    }


def call(module: nn.Module, feeds: Feeds, sizes: Mapping[str, int]) -> object:
    """What a module returns for `feeds`, given by position, before any flattening.

    Raises:
        ModelError: it fails; the message holds its own words.
    """
    try:
        with torch.inference_mode():
            run = module.raw if isinstance(module, Positional) else module
            return run(*map(to_tensor, feeds.values()))
    except Exception as error:
        shapes = ", ".join(f"{k}:{v.dtype.name}{list(v.shape)}" for k, v in feeds.items())
        raise ModelError(
            "The module does not run on inputs of the given shapes.",
            why=f"{shapes} ({dict(sizes)}): {type(error).__name__}: {str(error)[:400]}",
            fix="Check --input (names, dtypes, shapes, ranges); a dimension that the network "
            "fixes must be a number.",
        ) from error


def run_module(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
    seed: int,
) -> Sample:
    """Run a positional module on random inputs. Raises what `call` raises."""
    feeds = random_inputs(inputs, sizes, ranges, seed)
    result = call(module, feeds, sizes)
    named = list(named_tensors(result))
    return Sample(
        dict(sizes),
        feeds,
        tuple(to_array(tensor) for _, tensor in named),
        tuple(name for name, _ in named),
        is_plain(result),
    )


def sample_module(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    batch: str,
    dims: Mapping[str, int],
    ranges: Mapping[str, tuple[float, float]],
    seed: int,
) -> list[Sample]:
    """Runs at batch 2, 1 and 3, and with the other symbols doubled where the module takes that.

    Without symbols, one run. The first is the one to trace with.

    Raises:
        ModelError: the module fails at a batch size.
    """
    if not batch and not dims:
        return [run_module(module, inputs, {}, ranges, seed)]
    batches = [{batch: size} for size in (2, 1, 3)] if batch else [{}]
    samples = [run_module(module, inputs, {**dims, **size}, ranges, seed) for size in batches]
    if dims:
        doubled = {name: 2 * size for name, size in dims.items()}
        try:
            samples.append(run_module(module, inputs, doubled | batches[0], ranges, seed))
        except ModelError:
            # Not every size suits a network; the given ones are what it will be raced at.
            return samples
    return samples


def output_specs(samples: Sequence[Sample]) -> tuple[TensorSpec, ...]:
    """Names, dtypes and symbolic shapes of a module's outputs, from what its runs gave."""
    first = samples[0]
    taken = set(first.feeds)
    specs = []
    for position, (array, given) in enumerate(zip(first.outputs, first.names, strict=True)):
        name = given or (f"output_{position}" if len(first.outputs) > 1 else "output")
        while name in taken:
            name += "_out"
        taken.add(name)
        specs.append(TensorSpec(name, array.dtype.name, array.shape))
    return name_outputs(specs, [_observation(sample) for sample in samples])


def _observation(sample: Sample) -> Observation:
    return Observation(sample.sizes, tuple(array.shape for array in sample.outputs))


@dataclass(frozen=True, slots=True)
class Exported:
    """How an export ended: the graph's sha256, which exporter made it, what failed before."""

    sha256: str = ""
    exporter: str = ""
    failures: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """Why there is no graph; empty when there is one."""
        return "" if self.sha256 else "; ".join(self.failures)


def export_onnx(
    module: nn.Module,
    program: Callable[[], ExportedProgram],
    samples: Sequence[Sample],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    directory: Path,
) -> Exported:
    """Write `model.onnx` into `directory` by the first exporter whose graph agrees with the
    module on every sample.

    The TorchScript-based exporter takes a fraction of the time and goes first; the one based on
    torch.export follows where it fails, or where its graph is wrong. `program` makes what the
    latter needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    exporters: dict[str, Callable[[Path], None]] = {
        "torch.export": lambda path: _by_program(program(), path, inputs, outputs, size)
    }
    if size < _ONE_FILE_LIMIT:
        exporters = {
            "TorchScript": lambda path: _by_tracing(module, samples[0], path, inputs, outputs)
        } | exporters
    failures: list[str] = []
    for name, export in exporters.items():
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            path = Path(scratch) / onnx_file.ONNX_FILE
            try:
                with quiet():
                    export(path)
                _verify(path, samples, outputs)
            except (ExportError, Unsupported) as error:
                # ONNX Runtime's words name a file that is gone by the time they are read.
                why = re.sub(r"Load model from \S+ failed:\s*", "", " ".join(error.why.split()))[
                    :400
                ]
                failures.append(f"the {name} exporter: {error.what} {why}".strip())
                continue
            graph = onnx_file.read(path)
            sha256 = onnx_file.write(graph, directory, inputs, outputs, path.parent)
            return Exported(sha256, name, tuple(failures))
    return Exported(failures=tuple(failures))


def _by_tracing(
    module: nn.Module,
    sample: Sample,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    axes = {
        spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in inputs
    }
    # Failing, it prints the whole graph from C++, and it must not end up in what we print.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    # Transformer layers in eval mode take a fused path that it does not know.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            torch.onnx.export(
                module,
                tuple(map(to_tensor, sample.feeds.values())),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                dynamic_axes={name: dims for name, dims in axes.items() if dims},
            )
    except Exception as error:
        raise _failed(error) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _by_program(
    program: ExportedProgram,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    size: int,
) -> None:
    try:
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            verbose=False,
        )
        exported.save(str(path), external_data=size >= _ONE_FILE_LIMIT)
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> ExportError:
    return ExportError("failed:", why=f"{type(error).__name__}: {error}")


def _verify(path: Path, samples: Sequence[Sample], outputs: Sequence[TensorSpec]) -> None:
    """Run the graph on every sample and compare with the module.

    Raises:
        ExportError: it disagrees, naming the output and the sizes.
        Unsupported: ONNX Runtime cannot load or run it.
    """
    runner = OnnxRunner(path)
    for sample in samples:
        results = runner.run(_fed(runner, sample.feeds))
        if len(results) != len(outputs):
            raise ExportError(
                "its graph is wrong:", why=f"{len(results)} outputs instead of {len(outputs)}"
            )
        for spec, want, got in zip(outputs, sample.outputs, results, strict=True):
            problem = disagreement(want, got)
            if problem:
                at = ", ".join(f"{name}={size}" for name, size in sample.sizes.items())
                raise ExportError(
                    "its graph is wrong:", why=f"{spec.name} at {at or 'fixed size'}: {problem}"
                )


def _fed(runner: OnnxRunner, feeds: Feeds) -> Feeds:
    """Without the inputs that the exporter dropped because the module does not use them."""
    return {name: value for name, value in feeds.items() if name in runner.input_names}


def disagreement(want: Array, got: Array) -> str:
    """How an array differs from what it should be, in a few words; empty when it agrees."""
    if want.dtype != got.dtype or want.shape != got.shape:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    tolerance = _TOLERANCE.get(want.dtype.name)
    if tolerance is None:
        different = int(np.count_nonzero(want != got))
        return f"{different} of {want.size} elements differ" if different else ""
    a, b = want.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return "NaN in different places"
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12))
    return f"error {error:.1e} of its norm" if error > tolerance else ""
