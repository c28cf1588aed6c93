"""TensorRT-RTX as its developer guide has it: parse the ONNX file, build, and launch the context's
work as one CUDA graph."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from cuda_peer import Peer, PeerSession, onnx_file

from peregrine.backends.base import Session
from peregrine.errors import BackendUnavailable
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Target

_WORKSPACE = 4 << 30


def build(path: Path, model: Model, target: Target) -> bytes:
    """As in "Building an engine from ONNX", at the one size of the race."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BackendUnavailable(f"TensorRT-RTX does not parse {model.name}.", why=errors)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and another precision
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    profile = builder.create_optimization_profile()
    for spec in model.inputs:
        shape = spec.resolve(target.profile.opt)
        profile.set_shape(spec.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendUnavailable(f"TensorRT-RTX builds no engine of {model.name}.")
    return bytes(engine)


class TrtSession(PeerSession):
    """Buffers of PyTorch, one stream, one graph."""

    def __init__(self, engine: bytes, model: Model, target: Target) -> None:
        import tensorrt_rtx as trt
        import torch

        super().__init__(model, target)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream(target.device)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Any] = {}
        for spec in (*model.inputs, *model.outputs):
            shape = spec.resolve(target.profile.opt)
            buffer = torch.empty(shape, dtype=getattr(torch, spec.dtype), device=target.device)
            self._buffers[spec.name] = buffer
            self._context.set_tensor_address(spec.name, buffer.data_ptr())
            if spec in model.inputs:
                buffer.zero_()
                self._context.set_input_shape(spec.name, shape)
        torch.cuda.synchronize(target.device)
        for _ in range(3):  # kernels are compiled at the first
            self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._context.execute_async_v3(self._stream.cuda_stream)

    def bind(self, feeds: Feeds) -> None:
        import torch

        for name, value in feeds.items():
            self._buffers[name].copy_(torch.from_numpy(np.array(value)))

    def enqueue(self) -> None:
        self._graph.replay()

    def fetch(self) -> dict[str, Array]:
        return {spec.name: self._buffers[spec.name].cpu().numpy() for spec in self.outputs}

    def close(self) -> None:
        # In this order: a context must not outlive its engine, nor that its runtime.
        self._graph = self._context = self._engine = self._runtime = None


class TensorRtByHand(Peer):
    """One engine of fixed sizes."""

    name: ClassVar[str] = "peer_tensorrt_rtx"
    package: ClassVar[str] = "tensorrt_rtx"
    distributions: ClassVar[tuple[str, ...]] = ("tensorrt-rtx", "tensorrt-rtx-cu13", "torch")

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        with tempfile.TemporaryDirectory() as scratch:
            engine = build(onnx_file(model, candidate, Path(scratch)), model, target)
        return TrtSession(engine, model, target)
