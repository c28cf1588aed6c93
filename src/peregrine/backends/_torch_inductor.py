"""TorchInductor's surroundings while it builds: its settings, its caches, its temporary files."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NOISE = (
    r"The tensor attributes? self\.",  # nn.LSTM lists its weights anew while it is traced
    "TensorFloat32 tensor cores",  # fp32 and tf32 are candidates of their own
    r"`isinstance\(treespec, LeafSpec\)`",  # torch of itself
    "The CUDA Graph is empty",  # the one that keeps the memory pool of reduce-overhead
)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A temporary directory that takes the temporary files of C++ code and compilers too."""
    with (
        tempfile.TemporaryDirectory(prefix="peregrine-") as directory,
        _environment(TMPDIR=directory),
    ):
        yield Path(directory)


@contextlib.contextmanager
def inductor(scratch: Path, *, compile_threads: int = 1) -> Iterator[None]:
    """Inductor as the race wants it, with caches of its own.

    Fresh caches make every build an honest one, and no pickle is read from a directory that
    others may write to. With one thread in this process alone; a pool of more is ended with the
    build: its memory and its time would be measured as the session's.
    """
    import torch._inductor.config as config
    from torch._inductor.utils import clear_caches

    settings: dict[str, Any] = {"freezing": True, "compile_threads": compile_threads}
    if platform.machine() in ("x86_64", "AMD64"):
        # The CPU's flags decide. Compiling a probe for each instruction set takes 8 s, and every
        # compiler that reads torch's headers knows them.
        settings["cpp.vec_isa_ok"] = True
    inductor, triton = str(scratch / "inductor"), str(scratch / "triton")
    clear_caches()  # in memory, of paths that are gone
    try:
        with (
            config.patch(settings),
            _environment(TORCHINDUCTOR_CACHE_DIR=inductor, TRITON_CACHE_DIR=triton),
            warnings.catch_warnings(),
        ):
            for message in _NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        if compile_threads > 1:
            # Not before: importing it starts a pool of its own size.
            from torch._inductor.async_compile import shutdown_compile_workers

            shutdown_compile_workers()
        clear_caches()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
