"""Converted graphs kept between runs, by what they are made of."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peregrine.store import Store, cache_directory

__all__ = ["Store", "key_of", "root"]

_LIBRARIES = (
    *("ml-dtypes", "nncf", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    *("onnxscript", "openvino"),
)


def root() -> Path | None:
    """Where graphs are kept. None in an environment that cannot say where that is."""
    return cache_directory("graphs")


def key_of(facts: Mapping[str, Any]) -> str:
    """The sha256 of everything that decides an entry: `facts`, which are JSON, the versions of the
    libraries that convert, and our own code that drives them."""
    said = json.dumps({"facts": facts, "made by": _makers()}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


@functools.cache
def _makers() -> dict[str, str]:
    makers = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            makers[name] = importlib.metadata.version(name)
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return {**makers, "code": code.hexdigest()}
