"""ONNX Runtime's CUDA provider as its documentation has it for speed: inputs and outputs bound
on the device, exhaustive search of convolutions, and a CUDA graph."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from cuda_peer import Peer, PeerSession, onnx_file

from peregrine.backends.base import Session
from peregrine.errors import BackendUnavailable
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Precision, Target


class OrtSession(PeerSession):
    """OrtValues on the GPU that stay where they are, as a captured graph wants them."""

    def __init__(self, model: Model, candidate: Candidate, target: Target) -> None:
        import onnxruntime as ort

        super().__init__(model, target)
        self._index = int(target.device.partition(":")[2] or 0)
        half = candidate.precision is Precision.FP16
        options = {
            "device_id": self._index,
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "enable_cuda_graph": "1",
            "prefer_nhwc": "1" if half else "0",
            "use_tf32": "0",  # on by default, and another precision
        }
        ort.preload_dlls()  # CUDA and cuDNN out of PyTorch's wheels
        with tempfile.TemporaryDirectory() as scratch:
            path = onnx_file(model, candidate, Path(scratch))
            self._session = ort.InferenceSession(
                str(path), providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"]
            )
        if self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailable("ONNX Runtime did not take its CUDA provider.")
        self._binding = self._session.io_binding()
        self._values: dict[str, Any] = {}
        self._results: list[Any] = []

    def bind(self, feeds: Feeds) -> None:
        import onnxruntime as ort

        if self._values:
            for name, value in feeds.items():
                self._values[name].update_inplace(np.ascontiguousarray(value))
            return
        for name, value in feeds.items():
            on_gpu = ort.OrtValue.ortvalue_from_numpy(value, "cuda", self._index)
            self._values[name] = on_gpu
            self._binding.bind_ortvalue_input(name, on_gpu)
        sizes = self.profile.opt
        for spec in self.outputs:
            empty = ort.OrtValue.ortvalue_from_shape_and_type(
                spec.resolve(sizes), np.dtype(spec.dtype), "cuda", self._index
            )
            self._results.append(empty)
            self._binding.bind_ortvalue_output(spec.name, empty)

    def enqueue(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def synchronize(self) -> None:
        self._binding.synchronize_outputs()

    def fetch(self) -> dict[str, Array]:
        return {
            spec.name: value.numpy()
            for spec, value in zip(self.outputs, self._results, strict=True)
        }


class OnnxRuntimeByHand(Peer):
    """One session of the CUDA provider."""

    name: ClassVar[str] = "peer_onnxruntime_cuda"
    package: ClassVar[str] = "onnxruntime"
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime-gpu", "onnxruntime")

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        return OrtSession(model, candidate, target)
