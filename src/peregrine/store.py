"""What costs time to make, kept between runs by what it was made of.

An entry is a directory named by its key: files, and `entry.json`, which holds their sha256 and a
record of how they were made. It is made under another name and renamed into place, so half an
entry has no key; a file that no longer hashes to what is recorded makes the entry void.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 8 << 30
"""Bytes; above it the entries that were used longest ago go."""
_ENTRY = "entry.json"
_DRAFT = ".draft-"
_ABANDONED_S = 86400


def cache_directory(kind: str) -> Path | None:
    """Where one kind of entries is kept: `$PEREGRINE_CACHE/kind`, or in the platform's cache
    directory. None in an environment that cannot say where that is."""
    if chosen := os.environ.get("PEREGRINE_CACHE"):
        return Path(chosen).expanduser().absolute() / kind
    try:
        import platformdirs
    except ModuleNotFoundError:  # a user's environment needs no more than a worker does
        return None
    return platformdirs.user_cache_path("peregrine") / kind


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as its own words say; its files are not read."""

    key: str
    used: float
    """Unix seconds of the last time it was put or fetched."""
    size: int
    """Bytes on disk."""
    record: Mapping[str, Any]
    """Empty where it cannot be read."""


class Store:
    """Entries in a directory that processes may share.

    What the disk refuses (full, read-only) costs the entry, not what it holds.
    """

    def __init__(self, directory: Path | None, limit: int = LIMIT) -> None:
        self._root = directory
        self._limit = limit

    def fetch(self, key: str, out: Path) -> dict[str, Any] | None:
        """Copy an entry's files to `out` and return its record; None where there is no entry, or
        one with a file that is not what was put there, which is then deleted."""
        if self._root is None:
            return None
        home = self._root / key
        try:
            entry = json.loads((home / _ENTRY).read_text())
            files: dict[str, str] = entry["files"]
            record: dict[str, Any] = entry["record"]
            intact = entry["seal"] == _seal(files, record) and all(
                _copy(home / name, out / name) == sha256 for name, sha256 in files.items()
            )
        except FileNotFoundError:
            intact = False
            if not home.is_dir():  # never there, or another process just dropped it
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            self._drop(home)
            return None
        with contextlib.suppress(OSError):
            os.utime(home / _ENTRY)  # used now
        return record

    def put(self, key: str, source: Path, names: Iterable[str], record: Mapping[str, Any]) -> None:
        """Keep a copy of files in `source`, and drop old entries above the limit. Where another
        process was first, its entry stays."""
        if self._root is None:
            return
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._root))
            try:
                files = {name: _copy(source / name, draft / name) for name in names}
                entry = {"files": files, "record": record, "seal": _seal(files, record)}
                (draft / _ENTRY).write_text(json.dumps(entry, indent=1, sort_keys=True))
                draft.rename(self._root / key)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        self._trim(key)

    def entries(self) -> list[Entry]:
        """Everything there is, last used first. Empty where there is no directory."""
        if self._root is None:
            return []
        found = []
        for used, path in sorted(self._entries(), reverse=True):
            if not path.name.startswith(_DRAFT):
                found.append(Entry(path.name, used, _size(path), _record(path)))
        return found

    def drop(self, key: str) -> None:
        """Forget an entry; none there is no error."""
        if self._root is not None:
            self._drop(self._root / key)

    def _drop(self, home: Path) -> None:
        """Take an entry out of use at once; deleting its files takes longer."""
        assert self._root is not None
        with contextlib.suppress(OSError):
            grave = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._root))
            home.rename(grave / home.name)
            shutil.rmtree(grave, ignore_errors=True)

    def _trim(self, newest: str) -> None:
        """Keep what was used last within the limit, and the newest in any case."""
        assert self._root is not None
        kept = 0
        for used, path in sorted(self._entries(), reverse=True):
            if path.name.startswith(_DRAFT):
                if time.time() - used > _ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            kept += _size(path)
            if kept > self._limit and path.name != newest:
                self._drop(path)

    def _entries(self) -> list[tuple[float, Path]]:
        assert self._root is not None
        found = []
        with contextlib.suppress(OSError):
            for path in self._root.iterdir():
                mark = path / _ENTRY if (path / _ENTRY).exists() else path
                with contextlib.suppress(OSError):
                    found.append((mark.stat().st_mtime, path))
        return found


def _seal(files: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """A hash over the entry's own words."""
    return hashlib.sha256(json.dumps([files, record], sort_keys=True).encode()).hexdigest()


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the sha256 is of the bytes that were written."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(1 << 22):
            digest.update(chunk)
            write.write(chunk)
    return digest.hexdigest()


def _record(home: Path) -> dict[str, Any]:
    """An entry's record where its words are whole."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads((home / _ENTRY).read_text())
        if entry["seal"] == _seal(entry["files"], entry["record"]):
            return dict(entry["record"])
    return {}


def _size(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
