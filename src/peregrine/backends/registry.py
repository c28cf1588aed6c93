"""Finds backends by entry point, so that a new one needs no edit here."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from importlib.metadata import entry_points
from pathlib import Path

from peregrine.backends.base import Backend
from peregrine.errors import OptionError, did_you_mean

GROUP = "peregrine.backends"


def names() -> dict[str, str]:
    """Name -> `module:Class` of every registered backend. Imports none of them."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP))}


def resolve(wanted: str) -> str:
    """The `module:Class` of a backend; an unknown name is answered with the nearest one."""
    known = names()
    if wanted in known:
        return known[wanted]
    raise OptionError(
        f"There is no backend {wanted!r}.{did_you_mean(wanted, known)}",
        why=f"The registered ones are: {', '.join(known) or 'none'}.",
        fix="Run `peregrine doctor` to see each with its state.",
    )


def load(location: str) -> Backend:
    """The backend at `module:Class`. The worker calls this with what the parent resolved,
    since another interpreter need not know the entry points of this one."""
    module, _, attribute = location.partition(":")
    backend = getattr(importlib.import_module(module), attribute)()
    if not isinstance(backend, Backend):
        raise OptionError(f"{location} is not a peregrine Backend.")
    return backend


def get(name: str) -> Backend:
    """The backend registered as `name`, in this process."""
    return load(resolve(name))


def code_of(backend: Backend) -> str:
    """The sha256 of the file that a backend is written in: a plugin's version may stand still
    while its author works on it."""
    return hashlib.sha256(Path(inspect.getfile(type(backend))).read_bytes()).hexdigest()
