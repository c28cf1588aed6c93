"""OpenVINO on the CPU: a latency row, and a throughput row with asynchronous requests."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from peregrine.backends.base import (
    Backend,
    Session,
    check_feeds,
    check_graph,
    check_sizes,
    options_of,
)
from peregrine.conversion.untracked import import_openvino
from peregrine.errors import BackendError, OptionError, Unsupported, cannot_read
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_array
from peregrine.model.model import Model
from peregrine.types import (
    Array,
    Candidate,
    Feeds,
    Placement,
    Precision,
    Support,
    Target,
    TensorSpec,
    physical_cores,
)

DEVICE = "CPU"
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}

_BLOB, _SHAPES = "compiled.blob", "shapes.json"
# Layers of the compiled graph that are data rather than work.
_PASSIVE = {"Const", "Input", "Output"}
# Layers of the compiled graph that multiply matrices, where a precision is won or lost.
_COMPUTE = {
    "Convolution",
    "Deconvolution",
    "FullyConnected",
    "MatMul",
    "RNNCell",
    "RNNSeq",
    "ScaledDotProductAttention",
}
# What a precision is to the plugin: the type it computes floats in, and the capability that the
# CPU must have for it. Parts of an INT8 graph that stay in float are fp32, as its name says.
_HINTED = {
    Precision.FP32: ("f32", "FP32"),
    Precision.BF16: ("bf16", "BF16"),
    Precision.FP16: ("f16", "FP16"),
    Precision.INT8: ("f32", "INT8"),
}
# Not Graph.DYNAMIC: OpenVINO 2026.4.1 reads it, com.microsoft's DynamicQuantizeLSTM too, but
# quantises and then multiplies in fp32.
_INT8_GRAPHS = (Graph.U8S8, Graph.NNCF)
_NO_RULE = re.compile(r"No conversion rule found for operations: (?P<ops>[^\n]+)")
_UNREADABLE = ("Unable to read the model", "can't be parsed", "isn't found for node")


class OpenVinoSession(Session):
    """A compiled model and a pool of inference requests, as many as OpenVINO calls optimal.

    With one request an inference runs in the calling thread. With more, `enqueue` starts the
    next request and returns; it waits only when all of them are busy.
    """

    def __init__(
        self, model: Model, compiled: Any, target: Target, settings: dict[str, Any]
    ) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.profile = target.profile
        self.compiled = compiled
        self.model, self.target, self.settings = model, target, settings
        self.parallelism = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [compiled.create_infer_request() for _ in range(self.parallelism)]
        self._idle = deque(self._requests)
        self._busy: deque[Any] = deque()
        self._last = self._requests[0]
        self._bound: dict[str, Array] = {}
        self._in_place: dict[str, Array] = {}  # keeps alive what a request points at

    def bind(self, feeds: Feeds) -> None:
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        # A copy: the requests read this memory at every inference.
        copies = {name: np.array(value, order="C") for name, value in feeds.items()}
        for request in self._requests:
            self._set_inputs(request, copies)
        self._bound = copies

    def _set_inputs(self, request: Any, arrays: Feeds) -> None:
        """Have a request read its inputs from `arrays`, which must stay alive and contiguous."""
        ov = import_openvino()
        for name, value in arrays.items():
            request.set_tensor(name, ov.Tensor(value, shared_memory=True))

    def enqueue(self) -> None:
        if self.parallelism == 1:
            self._infer(self._last)
            return
        if not self._idle:
            self._await_oldest()
        self._last = self._idle.popleft()
        self._last.start_async()
        self._busy.append(self._last)

    def _await_oldest(self) -> None:
        request = self._busy.popleft()
        try:
            request.wait()
        except RuntimeError as error:
            raise _run_error(error) from error
        finally:
            self._idle.append(request)

    def _infer(self, request: Any) -> None:
        try:
            request.infer()
        except RuntimeError as error:
            raise _run_error(error) from error

    def synchronize(self) -> None:
        while self._busy:
            self._await_oldest()

    def fetch(self) -> dict[str, Array]:
        # By place, not by name: OpenVINO may know an output by another tensor that equals it.
        return {
            spec.name: np.array(self._last.get_output_tensor(i).data)
            for i, spec in enumerate(self.outputs)
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Reads the caller's arrays where they are, and leaves what is bound as it was."""
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        self.synchronize()
        self._last = self._requests[0]
        # Not ascontiguousarray: that makes a scalar one-dimensional.
        self._in_place = {name: np.asarray(value, order="C") for name, value in feeds.items()}
        self._set_inputs(self._last, self._in_place)
        self._infer(self._last)
        outputs = self.fetch()
        if self._bound:
            self._set_inputs(self._last, self._bound)
        return outputs

    def placement(self, feeds: Feeds) -> Placement:
        """From the graph that the plugin compiled, after an inference of `feeds`."""
        self.run(feeds)
        layers = self.compiled.get_runtime_model().get_ops()
        info = [op.get_rt_info() for op in layers]
        work = [i for i in info if i["layerType"].astype(str) not in _PASSIVE]
        precisions = Counter(i["runtimePrecision"].astype(str) for i in work)
        computing = Counter(
            i["runtimePrecision"].astype(str)
            for i in work
            if i["layerType"].astype(str) in _COMPUTE
        )
        devices = list(self.compiled.get_property("EXECUTION_DEVICES"))
        return Placement(
            device=self.target.device,
            nodes={"+".join(devices): len(work)},
            precisions=dict(computing.most_common()),
            fell_back=devices != [DEVICE],
            proof="openvino runtime model",
            detail="Layers by precision: "
            + ", ".join(f"{count} {name}" for name, count in precisions.most_common())
            + ".",
        )

    def close(self) -> None:
        self.synchronize()
        self._idle.clear()
        self._requests, self._last, self.compiled = [], None, None


