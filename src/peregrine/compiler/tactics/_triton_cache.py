"""Compiled kernels kept with an engine, so that loading it compiles nothing.

Triton keeps each kernel in a directory of its cache named by the hash of all that it depends on,
and beside it the small host library that launches kernels of one signature. `collect` reads what a
list of kernels needs, `restore` puts it where Triton will look.

Where that is depends on more than the kernel: on which `ptxas` and which `libdevice` a compilation
would use, and both follow environment variables that other libraries set on their way, as
torch.compile does in the process that it compiles in. So each kernel is kept with what it was
compiled from, and `restore` asks for the hash that it has here. Of another version of Triton the
hashes differ: the entries are then not found, and the kernels are compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_KEPT = (".cubin", ".json")
"""Of a kernel's files, what its launch reads; the rest are stages of its compilation."""
_SOURCE = "kernel.source"
"""What a kernel was compiled from, as `_triton_compile.ast_source` reads it; ours, not Triton's."""
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")
"""Those that `_triton.Kernel` sets; the others are Triton's own, here as there."""


def collect(kernels: Iterable[Any]) -> dict[str, bytes]:
    """Files that these need, by `entry/name`.

    Args:
        kernels: compiled kernels, as `_triton.launched` lists them.
    """
    files: dict[str, bytes] = {}
    for kernel in kernels:
        for name, path in kernel.metadata_group.items():
            if name.endswith(_KEPT):
                files[_key(Path(path))] = Path(path).read_bytes()
            if name.endswith(".json"):
                files[f"{Path(path).parent.name}/{_SOURCE}"] = _source(kernel)
        for module in _launchers(kernel):
            path = Path(str(module.__file__))
            files[_key(path)] = path.read_bytes()
    return files


def restore(files: Mapping[str, bytes]) -> int:
    """Put what `collect` gave into Triton's cache; entries that are there stay as they are.

    Returns:
        How many files were written.

    Raises:
        ValueError: a name that is none of `collect`'s.
    """
    from triton import knobs

    root = Path(knobs.cache.dir)
    entries: dict[str, list[str]] = {}
    for key in files:
        entry, slash, name = key.partition("/")
        if not slash or not entry.isalnum() or name != Path(name).name or name.startswith("."):
            raise ValueError(f"{key!r} is no entry of Triton's cache")
        entries.setdefault(entry, []).append(name)
    written = 0
    for entry, names in entries.items():
        missing = {name: files[f"{entry}/{name}"] for name in names if name != _SOURCE}
        directory = root / entry
        if _SOURCE in names:
            names.remove(_SOURCE)
            (metadata,) = (json.loads(missing[name]) for name in names if name.endswith(".json"))
            directory = root / _entry_here(json.loads(files[f"{entry}/{_SOURCE}"]), metadata, entry)
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name.endswith(".json"):
                # Triton finds the files of a kernel by this list of absolute paths.
                paths = {other: str(directory / other) for other in names}
                missing[f"__grp__{name}"] = json.dumps({"child_paths": paths}).encode()
        # The list last: whoever sees it finds all that it names.
        for name, data in missing.items():
            if not (directory / name).exists():
                _write(directory / name, data)
                written += 1
    return written


def _source(kernel: Any) -> bytes:
    """What a compiled kernel was compiled from, as JSON."""
    source = kernel.src
    return json.dumps(
        {
            "module": source.fn.__module__,
            "name": source.fn.__name__,
            "signature": source.signature,
            "constants": list(source.constants.items()),
            "attributes": list(source.attrs.items()),
            "options": {
                name: getattr(kernel.metadata, name)
                for name in _OPTIONS
                if hasattr(kernel.metadata, name)
            },
        }
    ).encode()


def _entry_here(source: Mapping[str, Any], metadata: Mapping[str, Any], entry: str) -> str:
    """The directory in which this process will look for a kernel; `entry`, the one it was in, where
    that cannot be told or where this process asks for other code (a sanitizer, say)."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import get_cache_key, get_cache_manager

    from peregrine.compiler.tactics._triton import launch_options
    from peregrine.compiler.tactics._triton_compile import ast_source

    asked = get_cache_invalidating_env_vars()
    if any(metadata.get(name) != value for name, value in asked.items()):
        return entry
    target = metadata["target"]
    try:
        made = ast_source(source)
    except (ImportError, AttributeError):  # of a kernel that this version does not have
        return entry
    backend = make_backend(GPUTarget(target["backend"], target["arch"], target["warp_size"]))
    options = backend.parse_options({**source["options"], **launch_options(made.fn)})
    key = get_cache_key(made, backend, options, env_vars=asked)
    return str(get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).key)


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, whoever else writes it."""
    handle, draft = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(draft).chmod(0o755 if path.suffix == ".so" else 0o644)
    Path(draft).replace(path)


def _launchers(kernel: Any) -> Iterator[ModuleType]:
    """The compiled modules that launch a kernel and load its binary; none of one that was never
    launched."""
    from triton.runtime import driver

    if kernel.module is None:
        return
    launch = kernel.run.launch
    inner = [cell.cell_contents for cell in getattr(launch, "__closure__", None) or ()]
    for function in (launch, *inner, driver.active.utils.load_binary):
        module = getattr(function, "__self__", None)
        if isinstance(module, ModuleType) and module.__file__:
            yield module
