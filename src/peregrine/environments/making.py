"""Making a backend's virtual environment from a set of versions known to work together."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from peregrine.environments.command import CommandFailed, run
from peregrine.environments.store import (
    RECORD,
    WORKER_NEEDS,
    Environment,
    io_failure,
    locked,
    now,
    refuse_existing,
    root,
    unknown,
    write,
)
from peregrine.errors import EnvironmentFailure


@dataclass(frozen=True, slots=True)
class VersionSet:
    """Packages known to work together, from `data/environments.toml`."""

    name: str
    summary: str
    backends: tuple[str, ...]
    packages: tuple[str, ...]
    """pip requirements, the common ones included."""
    imports: tuple[str, ...]
    tested: str
    """Where it was really created and imported; empty where it was not."""
    note: str = ""


def version_sets() -> dict[str, VersionSet]:
    """Name -> what `create` can make."""
    text = (resources.files("peregrine") / "data" / "environments.toml").read_text("utf-8")
    data = tomllib.loads(text)
    return {
        name: VersionSet(
            name=name,
            summary=entry["summary"],
            backends=tuple(entry["backends"]),
            packages=(*data["common"], *entry["packages"]),
            imports=tuple(entry["imports"]),
            tested=entry["tested"],
            note=" ".join(entry.get("note", "").split()),
        )
        for name, entry in data["sets"].items()
    }


def create(name: str, *, report: Callable[[str], None]) -> Environment:
    """Make a virtual environment from the version set `name`.

    Args:
        name: one of `version_sets()`.
        report: called with one line at a time: what is being done, and all that pip prints.

    Returns:
        The environment; from now on the workers of its backends run there.

    Raises:
        EnvironmentFailure: unknown or existing name, or a step failed. What was half made is
            removed, as it is on Ctrl-C.
    """
    chosen = version_sets().get(name)
    if chosen is None:
        raise unknown(f"There is no version set {name!r}.", name, version_sets())
    directory = root() / name
    with locked(name):
        refuse_existing(name)
        try:
            if directory.exists():
                report(f"Removing what an interrupted `env create {name}` left.")
                shutil.rmtree(directory)
            env = _make(chosen, directory, report)
            write(directory, env)
        except OSError as error:
            raise io_failure(f"Environment {name!r} could not be made.", error) from error
        finally:
            if not (directory / RECORD).is_file():
                shutil.rmtree(directory, ignore_errors=True)
    return env


def _make(chosen: VersionSet, directory: Path, report: Callable[[str], None]) -> Environment:
    """Create the venv, install the set and import it once."""
    if chosen.note:
        report(chosen.note)
    python = directory / "bin" / "python"
    modules = ", ".join((*WORKER_NEEDS, *chosen.imports))
    pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    steps = {
        f"Making a virtual environment in {directory}": [
            sys.executable,
            "-m",
            "venv",
            str(directory),
        ],
        f"Installing {', '.join(chosen.packages)}": [*pip, *chosen.packages],
        f"Trying to import {modules}": [str(python), "-I", "-c", f"import {modules}"],
    }
    for doing, command in steps.items():
        report(doing)
        try:
            run(command, report)
        except CommandFailed as error:
            raise EnvironmentFailure(
                f"Environment {chosen.name!r} could not be made: "
                f"{doing[0].lower()}{doing[1:]} failed.",
                why=str(error),
                fix=_advice(str(error)),
            ) from error
    return Environment(
        name=chosen.name,
        backends=chosen.backends,
        python=str(python),
        made=True,
        packages=chosen.packages,
        created=now(),
    )


def _advice(tail: str) -> str:
    """What usually helps, read from the last lines that a step printed."""
    text = tail.lower()
    if "ensurepip" in text:
        return "Install Python's venv module, on Debian and Ubuntu: apt install python3-venv."
    if "no space left" in text:
        return "Free disk space, or set PEREGRINE_HOME to a directory on a larger disk."
    # Before the missing version: without a network pip ends by saying that as well.
    if any(word in text for word in ("connection", "name resolution", "timed out", "network")):
        return "Check the network and pip's settings (`pip config list`), then try again."
    if "no matching distribution" in text:
        return (
            "The pinned version has no wheel for this Python or platform, or pip's index lacks "
            "it: install it by hand in an environment of your own, then `peregrine env add`."
        )
    return "Read the lines above; the same command can be tried again, nothing was kept."
