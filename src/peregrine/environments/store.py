"""The environments on record: which there are, and which interpreter a backend gets.

Each is a directory under `home()/environments` whose `environment.json` is written last and
atomically: a directory without one is what an interrupted `create` left. A lock file per name
keeps two processes off the same environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peregrine.backends import registry
from peregrine.environments.command import CommandFailed, run
from peregrine.errors import EnvironmentFailure, OptionError, did_you_mean

RECORD = "environment.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OLDEST_PYTHON = (3, 11)
# What a worker imports before its backend's runtime; `common` in environments.toml brings them.
WORKER_NEEDS = ("numpy", "ml_dtypes", "psutil")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """How to start a backend's worker."""

    python: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables to set over the parent's own."""
    search_path: tuple[str, ...] = ()
    """Directories to import from before the interpreter's own."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment as recorded; `made` ones live in our directory, others are the user's."""

    name: str
    backends: tuple[str, ...]
    python: str
    search_path: tuple[str, ...] = ()
    made: bool = False
    packages: tuple[str, ...] = ()
    created: str = ""
    """UTC, ISO 8601 with microseconds: the newest environment of a backend is the one used."""

    @property
    def problem(self) -> str:
        """Why it cannot be used now, in a sentence; empty when nothing is missing."""
        gone = [p for p in (self.python, *self.search_path) if not Path(p).exists()]
        return f"{gone[0]} is gone." if gone else ""


