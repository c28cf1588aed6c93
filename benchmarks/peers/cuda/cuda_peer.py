"""What an engineer writes by hand for an NVIDIA GPU, as rows of the same race.

Each `peer_*.py` beside this follows its runtime's own documentation and nothing of Peregrine's
backends; this module is what they share: the contract, and tensors in and out. As rows they are
measured in the same interleaved rounds as everything else:

    PYTHONPATH=benchmarks/peers/cuda peregrine bench resnet50 --batch 1 --precision fp32,fp16

`peer_torch_tensorrt` wants the environment of `torch_tensorrt`; without it, its row says so.
The files are not named after their runtimes, because they would be imported in place of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from peregrine.backends.base import Backend, Session
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Placement, Precision, Support, Target


class Peer(Backend):
    """fp32 and fp16 of one runtime, at fixed sizes."""

    package: ClassVar[str]
    """The module that must be there."""

    def available(self) -> Support:
        if importlib.util.find_spec(self.package) is None:
            return Support.no(f"{self.package} is not installed.", f"pip install {self.package}")
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        if not target.is_cuda:
            return Support.no("These peers are for an NVIDIA GPU.", "--device cuda")
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        for precision in (Precision.FP32, Precision.FP16):
            yield Candidate(self.name, precision=precision)


class PeerSession(Session):
    """The part of a session that no peer's documentation speaks of."""

    def __init__(self, model: Model, target: Target) -> None:
        self.inputs, self.outputs, self.profile = model.inputs, model.outputs, target.profile
        self.device = target.device

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.device)

    def placement(self, feeds: Feeds) -> Placement:
        return Placement(device=self.device, proof="not asked")


class TensorSession(PeerSession):
    """A function of tensors on the GPU, in float16 where the candidate says so."""

    def __init__(
        self, forward: Callable[..., Any], model: Model, candidate: Candidate, target: Target
    ) -> None:
        super().__init__(model, target)
        self._forward = forward
        self._half = candidate.precision is Precision.FP16
        self._bound: list[Any] = []
        self._result: Any = ()

    def bind(self, feeds: Feeds) -> None:
        import torch

        tensors = [torch.from_numpy(np.array(feeds[s.name])).to(self.device) for s in self.inputs]
        self._bound = [t.half() if self._half and t.is_floating_point() else t for t in tensors]

    def warmed_up(self, model: Model) -> TensorSession:
        """As every guide says to before measuring: compiles, and records, what is lazy."""
        batch = self.profile.opt[model.batch] if model.batch else 1
        for _ in range(3):
            self.run(random_feeds(model, batch, 0))
        return self

    def enqueue(self) -> None:
        import torch

        with torch.inference_mode():
            self._result = self._forward(*self._bound)

    def fetch(self) -> dict[str, Array]:
        several = isinstance(self._result, (tuple, list))
        tensors = self._result if several else (self._result,)
        return {
            spec.name: tensor.cpu().numpy().astype(spec.dtype)
            for spec, tensor in zip(self.outputs, tensors, strict=True)
        }


def eager_module(model: Model, candidate: Candidate, target: Target) -> Any:
    """The network on the GPU, channels-last, as PyTorch's tuning guide has it for convolutions."""
    import torch

    # Left alone, cuDNN computes float32 convolutions in TF32: another precision, another row.
    torch.backends.cudnn.allow_tf32 = False
    module = model.load_module().eval().to(target.device)
    if candidate.precision is Precision.FP16:
        module = module.half()
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def onnx_file(model: Model, candidate: Candidate, directory: Path) -> Path:
    """The network's ONNX file; in float16 by ONNX Runtime's own converter."""
    if candidate.precision is not Precision.FP16:
        return model.onnx_path
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = convert_float_to_float16(onnx.load(model.onnx_path), keep_io_types=True)
    onnx.save(graph, directory / "fp16.onnx")
    return directory / "fp16.onnx"
