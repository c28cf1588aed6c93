"""Which interpreter a backend's worker runs in, and making virtual environments for them.

Runtimes pin each other into corners (onnxruntime against onnxruntime-openvino, torch against
TensorRT), so a backend may have a virtual environment of its own: one made here from a version
set known to work, or a ready interpreter or site directory that the user points at.
"""

from peregrine.environments.making import VersionSet, create, version_sets
from peregrine.environments.store import (
    Environment,
    Interpreter,
    add,
    home,
    interpreter_for,
    list_all,
    remove,
)

__all__ = [
    "Environment",
    "Interpreter",
    "VersionSet",
    "add",
    "create",
    "home",
    "interpreter_for",
    "list_all",
    "remove",
    "version_sets",
]
