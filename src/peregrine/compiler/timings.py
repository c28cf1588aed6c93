"""What tuning measured, kept on disk: a tactic is timed once on a kind of device.

There is one file a fingerprint of the device. Its lines are appended whole and synced, so that
processes may tune side by side, and each is sealed by a hash over itself and the fingerprint: a
line that was torn, changed or copied from another machine's file does not count, and what it held
is tuned and written again. The last line of a key counts.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from peregrine.compiler.operation import Operation
from peregrine.compiler.plan import Timed
from peregrine.compiler.tactics.base import Tactic

FORMAT = 1
"""Goes into the fingerprint: files of another format are passed over."""
_SUFFIX = ".jsonl"


class _Line(msgspec.Struct, frozen=True):
    """One line of a file: either the words of its fingerprint, or a key and its timings."""

    seal: str
    """sha256 over the fingerprint's own hash and `body`."""
    body: msgspec.Raw


class _Entry(msgspec.Struct, frozen=True):
    key: str
    timed: tuple[Timed, ...]


def timing_key(tactic: Tactic, operation: Operation) -> str:
    """What the timings of a tactic's configurations hang on beside the device: the tactic's name,
    the code it runs, and all that it can know of the operation."""
    facts = [tactic.name, tactic_version(tactic), operation.key()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def tactic_version(tactic: Tactic) -> str:
    """A hash of the source of the tactic's module, and of the modules of kernels, tactics and
    operators that it imports, wherever in it and through each other."""
    return _version(type(tactic).__module__)


class TimingCache:
    """The timings of one fingerprint. What the disk refuses (full, read-only) costs the timings,
    not the tuning."""

    def __init__(self, path: Path | None, fingerprint: Mapping[str, str]) -> None:
        self._path = path
        self._fingerprint = dict(fingerprint)
        self._salt = _name(fingerprint)
        self._kept: dict[str, tuple[Timed, ...]] = {}
        self._new: dict[str, tuple[Timed, ...]] = {}

    @classmethod
    def open(cls, directory: Path | None, fingerprint: Mapping[str, str]) -> TimingCache:
        """The timings that a directory holds for a fingerprint.

        Args:
            directory: `cache_directory("timings")`; None keeps nothing on disk.
            fingerprint: field -> value: GPU, capability, driver, CUDA, versions of libraries. One
                that differs in any field has timings of its own.
        """
        path = None if directory is None else directory / f"{_name(fingerprint)}{_SUFFIX}"
        cache = cls(path, fingerprint)
        if path is not None:
            for entry in _entries(path, cache._salt):
                cache._kept[entry.key] = entry.timed
            with contextlib.suppress(OSError):
                os.utime(path)  # used now
        return cache

    def get(self, key: str) -> tuple[Timed, ...] | None:
        """What was put for a key, here or by a process before; None where nothing was."""
        return self._kept.get(key)

    def put(self, key: str, timed: Sequence[Timed]) -> None:
        """Remember; `flush` writes it. Replaces what there was."""
        self._kept[key] = self._new[key] = tuple(timed)

    def flush(self) -> None:
        """Append what is new to the file and wait until the disk has it."""
        if self._path is None or not self._new:
            self._new.clear()
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = b"".join(
                self._line(msgspec.json.encode(_Entry(key, timed)))
                for key, timed in self._new.items()
            )
            _append(self._path, lines, head=self._line(msgspec.json.encode(self._fingerprint)))
        self._new.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def _line(self, body: bytes) -> bytes:
        return msgspec.json.encode(_Line(_seal(self._salt, body), msgspec.Raw(body))) + b"\n"


@dataclass(frozen=True, slots=True)
class TimingFile:
    """One fingerprint's file, for people."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """Unix seconds of its last use."""
    fingerprint: Mapping[str, str]
    """Empty where the file does not tell."""
    entries: int
    """Tactics at operations that it holds timings of."""


def timing_files(directory: Path | None) -> list[TimingFile]:
    """All that a directory holds, last used first; files that another version wrote too."""
    found = []
    for path in directory.glob(f"*{_SUFFIX}") if directory is not None else ():
        with contextlib.suppress(OSError):
            facts = path.stat()
            keys = {entry.key for entry in _entries(path, path.stem)}
            found.append(
                TimingFile(path, facts.st_size, facts.st_mtime, _words_of(path), len(keys))
            )
    return sorted(found, key=lambda file: file.used, reverse=True)


# Files


def _name(fingerprint: Mapping[str, str]) -> str:
    words = json.dumps([FORMAT, sorted(fingerprint.items())])
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _seal(salt: str, body: bytes) -> str:
    return hashlib.sha256(salt.encode() + body).hexdigest()[:32]


def _append(path: Path, lines: bytes, head: bytes) -> None:
    """One write of whole lines at the end, which no other process's write can come into."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            lines = head + lines
        else:
            # A line that another process did not finish must not swallow ours.
            os.lseek(handle, -1, os.SEEK_END)
            if os.read(handle, 1) != b"\n":
                lines = b"\n" + lines
        if os.write(handle, lines) != len(lines):
            raise OSError(f"{path} took a part only")
        os.fsync(handle)
    finally:
        os.close(handle)


def _bodies(path: Path, salt: str) -> Iterator[bytes]:
    """The contents of the lines that are whole and belong to this fingerprint."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            found = _LINES.decode(line)
            if found.seal == _seal(salt, bytes(found.body)):
                yield bytes(found.body)


def _entries(path: Path, salt: str) -> Iterator[_Entry]:
    for body in _bodies(path, salt):
        with contextlib.suppress(msgspec.MsgspecError):  # the first line is of another kind
            yield _ENTRIES.decode(body)


def _words_of(path: Path) -> dict[str, str]:
    """The fingerprint in a file's first line."""
    for body in _bodies(path, path.stem):
        with contextlib.suppress(msgspec.MsgspecError):
            words = msgspec.json.decode(body, type=dict[str, str])
            if _name(words) == path.stem:
                return words
    return {}


_LINES = msgspec.json.Decoder(_Line)
_ENTRIES = msgspec.json.Decoder(_Entry)


# Versions of tactics

_ROOM = "peregrine.compiler"
_HOME = Path(__file__).parent
_FOLLOWED = tuple(f"{_ROOM}.{name}" for name in ("kernels", "tactics", "torch_ops"))
"""What decides what a tactic runs. The rest of the compiler decides which operations there are."""


@functools.cache
def _version(module: str) -> str:
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in seen else _source_of(name)
        if path is None:
            continue
        source = path.read_bytes()
        seen[name] = hashlib.sha256(source).hexdigest()
        waiting += [found for found in _imports(source, name) if found.startswith(_FOLLOWED)]
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:16]


def _source_of(module: str) -> Path | None:
    """The file of a module, found without importing it; None for what is no module, as a name
    that was imported from one."""
    if module.startswith(f"{_ROOM}."):
        path = _HOME.joinpath(*module.removeprefix(f"{_ROOM}.").split("."))
        files = (path.with_suffix(".py"), path / "__init__.py")
        return next((file for file in files if file.is_file()), None)
    loaded = getattr(sys.modules.get(module), "__file__", None)  # of a plugin
    return Path(loaded) if loaded else None


def _imports(source: bytes, module: str) -> Iterator[str]:
    """The names of all that a source imports, at its top or inside functions. The operators of
    `torch_ops` find each other by their registry, so one of them stands for all."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            yield name
            if name.startswith(f"{_ROOM}.torch_ops"):
                for path in sorted((_HOME / "torch_ops").glob("*.py")):
                    yield f"{_ROOM}.torch_ops.{path.stem}"
