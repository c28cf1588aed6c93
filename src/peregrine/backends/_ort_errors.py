"""ONNX Runtime's exceptions as errors that a user can act on."""

from __future__ import annotations

import functools
import re

from peregrine.errors import (
    BackendError,
    BackendUnavailable,
    PeregrineError,
    Unsupported,
    cannot_read,
)
from peregrine.types import Precision

# What it says of an operator it does not know, or knows but cannot run for these types.
_UNKNOWN = re.compile(r"(?P<domain>[\w.]+):(?P<op>\w+)\((?P<version>-?\d+)\) is not a registered")
_UNREGISTERED = re.compile(
    r"No Op registered for (?P<op>\w+) with domain_version of (?P<opset>\d+)"
)
_NO_KERNEL = re.compile(r"Could not find an implementation for (?P<op>\w+)\((?P<version>\d+)\)")
# What a node is told where no provider took it, by the pass that would copy its inputs.
_NO_PROVIDER = re.compile(r"Provider type for (?P<op>\w+) node .* is not set")
_TYPE = re.compile(r"Type Error: Type '(?P<type>[^']+)' of input.* of operator \((?P<op>\w+)\)")
_OPSET = re.compile(r"Opset (?P<opset>\d+) is under development.*till opset (?P<max>\d+)", re.S)
_IR = re.compile(
    r"Unsupported model IR version: (?P<ir>\d+), max supported IR version: (?P<max>\d+)"
)
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory", "OutOfMemory")
_LIBRARY_MISSING = (
    "cannot open shared object file",
    "Failed to load library",
    "Please install TensorRT libraries",
    "Require cuDNN",
)
_NO_CAPTURE = "cannot use the graph capture feature"
_NEWER = "Export the model for an older opset, or `pip install --upgrade onnxruntime`."
_REWRITE = "Replace the operator in the model, or race another backend."


@functools.cache
def exceptions() -> tuple[type[Exception], ...]:
    """Every exception class of ONNX Runtime's binding: they share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    found = (value for value in vars(binding).values() if isinstance(value, type))
    return (*(c for c in found if issubclass(c, Exception)), RuntimeError, ValueError)


def on_open(
    error: Exception, name: str, provider: str, precision: Precision = Precision.FP32
) -> Exception:
    """What it means that a session for model `name` in `precision` did not open."""
    text = _message(error)
    if precision is not Precision.FP32 and (m := _NO_KERNEL.search(text)):
        return Unsupported(
            f"{provider} has no {precision} kernel for operator {m['op']} "
            f"(version {m['version']}), which {name} needs.",
            why=text,
            fix=f"Race {precision} by another backend, or this one in another precision.",
        )
    if precision is not Precision.FP32 and (m := _NO_PROVIDER.search(text)):
        return Unsupported(
            f"{provider} has no {precision} kernel for operator {m['op']}, which {name} needs.",
            why=text,
            fix=f"Race {precision} by another backend, or this one in another precision.",
        )
    unsupported = _unsupported(text, name, provider)
    if unsupported is not None:
        return unsupported
    if _NO_CAPTURE in text:
        return Unsupported(
            f"{provider} cannot run {name} as a CUDA graph.",
            why=text,
            fix="Race its row without cuda_graph.",
        )
    if any(words in text for words in _LIBRARY_MISSING):
        return BackendUnavailable(
            f"The libraries of {provider} do not load.",
            why=text,
            fix="Install the runtime it needs, and put its libraries on LD_LIBRARY_PATH.",
        )
    if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument"):
        return cannot_read("ONNX Runtime", name, text)
    return on_run(error)


def on_run(error: Exception) -> Exception:
    """What it means that an inference failed. Memory is told from the rest."""
    text = _message(error)
    if any(words in text for words in _OUT_OF_MEMORY):
        return MemoryError(text)
    return BackendError("ONNX Runtime failed.", why=text)


def _unsupported(text: str, name: str, provider: str) -> PeregrineError | None:
    if m := _UNKNOWN.search(text):
        what, fix = f"operator {m['domain']}:{m['op']}", _REWRITE
    elif m := _UNREGISTERED.search(text):
        what, fix = f"operator {m['op']} of opset {m['opset']}", _REWRITE
    elif m := _NO_KERNEL.search(text):
        what, fix = f"operator {m['op']} (version {m['version']}) for these types", _REWRITE
    elif m := _TYPE.search(text):
        what, fix = f"operator {m['op']} on {m['type']}", _REWRITE
    elif m := _OPSET.search(text):
        what, fix = f"opset {m['opset']} (it knows up to {m['max']})", _NEWER
    elif m := _IR.search(text):
        what, fix = f"ONNX IR version {m['ir']} (it knows up to {m['max']})", _NEWER
    else:
        return None
    return Unsupported(f"{provider} has no {what}, which {name} needs.", why=text, fix=fix)


def _message(error: Exception) -> str:
    """Its text without the status prefix and the source location."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    return re.sub(r"/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])", "", text, count=1)
