"""PyTorch as it is: operator by operator, in the plain layout or in channels-last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from peregrine.backends import _torch
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
        has_images = any(s.dtype.startswith("float") and len(s.shape) == 4 for s in model.inputs)
        for precision in _torch.precisions(target):
            if has_images:
                yield Candidate(self.name, CHANNELS_LAST, precision)
            # A CPU's 16-bit convolutions are slower in the plain layout: ResNet-18 took 1.5 times
            # as long in bf16 and 2.3 times in fp16.
            if not has_images or target.is_cuda or precision is Precision.FP32:
                yield Candidate(self.name, EAGER, precision)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        import torch

        _torch.check(candidate, model, target, (EAGER, CHANNELS_LAST))
        module = _torch.ready_module(model, candidate.precision, target)
        if candidate.variant == CHANNELS_LAST:
            _torch.keep_freed_memory()
            # The weights decide: a convolution takes its weight's layout whatever its input's,
            # and hands it on. Converting the input too measured the same on a ResNet-18.
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _EagerSession(module, model, candidate.precision, target, _any_size(model, target))


def _any_size(model: Model, target: Target) -> Profile:
    """Eager code is compiled for no size: one session serves all."""
    symbols = dict.fromkeys(symbol for spec in model.inputs for symbol in spec.symbols)
    opt = target.profile.opt
    return Profile({name: DimRange(1, opt.get(name, 1), _ANY_SIZE) for name in symbols})


class _EagerSession(_torch.TorchSession):
    def placement(self, feeds: Feeds) -> Placement:
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

        self.run(feeds)  # the first run may differ: it finds out whether inputs are written to
        with Watch():  # type: ignore[no-untyped-call]
            self.enqueue()
        self.synchronize()
        elsewhere = sorted(set(nodes) - {self.target.device})
        return Placement(
            device=self.target.device,
            nodes=dict(nodes),
            precisions=dict(precisions),
            copies=copies,
            fell_back=bool(elsewhere),
            proof="ATen operators seen by a dispatch mode in one inference",
            detail=f"operators ran on {', '.join(elsewhere)}" if elsewhere else "",
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
