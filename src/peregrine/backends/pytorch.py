"""PyTorch as it is: operator by operator, in the plain layout or in channels-last."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from peregrine.backends import _torch
from peregrine.backends._torch_export import check_profile, example
from peregrine.backends._torch_graph import RecordedSession
from peregrine.backends.base import Backend, Session
from peregrine.model.model import Model
from peregrine.types import (
    Candidate,
    DimRange,
    Feeds,
    Placement,
    Precision,
    Profile,
    Support,
    Target,
)

if TYPE_CHECKING:
    from torch import Tensor

EAGER = "eager"
CHANNELS_LAST = "channels_last"

_DEFAULTS: dict[str, object] = {_torch.CUDA_GRAPH: False}
_ANY_SIZE = 2**31 - 1


class PyTorchBackend(Backend):
    """Eager PyTorch under `inference_mode`: what a model is before anything is done for it."""

    name = "pytorch"
    distributions = ("torch",)

    def available(self) -> Support:
        return _torch.installed()

    def supports(self, model: Model, target: Target) -> Support:
        return _torch.takes(model)

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        images = _torch.has_images(model)
        for precision in _torch.precisions(target):
            if target.is_cuda:
                # In one layout: full-precision convolutions have their kernels in the plain one,
                # tensor cores in the other.
                last = images and precision is not Precision.FP32
                layout = CHANNELS_LAST if last else EAGER
                yield Candidate(self.name, layout, precision, {_torch.CUDA_GRAPH: True})
            if images:
                yield Candidate(self.name, CHANNELS_LAST, precision)
            # A CPU's 16-bit convolutions are slower in the plain layout: ResNet-18 took 1.5 times
            # as long in bf16 and 2.3 times in fp16.
            if not images or target.is_cuda or precision is Precision.FP32:
                yield Candidate(self.name, EAGER, precision)

    def refines(self, candidate: Candidate, target: Target) -> bool:
        """What launches its kernels one by one; eager fp32 is what all are measured by."""
        baseline = candidate.variant == EAGER and candidate.precision is Precision.FP32
        return target.is_cuda and not candidate.options.get(_torch.CUDA_GRAPH) and not baseline

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Place the module; with the option `cuda_graph` also record it, at the sizes of
        `target.profile` first and at others when they are bound.

        Raises:
            Unsupported: it cannot be recorded.
            OptionError: an unknown variant or option; to be recorded without sizes.
            BackendUnavailable: there is no CUDA device for the target.
        """
        options = _torch.check(candidate, model, target, (EAGER, CHANNELS_LAST), _DEFAULTS)
        module = _torch.ready_module(model, candidate.precision, target)
        if candidate.variant == CHANNELS_LAST:
            _torch.keep_freed_memory()
            module = _torch.channels_last(module)
        serves = _any_size(model, target)
        if not options[_torch.CUDA_GRAPH]:
            return _EagerSession(module, model, candidate.precision, target, serves)
        check_profile(model, target)
        session = _RecordedSession(module, model, candidate.precision, target, serves)
        session.bind(example(model, target))
        return session


def _any_size(model: Model, target: Target) -> Profile:
    """Eager code is compiled for no size: one session serves all."""
    symbols = dict.fromkeys(symbol for spec in model.inputs for symbol in spec.symbols)
    opt = target.profile.opt
    return Profile({name: DimRange(1, opt.get(name, 1), _ANY_SIZE) for name in symbols})


class _EagerSession(_torch.TorchSession):
    def placement(self, feeds: Feeds) -> Placement:
        self.run(feeds)  # the first run may differ: it finds out whether inputs are written to
        return _watched(self.enqueue, self)


class _RecordedSession(RecordedSession):
    def placement(self, feeds: Feeds) -> Placement:
        self.bind(feeds)
        placed = _watched(self.launch, self)
        return dataclasses.replace(
            placed, detail=f"{placed.detail} Replayed as one CUDA graph.".strip()
        )


def _watched(infer: Callable[[], None], session: _torch.TorchSession) -> Placement:
    """The devices of every ATen operator's result, seen while one inference is dispatched."""
    from torch.utils._python_dispatch import TorchDispatchMode

    nodes: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    copies = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal copies
            result = func(*args, **(kwargs or {}))
            if computed_in := _torch.arithmetic(func, result):
                precisions[computed_in] += 1
            for tensor in _tensors(result):
                device = str(tensor.device)
                nodes[device] += 1
                # A CPU scalar travels as a kernel's argument.
                copies += any(t.dim() and str(t.device) != device for t in _tensors(args))
                break
            return result

    with Watch():  # type: ignore[no-untyped-call]
        infer()
    session.synchronize()
    wanted = session.target.device
    elsewhere = sorted(set(nodes) - {wanted})
    return Placement(
        device=wanted,
        nodes=dict(nodes),
        precisions=dict(precisions),
        copies=copies,
        fell_back=bool(elsewhere),
        proof="ATen operators seen by a dispatch mode in one inference",
        detail=f"Operators ran on {', '.join(elsewhere)}." if elsewhere else "",
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
