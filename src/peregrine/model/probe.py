"""What a graph does when it runs: outputs on ONNX Runtime's CPU, and which sizes they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peregrine.errors import Unsupported
from peregrine.types import Array, Dim, Feeds, TensorSpec, physical_cores

CHECK_THREADS = 4
"""Threads for the few images that a network is prepared and checked with. One for each of many
processors would gain little, and wait for each other wherever something else is at work."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Shapes of the outputs, in order, seen under one set of symbol sizes."""

    sizes: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]


class OnnxRunner:
    """An ONNX Runtime CPU session of a file, for checks only; never timed.

    Raises:
        Unsupported: ONNX Runtime cannot load or run the graph, with its own words.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; the rest is noise here
        options.intra_op_num_threads = min(CHECK_THREADS, physical_cores())
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except _failures() as error:
            raise Unsupported(
                "ONNX Runtime cannot load the graph.", why=str(error)[:400]
            ) from error

    @property
    def input_names(self) -> set[str]:
        """The graph's inputs; an exporter may have dropped what nothing uses."""
        return {value.name for value in self._session.get_inputs()}

    def run(self, feeds: Feeds) -> list[Array]:
        """Outputs in the graph's order."""
        try:
            outputs: list[Array] = self._session.run(None, dict(feeds))
        except _failures() as error:
            raise Unsupported("ONNX Runtime cannot run the graph.", why=str(error)[:400]) from error
        return outputs


def _failures() -> tuple[type[Exception], ...]:
    """Everything ONNX Runtime raises for a graph or feeds it cannot take."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    named = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf")
    more = ("NoModel", "NoSuchFile", "NotImplemented", "RuntimeException", "EngineError")
    kinds = [getattr(state, name) for name in (*named, *more) if hasattr(state, name)]
    return (*kinds, RuntimeError, ValueError)


def name_outputs(
    outputs: Sequence[TensorSpec], observed: Sequence[Observation]
) -> tuple[TensorSpec, ...]:
    """`outputs` with each dimension as the observations show it.

    A dimension that equalled one symbol's size while that symbol took at least two sizes is
    that symbol. An open one that followed no symbol keeps its own name.
    """
    varied = [
        symbol
        for symbol in observed[0].sizes
        if len({observation.sizes[symbol] for observation in observed}) > 1
    ]
    named = []
    for position, spec in enumerate(outputs):
        shapes = [observation.shapes[position] for observation in observed]
        if len({len(shape) for shape in shapes}) != 1:
            named.append(spec)
            continue
        declared: tuple[Dim, ...] = spec.shape
        if len(declared) != len(shapes[0]):
            declared = tuple(f"{spec.name}_dim{axis}" for axis in range(len(shapes[0])))
        shape = tuple(
            _name(dim, [s[axis] for s in shapes], observed, varied, f"{spec.name}_dim{axis}")
            for axis, dim in enumerate(declared)
        )
        named.append(replace(spec, shape=shape))
    return tuple(named)


def _name(
    declared: Dim,
    sizes: Sequence[int],
    observed: Sequence[Observation],
    varied: Sequence[str],
    fresh: str,
) -> Dim:
    for symbol in varied:
        if all(
            size == observation.sizes[symbol]
            for size, observation in zip(sizes, observed, strict=True)
        ):
            return symbol
    if len(set(sizes)) > 1:
        # It moves with a symbol without being one: half a width, a batch times a length.
        return declared if isinstance(declared, str) and declared not in varied else fresh
    if isinstance(declared, str) and declared in varied:
        return sizes[0]
    return declared
