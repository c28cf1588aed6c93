"""Compiled kernels kept with an engine, so that loading it compiles nothing.

Triton keeps each kernel in a directory of its cache named by the hash of all that it depends on,
and beside it the small host library that launches kernels of one signature. `collect` reads what a
list of kernels needs, `restore` puts it where Triton will look.

Where that is depends on more than the kernel: on which `ptxas` and which `libdevice` a compilation
would use, and both follow environment variables that other libraries set on their way, as
torch.compile does in the process that it compiles in. So each kernel is kept with what it was
compiled from and the options of its launch, and `restore` asks for the hash that it has here. Of
another version of Triton the hashes differ: the entries are then not found, and the kernels are
compiled again. So they are where an entry can't be restored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peregrine.compiler.tactics._triton import Launched

_KEPT = (".cubin", ".json")
"""Of a kernel's files, what its launch reads; the rest are stages of its compilation."""
_SOURCE = "kernel.source"
"""What a kernel was compiled from, as `_triton_compile.ast_source` reads it; ours, not Triton's."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did."""

    written: int
    """Files."""
    problems: tuple[str, ...] = ()
    """Why entries could not be restored, a line each; their kernels are compiled again."""


def collect(kernels: Iterable[Launched]) -> dict[str, bytes]:
    """Files that these need, by `entry/name`.

    Args:
        kernels: as `_triton.launched` lists them.
    """
    files: dict[str, bytes] = {}
    for launched in kernels:
        kernel = launched.compiled
        for name, path in kernel.metadata_group.items():
            if name.endswith(_KEPT):
                files[_key(Path(path))] = Path(path).read_bytes()
            if name.endswith(".json"):
                files[f"{Path(path).parent.name}/{_SOURCE}"] = _source(launched)
        for module in _launchers(kernel):
            path = Path(str(module.__file__))
            # In a process where torch.compile launched first, it lay in a cache that went with its
            # build. Who restores the kernels compiles it, once.
            with contextlib.suppress(FileNotFoundError):
                files[_key(path)] = path.read_bytes()
    return files


def restore(files: Mapping[str, bytes]) -> Restored:
    """Put what `collect` gave into Triton's cache; entries that are there stay as they are. One
    that can't be restored, for whatever reason, is left out."""
    from triton import knobs

    root = Path(knobs.cache.dir)
    written, problems = 0, []
    entries: dict[str, dict[str, bytes]] = {}
    for key, data in files.items():
        entry, _, name = key.partition("/")
        if not entry.isalnum() or not name or name != Path(name).name or name.startswith("."):
            problems.append(f"{key!r} is no entry of Triton's cache")
        else:
            entries.setdefault(entry, {})[name] = data
    for entry, parts in entries.items():
        try:
            written += _restore(root, entry, parts)
        except Exception as error:  # noqa: BLE001 - Triton's own, too, of what it can't read
            reason = (str(error).strip().splitlines() or [""])[0]
            problems.append(f"{min(parts)}: {type(error).__name__}: {reason}")
    return Restored(written, tuple(problems))


def _restore(root: Path, entry: str, parts: Mapping[str, bytes]) -> int:
    """Put one entry's files, by name, into the cache; returns how many were not there."""
    files = {name: data for name, data in parts.items() if name != _SOURCE}
    directory = root / entry
    names = [name for name in files if name.endswith(".json")]
    if _SOURCE in parts or names:
        (name,) = names
        if Path(name).with_suffix(".cubin").name not in files:
            raise ValueError("the entry has no binary")
        metadata = json.loads(files[name])
        if _SOURCE in parts:
            directory = root / _entry_here(json.loads(parts[_SOURCE]), metadata, entry)
        # Triton finds the files of a kernel by this list of absolute paths. It is written last:
        # whoever sees it finds all that it names.
        paths = {other: str(directory / other) for other in files}
        files[f"__grp__{name}"] = json.dumps({"child_paths": paths}).encode()
    directory.mkdir(parents=True, exist_ok=True)
    missing = [name for name in files if not (directory / name).exists()]
    for name in missing:
        _write(directory / name, files[name])
    return len(missing)


def _source(launched: Launched) -> bytes:
    """What a kernel was compiled from, as JSON."""
    source = launched.compiled.src
    return json.dumps(
        {
            "module": source.fn.__module__,
            "name": source.fn.__name__,
            "signature": source.signature,
            "constants": list(source.constants.items()),
            "attributes": list(source.attrs.items()),
            # Not the metadata's, where warps are those of all specialised groups together.
            "options": dict(launched.options),
        }
    ).encode()


def _entry_here(source: Mapping[str, Any], metadata: Mapping[str, Any], entry: str) -> str:
    """The directory in which this process will look for a kernel; `entry`, the one it was in, where
    this process asks for other code (a sanitizer, say)."""
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
    made = ast_source(source)
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