class OpenVinoBackend(Backend):
    """Variants `latency` and `throughput`: OpenVINO's own performance hints.

    bf16 and fp16 are the model's own graph computed in them, where the CPU can. INT8 reads a
    quantised graph: ONNX Runtime's for x86, or that of nncf.
    """

    name: ClassVar[str] = "openvino"
    distributions: ClassVar[tuple[str, ...]] = ("openvino",)

    def available(self) -> Support:
        try:
            ov = import_openvino()
        except ImportError as error:
            return Support.no(f"openvino does not import: {error}", "pip install openvino")
        devices = ov.Core().available_devices
        if DEVICE not in devices:
            return Support.no(
                f"OpenVINO finds no CPU plugin, only: {', '.join(devices) or 'nothing'}.",
                "pip install --force-reinstall openvino",
            )
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        if target.device != "cpu":
            return Support.no(
                f"OpenVINO cannot use {target.device}; it drives Intel devices and CPUs.",
                "--device cpu",
            )
        if not model.onnx:
            return Support.no(f"{model.name} has no ONNX graph: {model.onnx_error}")
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterator[Candidate]:
        able = import_openvino().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        for precision, (_, capability) in _HINTED.items():
            if capability in able:
                graphs = map(str, _INT8_GRAPHS) if precision is Precision.INT8 else ("",)
                for graph in graphs:
                    for variant in HINTS:
                        yield Candidate(self.name, variant, precision, graph=graph)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> OpenVinoSession:
        ov = import_openvino()
        check_graph(candidate, model)
        settings = _settings(candidate, target)
        try:
            graph = ov.Core().read_model(_file(model))
            graph.reshape({s.name: ov.PartialShape(_shape(ov, s, target)) for s in model.inputs})
            compiled = ov.Core().compile_model(graph, DEVICE, settings)
        except RuntimeError as error:
            raise _open_error(error, model.name) from error
        return OpenVinoSession(model, compiled, target, settings)

    def save(self, session: Session, directory: Path) -> None:
        """The compiled model with its weights: it comes back in a third of the time that
        reading and compiling the graph takes.

        Only for fixed sizes, and only where it comes back the same: OpenVINO 2026.4.1 exports
        an LSTM of dynamic batch such that what is imported again computes something else.
        """
        assert isinstance(session, OpenVinoSession)
        if not session.profile.is_fixed:
            return
        blob = session.compiled.export_model().getvalue()
        with _import(blob, session.model, session.target, session.settings) as copy:
            feeds = _feeds(session)
            was, comes_back = session.run(feeds), copy.run(feeds)
        if all(np.array_equal(was[k], comes_back[k], equal_nan=True) for k in was):
            (directory / _BLOB).write_bytes(blob)
            (directory / _SHAPES).write_text(json.dumps(session.profile.opt, sort_keys=True))

    def load(
        self, directory: Path, model: Model, candidate: Candidate, target: Target
    ) -> OpenVinoSession:
        shapes = directory / _SHAPES
        wanted = target.profile.opt if target.profile.is_fixed else None
        if not shapes.exists() or json.loads(shapes.read_text()) != wanted:
            return self.compile(model, candidate, target)
        check_graph(candidate, model)
        settings = _settings(candidate, target)
        try:
            return _import((directory / _BLOB).read_bytes(), model, target, settings)
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO refuses the compiled model in {directory}.",
                why=_reason(error),
                fix="Compile it again from the ONNX graph.",
            ) from error


