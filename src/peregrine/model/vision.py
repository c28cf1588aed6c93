"""Importing torchvision's classification networks, also beside a torch it was not built for."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from peregrine.errors import ModelError

# Operators that torchvision's Python names at import; classification networks use neither.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept_alive: list[object] = []


def torchvision_models() -> Any:
    """The module `torchvision.models`.

    torchvision from PyPI beside a CPU-only torch cannot load its compiled operators and fails at
    import ("operator torchvision::nms does not exist"). Their schemas are then declared, with no
    implementation, and the import is tried again.

    Raises:
        ModelError: torchvision is not installed, or cannot be imported even so.
    """
    import torch

    try:
        return _import()
    except ModuleNotFoundError as error:
        raise ModelError(
            "torchvision is not installed.",
            why=str(error),
            fix=f"pip install torch=={torch.__version__.split('+')[0]} torchvision",
        ) from error
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        # What the failed import left behind would be imported again as it is, half made.
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)  # its schemas vanish with it
    try:
        return _import()
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            "torchvision cannot be imported beside this torch.",
            why=str(error)[:400],
            fix="Install the two from the same index: https://pytorch.org/get-started/locally",
        ) from error


def _import() -> Any:
    with warnings.catch_warnings():
        # "Failed to load image Python extension": its JPEG reader, not used here.
        warnings.filterwarnings("ignore", message="Failed to load image", category=UserWarning)
        import torchvision.models

    return torchvision.models
