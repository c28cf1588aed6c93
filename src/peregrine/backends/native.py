"""Peregrine's own engine: the graph rebuilt for one device, each operation by the tactic that
measured fastest there (`peregrine.compiler`)."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from peregrine.backends._nvidia import nvidia_driver
from peregrine.backends._torch import as_array, as_tensor, installed, new_stream, threads_of
from peregrine.backends.base import (
    Backend,
    Session,
    check_feeds,
    check_graph,
    check_sizes,
    options_of,
)
from peregrine.compiler.lowered import Lowered
from peregrine.errors import BackendUnavailable, Unsupported
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Feeds, Placement, Precision, Support, Target

if TYPE_CHECKING:
    import torch

    from peregrine.compiler.autotune import Autotuner
    from peregrine.compiler.engine import Engine
    from peregrine.compiler.runtime import Executable

_CUDA = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16)
DEFAULTS: dict[str, object] = {"overlap": True, "slices": False}
"""`overlap`: kernels may start before the one ahead has ended (programmatic dependent launch), in
plans that give the same outputs with it, bit by bit, and are faster (`compiler.overlap`).
`slices`: the steps around the largest tensors may be done for a part of the images at a time,
where that costs no time (`compiler.slicing`): less memory, for a build of several times as long."""
_LARGE = 8 << 20
"""Bytes from which on a copy is for all threads."""
_PLANS_KEPT = 4
"""Sizes whose tensors stay on the device; others are built again when they come."""


class NativeSession(Session):
    """Plans of the sizes that were fed, each with its own memory.

    A profile of one size has its plan at once. Of a range it has the size to optimise for, and
    makes the plan of another when that is first fed: operations it has timed before, here or in
    the timing cache, are not timed again.
    """

    def __init__(
        self,
        model: Model,
        candidate: Candidate,
        target: Target,
        lowered: Mapping[tuple[tuple[str, int], ...], Lowered],
        tuner: Autotuner | None = None,
    ) -> None:
        import torch

        self.inputs, self.outputs, self.profile = model.inputs, model.outputs, target.profile
        self._model, self._candidate, self._target = model, candidate, target
        self._lowered = dict(lowered)
        self._tuner = tuner
        self._executables: dict[tuple[tuple[str, int], ...], Executable] = {}
        self._current: Executable | None = None
        self._staged: dict[str, torch.Tensor] = {}
        torch.set_num_threads(threads_of(target))
        self.note = ""
        """What a user should know of how it came to be; part of the placement."""
        self._use(target.profile.opt)

    @property
    def device(self) -> str:
        """As torch names it."""
        return self._target.device

    @property
    def lowered(self) -> tuple[Lowered, ...]:
        """The plans so far, with their weights."""
        return tuple(self._lowered.values())

    @property
    def executable(self) -> Executable:
        """What runs the sizes that are bound."""
        if self._current is None:
            raise BackendUnavailable("The session is closed.", fix="Compile or load it again.")
        return self._current

    def bind(self, feeds: Feeds) -> None:
        sizes = check_feeds(self.inputs, feeds)
        check_sizes(self.profile, sizes)
        self._use(sizes)
        executable = self.executable
        for spec, buffer in zip(self.inputs, executable.inputs.values(), strict=True):
            buffer.copy_(as_tensor(np.asarray(feeds[spec.name])))
        self.synchronize()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """One inference through page-locked memory: copies and kernels are queued behind each
        other and waited for once."""
        if not self._target.is_cuda:
            return super().run(feeds)
        import torch

        check_sizes(self.profile, sizes := check_feeds(self.inputs, feeds))
        self._use(sizes)
        executable = self.executable
        for spec, buffer in zip(self.inputs, executable.inputs.values(), strict=True):
            pinned = self._pinned(f"in {spec.name}", buffer)
            _fill(pinned, np.asarray(feeds[spec.name]))
            buffer.copy_(pinned, non_blocking=True)
        executable.start()
        staged = []
        for spec, tensor in zip(self.outputs, executable.outputs(), strict=True):
            pinned = self._pinned(f"out {spec.name}", tensor)
            pinned.copy_(tensor, non_blocking=True)
            staged.append(pinned)
        torch.cuda.current_stream(executable.device).synchronize()
        return self._arrays(staged)

    def enqueue(self) -> None:
        self.executable.start()

    def synchronize(self) -> None:
        if self._target.is_cuda and self._current is not None:
            import torch

            torch.cuda.current_stream(self._current.device).synchronize()

    def cuda_stream(self) -> int | None:
        if not self._target.is_cuda:
            return None
        import torch

        return int(torch.cuda.current_stream(self._target.device).cuda_stream)

    def own_stream(self) -> AbstractContextManager[object]:
        return new_stream(self._target) if self._target.is_cuda else nullcontext()

    def fetch(self) -> dict[str, Array]:
        return self._arrays(list(self.executable.outputs()))

    def placement(self, feeds: Feeds) -> Placement:
        """The tactics of the plan's steps: an engine runs on its device alone."""
        self.bind(feeds)
        executable = self.executable
        executable.settle()
        self.synchronize()
        plan = executable.plan
        captured = "Replayed as one CUDA graph." if executable.is_captured else executable.detail
        return Placement(
            device=self._target.device,
            nodes=dict(Counter(step.chosen.tactic for step in plan.steps)) or {"nothing": 1},
            proof="steps of the plan that ran",
            detail=f"{self.note} {captured}".strip(),
        )

    def compiled_kernels(self) -> dict[str, bytes]:
        """The files of the Triton kernels that the plans launch, by name; none on a CPU."""
        if not self._target.is_cuda:
            return {}
        from peregrine.compiler.tactics._triton import launched
        from peregrine.compiler.tactics._triton_cache import collect

        with launched() as kernels:
            for executable in self._executables.values():
                executable.launch()
        self.synchronize()
        return collect(kernels)

    def close(self) -> None:
        if self._current is not None:
            self.synchronize()
        for executable in self._executables.values():
            executable.close()
        self._executables, self._lowered, self._staged = {}, {}, {}
        self._current = None

    def _use(self, sizes: Mapping[str, int]) -> None:
        """Make the plan of these sizes the one that runs."""
        from peregrine.compiler.device_memory import release
        from peregrine.compiler.runtime import Executable

        key = tuple(sorted(sizes.items()))
        found = self._executables.pop(key, None)
        if found is None:
            if key not in self._lowered:
                self._tuner = self._tuner or make_tuner(self._target)
                self._lowered[key] = _lower(self._model, sizes, self._candidate, self._tuner)
            while len(self._executables) >= _PLANS_KEPT:
                self._executables.pop(next(iter(self._executables))).close()
            lowered = self._lowered[key]
            if self._target.is_cuda:
                # Or it would lie in pieces of what tuning has left, which could then not be freed.
                release(self._target.device)
            found = Executable(lowered.plan, lowered.weights, self._target.device)
            self._staged = {}
        elif found is not self._current:
            self._staged = {}
        self._executables[key] = found  # used last, dropped last
        self._current = found

    def _pinned(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Page-locked memory of a tensor's size."""
        import torch

        found = self._staged.get(name)
        if found is None or found.shape != like.shape:
            found = torch.empty_like(like, device="cpu", pin_memory=True)
            self._staged[name] = found
        return found

    def _arrays(self, tensors: list[torch.Tensor]) -> dict[str, Array]:
        from peregrine.compiler.attributes import torch_dtype

        return {
            spec.name: as_array(tensor, torch_dtype(spec.dtype))
            for spec, tensor in zip(self.outputs, tensors, strict=True)
        }


def _fill(pinned: torch.Tensor, array: Array) -> None:
    """Copy an input to page-locked memory; a small one by this thread alone. PyTorch has all its
    threads meet for a copy, and where one must wait for a busy processor, all wait: 8 ms for what
    takes 0.05."""
    import torch

    if array.nbytes > _LARGE or pinned.dtype is torch.bfloat16:  # which numpy does not know
        pinned.copy_(as_tensor(array))
    else:
        np.copyto(pinned.numpy(), array)


class NativeBackend(Backend):
    """On a CPU every operation runs in PyTorch: right, and as fast as that."""

    name: ClassVar[str] = "native"
    distributions: ClassVar[tuple[str, ...]] = (
        "torch",
        "triton",
        "nvidia-cudnn-frontend",
        "onnx-ir",
        "onnxscript",
    )

    def available(self) -> Support:
        if not (here := installed()):
            return here
        if importlib.util.find_spec("safetensors") is None:
            return Support.no(
                "safetensors, which holds an engine's weights, is not installed.",
                "pip install 'peregrine-inference[native]'",
            )
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        if not model.onnx:
            return Support.no(f"{model.name} has no ONNX graph: {model.onnx_error}")
        if target.is_cuda and not (driver := nvidia_driver()):
            return driver
        from peregrine.compiler.operator_set import missing

        if lacking := missing(model.onnx_path):
            return Support.no(
                f"The native engine has no operator {', '.join(lacking)}.",
                "Race the other backends for this model.",
            )
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterator[Candidate]:
        for precision in _CUDA if target.is_cuda else ():
            yield Candidate(self.name, precision=precision)

    def on_request(self, model: Model, target: Target) -> Iterator[Candidate]:
        """On a CPU it is there to be tested: never the fastest, and up to 43 s of a race."""
        if not target.is_cuda:
            yield Candidate(self.name)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> NativeSession:
        check_graph(candidate, model)
        _check(candidate, target)
        tuner = make_tuner(target)
        sizes = target.profile.opt
        lowered = _lower(model, sizes, candidate, tuner)
        key = tuple(sorted(sizes.items()))
        return NativeSession(model, candidate, target, {key: lowered}, tuner)

    def save(self, session: Session, directory: Path) -> None:
        """The plans and their weights, and the kernels that were compiled for them."""
        from peregrine.compiler import engine
        from peregrine.compiler.devices import describe
        from peregrine.compiler.fingerprint import fingerprint

        assert isinstance(session, NativeSession)
        lowered = session.lowered
        engine.save(
            directory,
            [one.plan for one in lowered],
            [one.weights for one in lowered],
            fingerprint(session.device),
            session.compiled_kernels(),
            device=describe(session.device),
        )

    def load(
        self, directory: Path, model: Model, candidate: Candidate, target: Target
    ) -> NativeSession:
        """The plans as they were saved. One that was tuned for another device or other libraries
        is built again from the model, and the placement says what differed.

        Raises:
            BundleCorrupt: a file is damaged.
        """
        from peregrine.compiler import engine
        from peregrine.compiler.fingerprint import fingerprint

        if not (directory / engine.PLAN).exists():
            return self.compile(model, candidate, target)
        _check(candidate, target)
        kept = engine.load(directory)
        if differs := engine.differences(kept, fingerprint(target.device)):
            session = self.compile(model, candidate, target)
            fields = "; ".join(f"{name} {there} there, {now} here" for name, there, now in differs)
            session.note = f"Tuned again: the engine was for another place ({fields})."
            return session
        note = _restore_kernels(kept)
        weights = kept.weights(target.device)
        lowered = {
            tuple(sorted(plan.dims.items())): Lowered(plan, own)
            for plan, own in zip(kept.plans, weights, strict=True)
        }
        session = NativeSession(model, candidate, target, lowered)
        session.note = note
        return session


def _restore_kernels(kept: Engine) -> str:
    """Put an engine's compiled kernels where Triton looks for them; returns what a user should know
    of those that can't be, which are compiled again when they are first launched."""
    if not kept.kernels:
        return ""
    from peregrine.compiler.tactics._triton_cache import restore

    problems = restore({name: kept.kernel(name) for name in kept.kernels}).problems
    if not problems:
        return ""
    return f"Compiled again: {len(problems)} of the engine's kernels ({problems[0]})."


def make_tuner(target: Target) -> Autotuner:
    """An autotuner with the timing cache of this device."""
    from peregrine.compiler.autotune import Autotuner
    from peregrine.compiler.devices import describe
    from peregrine.compiler.fingerprint import fingerprint
    from peregrine.compiler.timings import TimingCache
    from peregrine.store import cache_directory

    here = fingerprint(target.device)
    cache = TimingCache.open(cache_directory("timings"), here) if target.is_cuda else None
    return Autotuner(describe(target.device), cache)


def _lower(
    model: Model, sizes: Mapping[str, int], candidate: Candidate, tuner: Autotuner
) -> Lowered:
    """The weights are left on the CPU: between the tensors of trials they would lie in blocks that
    could then not be freed."""
    from peregrine.compiler.build import build
    from peregrine.compiler.overlap import overlapped

    options = options_of(candidate, DEFAULTS)
    try:
        slices = bool(options["slices"])
        lowered = build(model, sizes, candidate.precision, tuner, slices=slices)
        if options["overlap"]:
            lowered = overlapped(lowered, tuner.device)
        return lowered.on("cpu")
    finally:
        tuner.flush()  # what was measured before a failure, too
        tuner.release()


def _check(candidate: Candidate, target: Target) -> None:
    """Refuse a precision that the device does not compute in, and a device that is not there."""
    offered = _CUDA if target.is_cuda else _CUDA[:1]
    if candidate.precision not in offered:
        raise Unsupported(
            f"The native engine does not run {candidate.precision} on {target.device}.",
            fix=f"Use one of: {', '.join(offered)}.",
        )
    if target.is_cuda:
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"torch {torch.__version__} finds no CUDA device for {target.device}.",
                fix="Use --device cpu, or install a CUDA build of torch and a matching driver.",
            )
