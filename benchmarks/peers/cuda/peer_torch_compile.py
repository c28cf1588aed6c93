"""torch.compile as PyTorch's documentation recommends for inference on a GPU."""

from __future__ import annotations

from typing import ClassVar

from cuda_peer import Peer, TensorSession, eager_module

from peregrine.backends.base import Session
from peregrine.model.model import Model
from peregrine.types import Candidate, Target


class TorchCompileByHand(Peer):
    """Mode reduce-overhead, with the weights frozen."""

    name: ClassVar[str] = "peer_torch_compile"
    package: ClassVar[str] = "torch"
    distributions: ClassVar[tuple[str, ...]] = ("torch",)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        import torch
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = eager_module(model, candidate, target)
        compiled = torch.compile(module, mode="reduce-overhead")
        return TensorSession(compiled, model, candidate, target).warmed_up(model)
