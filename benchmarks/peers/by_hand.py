"""What an engineer writes by hand for INT8 on a CPU, as rows of the same race.

Each variant follows its runtime's own documentation and nothing of Peregrine's: `quantize_static`
of ONNX Runtime, and nncf's `quantize` with either of OpenVINO's hints. As rows they are measured
in the same interleaved rounds as everything else:

    PYTHONPATH=benchmarks/peers peregrine bench resnet50 --precision fp32,int8 --calibration random
"""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from peregrine.backends.base import Backend, Session
from peregrine.errors import BackendUnavailable
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Placement, Precision, Support, Target

ORT, LATENCY, THROUGHPUT = "ort_int8", "openvino_int8_latency", "openvino_int8_throughput"
_CALIBRATION_ITEMS = 16


def quantized_by_onnxruntime(model: Model, out: Path) -> Path:
    """As in ONNX Runtime's "Quantize ONNX models", with the types that it names for x86."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seeds = iter(range(_CALIBRATION_ITEMS))

        def get_next(self) -> dict[str, Array] | None:
            seed = next(self.seeds, None)
            return None if seed is None else random_feeds(model, 1, 1000 + seed)

    quant_pre_process(str(model.onnx_path), str(out / "clean.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(out / "clean.onnx"),
        str(out / "int8.onnx"),
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return out / "int8.onnx"


def quantized_by_nncf(model: Model) -> Any:
    """As in OpenVINO's "Basic quantization flow"."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf
    import openvino as ov

    feeds = [random_feeds(model, 1, 1000 + seed) for seed in range(_CALIBRATION_ITEMS)]
    return nncf.quantize(
        ov.Core().read_model(model.onnx_path), nncf.Dataset(feeds), subset_size=len(feeds)
    )


class OrtByHand(Session):
    """`InferenceSession.run`, at both boundaries."""

    def __init__(self, model: Model, target: Target) -> None:
        import onnxruntime as ort

        self.inputs, self.outputs, self.profile = model.inputs, model.outputs, target.profile
        with tempfile.TemporaryDirectory() as scratch:
            graph = quantized_by_onnxruntime(model, Path(scratch))
            self._session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self._feeds: Feeds = {}
        self._results: list[Array] = []

    def bind(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def enqueue(self) -> None:
        self._results = self._session.run(None, self._feeds)

    def synchronize(self) -> None:
        pass

    def fetch(self) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._results, strict=True))

    def placement(self, feeds: Feeds) -> Placement:
        return Placement(device="cpu", proof="not asked")


class OpenVinoByHand(Session):
    """One request, or a queue of as many as OpenVINO calls optimal."""

    def __init__(self, model: Model, target: Target, hint: str) -> None:
        import openvino as ov

        self.inputs, self.outputs, self.profile = model.inputs, model.outputs, target.profile
        graph = quantized_by_nncf(model)
        graph.reshape({s.name: list(s.resolve(target.profile.opt)) for s in model.inputs})
        compiled = ov.Core().compile_model(graph, "CPU", {"PERFORMANCE_HINT": hint})
        self.parallelism = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [compiled.create_infer_request() for _ in range(self.parallelism)]
        self._idle, self._busy = deque(self._requests), deque[Any]()
        self._last = self._requests[0]
        self._feeds: Feeds = {}

    def bind(self, feeds: Feeds) -> None:
        self._feeds = feeds
        for request in self._requests:
            for name, value in feeds.items():
                request.get_tensor(name).data[:] = value

    def enqueue(self) -> None:
        if self.parallelism == 1:
            self._last.infer()
            return
        if not self._idle:
            self._idle.append(self._busy.popleft())
            self._idle[-1].wait()
        self._last = self._idle.popleft()
        self._last.start_async()
        self._busy.append(self._last)

    def synchronize(self) -> None:
        while self._busy:
            self._busy[0].wait()
            self._idle.append(self._busy.popleft())

    def fetch(self) -> dict[str, Array]:
        return {
            spec.name: np.array(self._last.get_output_tensor(place).data)
            for place, spec in enumerate(self.outputs)
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        results = self._requests[0].infer(dict(feeds))
        return {spec.name: results[place] for place, spec in enumerate(self.outputs)}

    def placement(self, feeds: Feeds) -> Placement:
        return Placement(device="cpu", proof="not asked")


class ByHand(Backend):
    """The peers' rows."""

    name: ClassVar[str] = "by_hand"
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino", "nncf")

    def available(self) -> Support:
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        return Support(target.device == "cpu", "These peers are for a CPU.", "--device cpu")

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        for variant in (ORT, LATENCY, THROUGHPUT):
            yield Candidate(self.name, variant, Precision.INT8)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        if candidate.variant == ORT:
            return OrtByHand(model, target)
        hints = {LATENCY: "LATENCY", THROUGHPUT: "THROUGHPUT"}
        if candidate.variant not in hints:
            raise BackendUnavailable(f"There is no peer {candidate.variant!r}.")
        return OpenVinoByHand(model, target, hints[candidate.variant])