def _import(blob: bytes, model: Model, target: Target, settings: dict[str, Any]) -> OpenVinoSession:
    # The settings again: an imported model does not remember its precision.
    compiled = import_openvino().Core().import_model(blob, DEVICE, settings)
    return OpenVinoSession(model, compiled, target, settings)


def _settings(candidate: Candidate, target: Target) -> dict[str, Any]:
    options_of(candidate, {})
    if candidate.variant not in HINTS:
        raise OptionError(
            f"openvino has no variant {candidate.variant!r}.",
            fix=f"Use one of: {', '.join(HINTS)}.",
        )
    hint, capability = _hint(candidate)
    able = import_openvino().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if capability not in able:
        raise Unsupported(
            f"{candidate.id}: this CPU computes {', '.join(able)}, not {capability}.",
            why="OpenVINO would take another precision without a word.",
            fix="Race a precision that the CPU has instructions for.",
        )
    return {
        "PERFORMANCE_HINT": HINTS[candidate.variant],
        # Or a CPU with bf16 instructions computes fp32 models in bf16, with a scaled error of
        # 1e-2, and the row would be compared as fp32.
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": target.threads or physical_cores(),
    }


def _hint(candidate: Candidate) -> tuple[str, str]:
    """The plugin's words for a precision.

    Raises:
        Unsupported: OpenVINO has no such precision on a CPU, or needs a converted graph for it.
    """
    if candidate.precision not in _HINTED:
        raise Unsupported(
            f"{candidate.id}: OpenVINO has no {candidate.precision} on a CPU.",
            fix=f"Use one of: {', '.join(_HINTED)}.",
        )
    if candidate.precision is Precision.INT8 and not candidate.graph:
        raise Unsupported(
            f"{candidate.id}: OpenVINO computes in INT8 what the graph quantises, and this one "
            "quantises nothing.",
            fix=f"Use one of the graphs: {', '.join(_INT8_GRAPHS)}.",
        )
    return _HINTED[candidate.precision]


def _file(model: Model) -> Path:
    """OpenVINO's own form where a converter wrote one."""
    return model.directory / model.ir if model.ir else model.onnx_path


def _shape(ov: Any, spec: TensorSpec, target: Target) -> list[Any]:
    """Static where the profile fixes a size, bounded where it gives a range."""
    shape = []
    for dim in spec.shape:
        if isinstance(dim, int):
            shape.append(ov.Dimension(dim))
        else:
            sizes = target.profile.dims[dim]
            shape.append(ov.Dimension(sizes.min, sizes.max))
    return shape


def _feeds(session: OpenVinoSession) -> dict[str, Array]:
    """Random inputs of the sizes a session was compiled for."""
    return {
        spec.name: random_array(
            spec,
            spec.resolve(session.profile.opt),
            session.model.ranges.get(spec.name),
            np.random.default_rng(i),
        )
        for i, spec in enumerate(session.inputs)
    }


def _reason(error: RuntimeError) -> str:
    """The last telling line of OpenVINO's trail of source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join(told or lines)


def _open_error(error: RuntimeError, name: str) -> Exception:
    text = _reason(error)
    if m := _NO_RULE.search(str(error)):
        return Unsupported(
            f"OpenVINO has no operator {m['ops'].strip()}, which {name} needs.",
            why=text,
            fix="Replace the operator in the model, or race another backend.",
        )
    if any(words in text for words in _UNREADABLE):
        return cannot_read("OpenVINO", name, text)
    if "allocate" in text.lower():
        return MemoryError(text)
    return Unsupported(
        f"OpenVINO cannot compile {name}.",
        why=text,
        fix="Race another backend, or export the model for another opset.",
    )


def _run_error(error: RuntimeError) -> Exception:
    text = _reason(error)
    if "allocate" in text.lower():
        return MemoryError(text)
    return BackendError("OpenVINO failed.", why=text)
