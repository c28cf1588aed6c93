"""The run directory: everything a race was asked, made and found, so that it can go on.

    run.json         the request
    model/           the model directory
    feeds/ reference/  inputs that judge, and the reference's outputs for them
    calibration/     inputs that quantised graphs get their ranges from
    graphs/          converted graphs, a model directory each
    results.jsonl    append-only: one JSON line a fact with when it was written, never rewritten
    logs/            what each worker printed
    artifacts/       what each valid candidate saved

A row is on disk before the race goes on, so `kill -9` loses at most the candidate at work.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from peregrine.errors import PeregrineError, RunDirectoryError
from peregrine.harness.request import Request
from peregrine.results import to_builtins

_RUN = "run.json"
_ROWS = "results.jsonl"
SCRATCH = "scratch"
"""Temporary files of the workers; a killed race may leave some."""


class RunDirectory:
    """One race's directory. Holds a lock while open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, request: Request) -> RunDirectory:
        """A new, empty run.

        Raises:
            RunDirectoryError: it exists with something in it, or cannot be written.
        """
        run = cls(path)
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
            if (path / _RUN).exists():
                raise RunDirectoryError(
                    f"{path} already holds a run.",
                    fix=f"Go on with it: peregrine bench --resume {path}; or name another --out.",
                )
            if any(path.iterdir()):
                raise RunDirectoryError(
                    f"{path} is not empty and not a run.", fix="Name another --out."
                )
            run._acquire()
            run.write_json(_RUN, request)
            (path / _ROWS).touch()
        return run

    @classmethod
    def resume(cls, path: Path) -> RunDirectory:
        """An earlier run, to go on with. Raises RunDirectoryError when it is none or in use."""
        run = cls.read(path)
        with _explained(path):
            run._acquire()
            run._mend()
        return run

    @classmethod
    def read(cls, path: Path) -> RunDirectory:
        """An earlier run, to look at."""
        if not (path / _RUN).is_file():
            raise RunDirectoryError(
                f"{path} is not a run directory.",
                why=f"there is no {_RUN} in it" if path.is_dir() else "no such directory",
                fix="Name the directory that `peregrine bench` printed.",
            )
        return cls(path)

    def _acquire(self) -> None:
        self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            raise RunDirectoryError(
                f"Another process is at work on {self.path}.", fix="Wait for it, or stop it."
            ) from error

    def _mend(self) -> None:
        """Cut off a last line that a kill left half written."""
        rows = self.path / _ROWS
        data = rows.read_bytes() if rows.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with rows.open("r+b") as file:
                file.truncate(whole)

    def release(self) -> None:
        """Let another process go on with this run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def request(self) -> Request:
        try:
            return msgspec.json.decode((self.path / _RUN).read_bytes(), type=Request)
        except (OSError, msgspec.DecodeError) as error:
            raise RunDirectoryError(
                f"{self.path / _RUN} cannot be read.", why=str(error), fix="Start a new run."
            ) from error

    def append(self, kind: str, record: Any) -> None:
        """Add one fact, durably, before anything else happens. The time, which nothing reads
        back, tells a person where a race's hours went; it is UTC since a race may be resumed."""
        row = {"kind": kind, "written": utc_now("milliseconds"), "record": to_builtins(record)}
        with _explained(self.path), (self.path / _ROWS).open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every fact, oldest first. A half-written last line is passed over."""
        try:
            lines = (self.path / _ROWS).read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path / _ROWS} cannot be read.", why=str(error), fix="Start a new run."
            ) from error
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                yield row["kind"], row["record"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunDirectoryError(
                    f"{self.path / _ROWS}, line {number} is not a row.",
                    why=str(error),
                    fix="Delete that line and resume: what it held is measured again.",
                ) from error

    def write_json(self, name: str, record: Any) -> None:
        """Write a JSON file whole or not at all."""
        with _explained(self.path):
            whole = self.path / name
            part = whole.with_name(f".{whole.name}.part")
            part.write_text(json.dumps(to_builtins(record), indent=1, allow_nan=False))
            part.replace(whole)

    def file(self, *parts: str) -> Path:
        return self.path.joinpath(*parts)


def utc_now(timespec: str = "seconds") -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)


def slug(text: str) -> str:
    """A candidate's id as a file name."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-")


def default_path(name: str, root: Path) -> Path:
    """A fresh `runs/NAME-TIME` below `root`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = root / "runs" / f"{slug(name) or 'model'}-{stamp}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the file system's errors into one that says what to do."""
    try:
        yield
    except PeregrineError:
        raise
    except OSError as error:
        fixes: Mapping[int, str] = {
            errno.ENOSPC: "Free some space, or name a directory on another disk with --out.",
            errno.EDQUOT: "Free some of your quota, or name another --out.",
            errno.EACCES: "Name a directory you may write to with --out.",
            errno.EROFS: "Name a directory on a writable disk with --out.",
        }
        raise RunDirectoryError(
            f"The run directory {path} cannot be written.",
            why=error.strerror or str(error),
            fix=fixes.get(error.errno or 0, "Name another directory with --out.")
            + " What was measured so far is kept: resume with --resume.",
        ) from error
