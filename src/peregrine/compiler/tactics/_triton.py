"""Launching Triton kernels, and compiling them ahead in parallel.

Triton finds a compiled kernel by a hash of its source, of its arguments' types and constants, and
of the options. `compile_ahead` has the same hash made in worker processes that need no GPU, so that
the launch that follows finds the kernel on disk; `CacheWatch` tells whether it did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from peregrine.compiler.tactics.base import Device

_launched: list[Launched] | None = None
"""What is launched while `launched` is entered."""
_trying = False
_tried: dict[int, tuple[Any, Any]] = {}
"""Function and compiled kernel, by the kernel's id, of what trials have launched."""
_MOST_SPILLED = 256
"""Bytes a thread that a kernel on trial may spill. The driver sets them aside for every thread that
the device can hold, and never gives them back: 2.6 KB were 0.7 GiB on an H200. What spills as much
has not won there."""
_serving: dict[int, tuple[Any, Any]] = {}
"""The same of what was launched otherwise, and may be part of a CUDA graph for as long as a
session lives."""


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

    def refuse_spills(self) -> None:
        """Compile it, without launching it.

        Raises:
            RuntimeError: it spills more than a trial may.
        """
        compiled = self.function.warmup(grid=self.grid, **self.arguments, **self.options)
        compiled._init_handles()
        spilled = 4 * compiled.n_spills  # Triton counts registers
        if spilled > _MOST_SPILLED:
            _tried[id(compiled)] = self.function, compiled
            raise RuntimeError(f"spills {spilled} bytes a thread")

    def launch(self) -> None:
        """On the current stream."""
        compiled = self.function[self.grid](**self.arguments, **self.options)
        if compiled is None:  # the interpreter's
            return
        if _launched is not None:
            _launched.append(Launched(compiled, self.options))
        (_tried if _trying else _serving)[id(compiled)] = (self.function, compiled)


@dataclass(frozen=True, slots=True)
class Launched:
    """A kernel that was launched."""

    compiled: Any
    """Triton's `CompiledKernel`."""
    options: Mapping[str, Any]
    """Of the launch, which Triton does not keep."""


@contextmanager
def launched() -> Iterator[list[Launched]]:
    """What is launched meanwhile, as `_triton_cache.collect` takes it."""
    global _launched
    before, _launched = _launched, []
    try:
        yield _launched
    finally:
        _launched = before


@contextmanager
def trying() -> Iterator[None]:
    """What is launched meanwhile is for a trial, and `unload` may take it off the device."""
    global _trying
    before, _trying = _trying, True
    try:
        yield
    finally:
        _trying = before


def unload() -> None:
    """Take the kernels that only trials have launched off the current device. A build loads
    several hundred, and the driver keeps about 1 MiB for each. No CUDA graph may hold one of them;
    one that is launched again is loaded again, from Triton's cache."""
    lost = {key: found for key, found in _tried.items() if key not in _serving}
    _tried.clear()
    if not lost:
        return
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")
    for function, kernel in lost.values():
        for caches in function.device_caches.values():
            for key in [key for key, cached in caches[0].items() if cached is kernel]:
                del caches[0][key]
        if kernel.module is not None:
            driver.cuModuleUnload(ctypes.c_void_p(kernel.module))
            kernel.module = kernel.function = None


def compile_ahead(kernels: Sequence[Kernel], device: Device) -> None:
    """Compile these for the device on several processors; returns when all are done. What cannot be
    compiled is left to its launch, which raises the reason. May be called from several threads:
    they share the workers."""
    if interpreted() or not device.is_cuda or not kernels:
        return
    from peregrine.compiler.tactics._triton_compile import shared

    for done in [shared().submit(specialise(kernel, device)) for kernel in kernels]:
        done.result()


def specialise(kernel: Kernel, device: Device) -> dict[str, Any]:
    """What a worker compiles: the specialisation that `JITFunction.run` makes of these arguments,
    as plain values."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    function = kernel.function
    major, minor = device.capability
    target = ("cuda", 10 * major + minor, 32)
    backend = make_backend(GPUTarget(*target))
    bind = create_function_from_signature(function.signature, function.params, backend)
    arguments, specialisation, options = bind(
        **kernel.arguments, **kernel.options, **launch_options(function)
    )
    packed, signature, constants, attributes = function._pack_args(
        backend, {**kernel.arguments, **options}, arguments, specialisation, options
    )
    return {
        "module": function.__module__,
        "name": function.__name__,
        "signature": signature,
        "constants": list(constants.items()),
        "attributes": list(attributes.items()),
        "options": dict(packed.__dict__),
        "target": target,
    }


def launch_options(function: Any) -> dict[str, Any]:
    """What `JITFunction.run` adds to the options of each launch."""
    from triton import knobs

    return {
        "debug": function.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }


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
    """One function that launches them in turn.

    Raises:
        RuntimeError: this is for a trial, and one spills too much.
    """
    if _trying and not interpreted():
        for kernel in kernels:
            kernel.refuse_spills()
    if len(kernels) == 1:
        only = kernels[0]

        def launch() -> None:
            only.launch()

        return launch

    def launch_all() -> None:
        for kernel in kernels:
            kernel.launch()

    return launch_all
