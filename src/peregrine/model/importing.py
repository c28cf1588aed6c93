"""Functions that the user names as `package.module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peregrine.errors import ModelError, ModelNotFound, did_you_mean


def find_callable(location: str, attribute: str, search_path: Sequence[str]) -> Any:
    """Import module `location` and return its callable `attribute`, which may be dotted.

    `search_path` only words the error: `importable_from` is what makes it count.

    Raises:
        ModelNotFound: there is no such module or attribute.
        ModelError: importing failed, or the attribute is not callable.
    """
    try:
        found: Any = importlib.import_module(location)
    except ModuleNotFoundError as error:
        raise ModelNotFound(
            f"There is no Python module {location!r}.",
            why=f"{error}; looked in {', '.join(search_path) or 'the interpreter'} and sys.path.",
            fix="Run from the directory that holds it, or install its package.",
        ) from error
    except Exception as error:
        raise ModelError(
            f"Importing {location!r} failed.", why=f"{type(error).__name__}: {error}"
        ) from error
    owner = found
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelNotFound(f"{location} has no {attribute!r}.{did_you_mean(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{owner.__name__}:{attribute} is not callable.")
    return found


@contextmanager
def importable_from(directories: Sequence[str]) -> Iterator[None]:
    """`directories` at the head of sys.path; modules imported meanwhile stay imported."""
    added = [d for d in directories if d not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        for directory in added:
            sys.path.remove(directory)