def home() -> Path:
    """Where Peregrine keeps what outlives a run: `$PEREGRINE_HOME`, or the platform's own."""
    if chosen := os.environ.get("PEREGRINE_HOME"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("peregrine", appauthor=False)


def interpreter_for(backend: str) -> Interpreter:
    """The interpreter for this backend's worker: its newest environment, else this one.

    Raises:
        EnvironmentFailure: the environment's interpreter or directory is gone.
    """
    serving = [env for env in list_all() if backend in env.backends]
    if not serving:
        return Interpreter(Path(sys.executable))
    env = serving[-1]
    if env.problem:
        raise EnvironmentFailure(
            f"The environment {env.name!r} of backend {backend!r} cannot be used.",
            why=env.problem,
            fix=f"Run `peregrine env remove {env.name}`, then create or add it again.",
        )
    # A user's own site-packages would shadow the versions that the environment pins.
    isolation = {"PYTHONNOUSERSITE": "1"} if env.made else {}
    return Interpreter(Path(env.python), isolation, env.search_path)


def list_all() -> list[Environment]:
    """Every complete environment, oldest first.

    Raises:
        EnvironmentFailure: a record cannot be read.
    """
    found = [_read(path) for path in sorted(root().glob(f"*/{RECORD}"))]
    return sorted(found, key=lambda env: env.created)


def add(
    name: str,
    backends: Sequence[str],
    *,
    python: Path | None = None,
    site: Path | None = None,
) -> Environment:
    """Point backends at a ready interpreter, or at a directory of packages.

    Args:
        name: what to call it in `env list`.
        backends: the backends whose workers run there.
        python: the interpreter; this one when only `site` is given.
        site: a directory to import from first, e.g. made by `pip install --target`.

    Raises:
        EnvironmentFailure: a bad or existing name, an interpreter that does not run, is too
            old, or lacks what a worker needs.
        OptionError: an unknown backend, or neither `python` nor `site`.
    """
    if not _NAME.fullmatch(name):
        raise EnvironmentFailure(
            f"{name!r} cannot name an environment.",
            fix="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    if python is None and site is None:
        raise OptionError(
            "Nothing to point at.", fix="Give an interpreter (--python) or a directory (--site)."
        )
    if not backends:
        raise OptionError(
            "No backend to use the environment for.",
            fix=f"Name at least one of: {', '.join(registry.names())}.",
        )
    for backend in backends:
        registry.resolve(backend)
    # Not resolved: a virtual environment's python is a link, and following it leaves it.
    executable = Path(os.path.abspath(python)) if python else Path(sys.executable)  # noqa: PTH100
    search_path = (str(site.resolve()),) if site else ()
    if site and not site.is_dir():
        raise EnvironmentFailure(f"There is no directory {site}.", fix="Check the path of --site.")
    _check_interpreter(executable, search_path)
    env = Environment(
        name=name,
        backends=tuple(backends),
        python=str(executable),
        search_path=search_path,
        created=now(),
    )
    with locked(name):
        refuse_existing(name)
        try:
            write(root() / name, env)
        except OSError as error:
            raise io_failure(f"Environment {name!r} could not be recorded.", error) from error
    return env


def remove(name: str) -> Environment:
    """Forget an environment, and delete it if `create` made it. Returns what it was.

    Raises:
        EnvironmentFailure: there is none of that name, or it cannot be deleted.
    """
    known = {env.name: env for env in list_all()}
    if name not in known:
        raise unknown(f"There is no environment {name!r}.", name, known)
    with locked(name):
        try:
            # The record goes first: interrupted from here on, the rest counts as half made.
            (root() / name / RECORD).unlink(missing_ok=True)
            shutil.rmtree(root() / name)
        except OSError as error:
            raise io_failure(f"Environment {name!r} could not be removed.", error) from error
    return known[name]


def root() -> Path:
    return home() / "environments"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _check_interpreter(python: Path, search_path: Sequence[str]) -> None:
    """Raise EnvironmentFailure unless a worker could start in this interpreter."""
    # The version is tested by old syntax, so that an old Python can answer.
    script = (
        f"import sys; sys.path[:0] = {list(search_path)!r}; "
        f"sys.version_info >= {_OLDEST_PYTHON!r} or sys.exit('Python %d.%d' % "
        f"sys.version_info[:2]); import {', '.join(WORKER_NEEDS)}"
    )
    try:
        run([str(python), "-c", script], lambda line: None)
    except CommandFailed as error:
        raise EnvironmentFailure(
            f"{python} cannot run a worker.",
            why=str(error),
            fix=f"A worker needs Python {'.'.join(map(str, _OLDEST_PYTHON))} or later with "
            f"{', '.join(WORKER_NEEDS)}: {python} -m pip install numpy ml-dtypes psutil",
        ) from error


def refuse_existing(name: str) -> None:
    if (root() / name / RECORD).is_file():
        raise EnvironmentFailure(
            f"There is an environment {name!r} already.",
            fix=f"Run `peregrine env remove {name}` first.",
        )


def unknown(what: str, name: str, known: Mapping[str, object]) -> EnvironmentFailure:
    return EnvironmentFailure(
        what + did_you_mean(name, known),
        why=f"There are: {', '.join(known) or 'none'}.",
        fix="Run `peregrine env list` to see them.",
    )


def io_failure(what: str, error: OSError) -> EnvironmentFailure:
    return EnvironmentFailure(
        what,
        why=str(error),
        fix="Free space or make it writable, or set PEREGRINE_HOME to another directory.",
    )


def _read(path: Path) -> Environment:
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for key in ("backends", "search_path", "packages"):
            record[key] = tuple(record[key])
        return Environment(**record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFailure(
            f"{path} cannot be read.",
            why=f"{type(error).__name__}: {error}",
            fix=f"Delete {path.parent} and make the environment again.",
        ) from error


def write(directory: Path, env: Environment) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"{RECORD}.{os.getpid()}"
    draft.write_text(json.dumps(dataclasses.asdict(env), indent=1), "utf-8")
    draft.replace(directory / RECORD)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the name against other processes; the system lets go when this one dies."""
    locks = root() / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        # Lock files stay: deleting one that another process just opened would split the lock.
        handle = (locks / name).open("w")
    except OSError as error:
        raise io_failure(f"{locks} cannot be written.", error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFailure(
                f"Another process is working on environment {name!r}.",
                fix="Wait for it to end, then try again.",
            ) from None
        yield
