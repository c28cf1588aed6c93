"""OpenVINO and nncf, imported without their telemetry.

Both report to an analytics service where the distribution `openvino-telemetry` is installed, and
are content with a stub of their own where it is not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """The `openvino` module. Raises ImportError where there is none."""
    with _no_telemetry("openvino"):
        return importlib.import_module("openvino")


def import_nncf() -> Any:
    """The `nncf` module, which prints errors only. Raises ImportError where there is none."""
    import_openvino()
    if "nncf" in sys.modules:
        return sys.modules["nncf"]
    logger_class = logging.getLoggerClass()
    try:
        # It greets on the stdout of the time, which it keeps for its log.
        with _no_telemetry("nncf"), contextlib.redirect_stdout(io.StringIO()):
            nncf = importlib.import_module("nncf")
    finally:
        logging.setLoggerClass(logger_class)  # it makes all of Python's loggers its own kind
    nncf.set_log_level(logging.ERROR)
    for handler in logging.getLogger("nncf").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return nncf


@contextlib.contextmanager
def _no_telemetry(importing: str) -> Iterator[None]:
    hide = importing not in sys.modules and _TELEMETRY not in sys.modules
    if hide:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # to imports: not there
    try:
        yield
    finally:
        if hide:
            del sys.modules[_TELEMETRY]
