"""Compiled kernels kept with an engine, so that loading it compiles nothing.

Triton keeps each kernel in a directory of its cache named by the hash of all that it depends on,
and beside it the small host library that launches kernels of one signature. `collect` reads what a
list of kernels needs, `restore` puts it where Triton will look. Of another version of Triton the
hashes differ: the entries are then not found, and the kernels are compiled again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_KEPT = (".cubin", ".json")
"""Of a kernel's files, what its launch reads; the rest are stages of its compilation."""


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
        directory = root / entry
        directory.mkdir(parents=True, exist_ok=True)
        missing = {name: files[f"{entry}/{name}"] for name in names}
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
    """The compiled modules that launch a kernel and load its binary."""
    from triton.runtime import driver

    launch = kernel.run.launch
    inner = [cell.cell_contents for cell in getattr(launch, "__closure__", None) or ()]
    for function in (launch, *inner, driver.active.utils.load_binary):
        module = getattr(function, "__self__", None)
        if isinstance(module, ModuleType) and module.__file__:
            yield module
