"""Peregrine makes a trained model fast on this machine, and proves it is still right.

Public names resolve on first use, so that `import peregrine` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peregrine.api import bench as bench
    from peregrine.api import build as build
    from peregrine.api import doctor as doctor
    from peregrine.api import load as load
    from peregrine.api import open_report as open_report
    from peregrine.api import session as session
    from peregrine.errors import PeregrineError as PeregrineError
    from peregrine.results import Report as Report
    from peregrine.select import Objective as Objective

_WHERE = {
    "bench": "peregrine.api",
    "build": "peregrine.api",
    "doctor": "peregrine.api",
    "load": "peregrine.api",
    "session": "peregrine.api",
    "open_report": "peregrine.api",
    "Objective": "peregrine.select",
    "PeregrineError": "peregrine.errors",
    "Report": "peregrine.results",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("peregrine-inference")
    if name not in _WHERE:
        raise AttributeError(f"module 'peregrine' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
