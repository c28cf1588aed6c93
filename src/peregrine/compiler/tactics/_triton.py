"""Launching Triton kernels, compiling them ahead in parallel, and keeping what was compiled.

Triton finds a compiled kernel by a hash of its source, of its arguments' types and constants, and
of the options. `compile_ahead` makes the same hash in worker processes that need no GPU, so that
the launch that follows finds the kernel on disk; `CacheWatch` tells whether it did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from peregrine.compiler.tactics.base import Device


def interpreted() -> bool:
    """Whether Triton runs kernels as Python on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available(device: Device) -> str:
    """Why Triton can't run there; empty where it can."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "Triton is not installed"
    if not device.is_cuda and not interpreted():
        return "Triton's kernels need an NVIDIA GPU"
    if device.is_cuda and device.capability < (8, 0):
        return "these kernels need a GPU of compute capability 8.0 or later"
    return ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with all that a launch needs."""

    function: Any
    """A `triton.jit` function at the top level of a module."""
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    """By the names of its parameters; tensors, ints, floats, strings."""
    warps: int = 4
    stages: int = 3
    pdl: bool = False
    """Launched by programmatic dependent launch; the kernel keeps the rules of `kernels.pdl`."""

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages}
        if self.pdl:
            options["launch_pdl"] = True
        return options

    def launch(self) -> Any:
        """On the current stream. Answers the compiled kernel; None from the interpreter."""
        return self.function[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True, slots=True)
class _Source:
    """What a worker compiles: plain values that cross to another process."""

    module: str
    name: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]
    target: tuple[str, int, int]


class Compiler:
    """Worker processes that fill Triton's cache. A context manager; leaving it by an exception or
    Ctrl-C ends the workers at once, and half-written entries are never seen."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or min(16, os.cpu_count() or 1)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in (self._pool._processes or {}).values():
                process.terminate()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        self._pool = None

    def submit(self, kernel: Kernel, device: Device) -> Future[str]:
        """Start compiling; the result is an error's first line, empty where it went well.

        Kernels that cannot be compiled (too much shared memory shows only at their launch) are no
        exception here: the tactic's own launch raises it, where it is one row of the tuning."""
        from multiprocessing import get_context

        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=get_context("spawn"), initializer=_ignore_interrupt
            )
        return self._pool.submit(_compile, _source(kernel, device))


def compile_ahead(kernels: Sequence[Kernel], device: Device, workers: int | None = None) -> None:
    """Compile these for the device on several processors; returns when all are done."""
    if interpreted() or not device.is_cuda or not kernels:
        return
    with Compiler(workers) as compiler:
        for future in [compiler.submit(kernel, device) for kernel in kernels]:
            future.result()


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole group of processes; the parent alone answers it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _target(device: Device) -> tuple[str, int, int]:
    major, minor = device.capability
    return ("cuda", 10 * major + minor, 32)


def _source(kernel: Kernel, device: Device) -> _Source:
    """The specialisation that `JITFunction.run` would make of these arguments."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    function = kernel.function
    target = _target(device)
    backend = make_backend(GPUTarget(*target))
    bind = create_function_from_signature(function.signature, function.params, backend)
    extra = {
        "debug": function.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }
    arguments, specialisation, options = bind(**kernel.arguments, **kernel.options, **extra)
    packed, signature, constants, attributes = function._pack_args(
        backend, {**kernel.arguments, **options}, arguments, specialisation, options
    )
    return _Source(
        function.__module__,
        function.__name__,
        signature,
        constants,
        attributes,
        dict(packed.__dict__),
        target,
    )


def _compile(source: _Source) -> str:
    """In a worker."""
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(source.module), source.name)
    try:
        triton.compile(
            ASTSource(function, source.signature, source.constants, source.attributes),
            target=GPUTarget(*source.target),
            options=source.options,
        )
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is a row of the tuning
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


@dataclass(slots=True)
class CacheWatch:
    """Counts kernels found in Triton's cache and kernels compiled, in this process, while it is
    entered."""

    hits: int = 0
    misses: int = 0
    names: list[str] = field(default_factory=list)
    """Of those that were compiled."""
    _before: Any = None

    def __enter__(self) -> CacheWatch:
        from triton import knobs

        self._before = knobs.compilation.listener
        knobs.compilation.listener = self._heard
        return self

    def __exit__(self, *_: object) -> None:
        from triton import knobs

        knobs.compilation.listener = self._before

    def _heard(self, *, src: Any, cache_hit: bool, **_: Any) -> None:
        if cache_hit:
            self.hits += 1
        else:
            self.misses += 1
            self.names.append(src.name)


def pointer(dtype: torch.dtype) -> torch.Tensor:
    """A tensor that stands for an aligned one of this dtype where a kernel is only compiled."""
    import torch

    return torch.empty(0, dtype=dtype)


def launches(kernels: Sequence[Kernel]) -> Callable[[], None]:
    """One function that launches them in turn."""
    if len(kernels) == 1:
        only = kernels[0]

        def launch() -> None:
            only.launch()

        return launch

    def launch_all() -> None:
        for kernel in kernels:
            kernel.launch()

    return launch_all
