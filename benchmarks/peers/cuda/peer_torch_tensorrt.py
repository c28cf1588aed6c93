"""Torch-TensorRT as its user guide has it: the dynamo path, then CUDA graphs switched on."""

from __future__ import annotations

from typing import ClassVar

from cuda_peer import Peer, TensorSession, eager_module

from peregrine.backends.base import Session
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Target


class TorchTensorRtByHand(Peer):
    """`torch_tensorrt.compile` of the module in the precision that it has."""

    name: ClassVar[str] = "peer_torch_tensorrt"
    package: ClassVar[str] = "torch_tensorrt"
    distributions: ClassVar[tuple[str, ...]] = ("torch-tensorrt", "torch-tensorrt-rtx", "torch")

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        import torch
        import torch_tensorrt

        module = eager_module(model, candidate, target)
        batch = target.profile.opt[model.batch] if model.batch else 1
        example = TensorSession(module, model, candidate, target)
        example.bind(random_feeds(model, batch, 0))
        with torch.no_grad():
            compiled = torch_tensorrt.compile(
                module,
                ir="dynamo",
                arg_inputs=example._bound,
                use_explicit_typing=True,
                disable_tf32=candidate.precision is Precision.FP32,
            )
        graphed = torch_tensorrt.runtime.enable_cudagraphs(compiled).__enter__()  # for good
        return TensorSession(graphed, model, candidate, target).warmed_up(model)
