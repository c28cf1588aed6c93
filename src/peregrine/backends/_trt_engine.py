"""An ONNX graph made into a TensorRT engine. Needs no GPU with TensorRT-RTX."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

from peregrine.backends.base import check_graph
from peregrine.errors import BackendUnavailable, Unsupported, cannot_read
from peregrine.model.graphs import Graph, base_graph
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Target, TensorSpec

# The same API twice: the full product, and the one for consumer GPUs that PyPI carries.
MODULES = ("tensorrt", "tensorrt_rtx")
DISTRIBUTIONS = (
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)
"""Under which names TensorRT, full and RTX, is installed."""
INSTALL = "pip install 'peregrine-inference[tensorrt]'"
LADDER: tuple[tuple[Precision, str], ...] = (
    (Precision.FP32, ""),
    (Precision.TF32, ""),
    (Precision.FP16, Graph.FP16),
    (Precision.BF16, Graph.BF16),
    (Precision.FP8, Graph.FP8),
    (Precision.INT8, Graph.S8S8),
)
"""Each precision with the graph that brings it: a strongly typed network computes in the types
that its graph has."""
WORKSPACE = 4 << 30
"""Bytes of scratch memory that a tactic may use; more was never faster for image networks."""

_ERRORS_KEPT = 20
# How TensorRT-RTX's builder lists the types of its convolutions when it meets another one.
_INT8_REFUSED = re.compile(r"CHECK\(dtype == \w*Float\b.*FP8E4M3\) failed")


def installed_module() -> str:
    """The name of the TensorRT module that is installed, or ""."""
    return next((name for name in MODULES if importlib.util.find_spec(name)), "")


def import_tensorrt() -> Any:
    """The TensorRT module. Raises `BackendUnavailable` when none imports."""
    name = installed_module()
    if not name:
        raise BackendUnavailable("TensorRT is not installed.", fix=INSTALL)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library that does not load
        raise BackendUnavailable(
            f"{name} does not import.", why=str(error), fix=f"{INSTALL} --force-reinstall"
        ) from error


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps the last errors in `.errors` and prints the other warnings
    nowhere: the builder warns of every int64 input."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # an untyped base
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.value <= trt.ILogger.ERROR.value:
                self.errors = [*self.errors[-_ERRORS_KEPT:], message]

    return Logger()


def build_engine(model: Model, candidate: Candidate, target: Target) -> bytes:
    """A serialised engine for `target.profile`.

    The network is strongly typed: arithmetic is that of the graph's dtypes and of its Q/DQ
    nodes, and `candidate` only says whether fp32 matrix products may use TF32.

    Raises:
        BackendUnavailable: there is no TensorRT that can build here.
        Unsupported: an operator or a precision it lacks, named, or a graph it cannot build.
        ModelCorrupt: the file is no ONNX graph.
        OptionError: `model` holds another graph than the candidate reads.
    """
    check_graph(candidate, model)
    graph = base_graph(candidate.graph) if candidate.graph else ""
    if (candidate.precision, graph) not in LADDER:
        raise Unsupported(
            f"TensorRT takes no {candidate.precision} from "
            f"{f'the graph {candidate.graph}' if candidate.graph else 'an fp32 graph'}.",
            why="It computes in the types that the graph has.",
            fix=f"Use one of: {', '.join(f'{p} {g}'.strip() for p, g in LADDER)}.",
        )
    trt = import_tensorrt()
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # a null pointer from the factory: no GPU, for full TensorRT
        raise BackendUnavailable(
            f"{trt.__name__} cannot build without a working GPU.",
            why=_last(logger),
            fix=f"TensorRT-RTX builds without one: {INSTALL}",
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, network, model)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    if candidate.precision is not Precision.TF32:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if any(spec.symbols for spec in model.inputs) or _shape_tensors(network):
        config.add_optimization_profile(_profile(builder, network, model, target))
    engine = builder.build_serialized_network(network, config)
    del parser  # not earlier: it owns the weights that the network points at
    if engine is None and _INT8_REFUSED.search(" ".join(logger.errors)):
        raise Unsupported(
            f"{trt.__name__} {trt.__version__} does not compute convolutions in INT8; "
            "it takes FP32, FP16, BF16 and FP8.",
            why=_last(logger),
            fix="Race fp8 or fp16 in its place, or use full TensorRT, which has INT8.",
        )
    if engine is None:
        raise Unsupported(
            f"TensorRT cannot build {model.name}.",
            why=_last(logger),
            fix="Export the model with fixed sizes, or race another backend.",
        )
    return bytes(engine)


def _parse(parser: Any, network: Any, model: Model) -> None:
    parsed = parser.parse_from_file(str(model.onnx_path))
    problems = [parser.get_error(i) for i in range(parser.num_errors)]
    # Random bytes parse as a graph without anything in it.
    empty = parsed and network.num_outputs == 0
    if empty or any(not problem.node_operator() for problem in problems):
        why = "; ".join(problem.desc() for problem in problems) or "The graph is empty."
        raise cannot_read("TensorRT", model.name, why)
    if not parsed:
        operators = ", ".join(dict.fromkeys(p.node_operator() for p in problems))
        raise Unsupported(
            f"TensorRT does not take operator {operators} of {model.name}.",
            why="; ".join(f"node {p.node_name() or p.node()}: {p.desc()}" for p in problems),
            fix="Replace the operator in the model, or race another backend.",
        )


def _shape_tensors(network: Any) -> list[str]:
    """Inputs whose values, not only whose sizes, decide shapes in the graph."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    return [tensor.name for tensor in inputs if tensor.is_shape_tensor]


def _profile(builder: Any, network: Any, model: Model, target: Target) -> Any:
    dims = target.profile.dims
    profile = builder.create_optimization_profile()
    sizes = [{name: getattr(r, edge) for name, r in dims.items()} for edge in ("min", "opt", "max")]
    values = _shape_tensors(network)
    for spec in model.inputs:
        if spec.name in values:
            profile.set_shape_input(spec.name, *[_values(model, spec)] * 3)
        else:
            profile.set_shape(spec.name, *(spec.resolve(size) for size in sizes))
    return profile


def _values(model: Model, spec: TensorSpec) -> list[int]:
    low, high = model.ranges.get(spec.name, (0, 1))
    if low != high or spec.shape:
        raise Unsupported(
            f"{model.name}: the values of input {spec.name!r} decide shapes inside the graph, "
            "and TensorRT must know them to build.",
            fix=f"Give its one value: --input {spec.name}:{spec.dtype}:scalar=VALUE.",
        )
    return [int(low)]


def _last(logger: Any) -> str:
    """The last error, without the source location that ends it."""
    text = logger.errors[-1] if logger.errors else "It gave no reason."
    return re.sub(r" In \w+ at /\S+\)$", ")", text)
