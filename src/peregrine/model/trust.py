"""Which PyTorch files could execute code when read, decided without reading them as such."""

from __future__ import annotations

import ast
import builtins
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peregrine.errors import ModelCorrupt, ModelNotFound, ModelUntrusted

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
_BUILTINS = set(dir(builtins)) - {"True", "False", "None"}
# sympy's and torch's functions that sizes are made of (torch.utils._sympy.functions).
_ARITHMETIC = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs"),
    *("floor", "ceiling", "Piecewise", "ExprCondPair", "Tuple", "And", "Or", "Not", "Equality"),
    *("Eq", "Ne", "Unequality", "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt"),
    *("PythonMod", "ModularIndexing", "Where", "LShift", "RShift", "PowByNatural", "FloatPow"),
    *("FloatTrueDiv", "IntTrueDiv", "ToFloat", "TruncToFloat", "Identity", "BooleanTrue"),
    *("BooleanFalse",),
}
_NODES = (
    *(ast.Expression, ast.Load, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Tuple),
)


def refuse_pickle(path: Path, trust: bool) -> None:
    """Raise unless `path` exists and, being a pickle, is trusted.

    Raises:
        ModelNotFound: there is no such file.
        ModelUntrusted: `trust` is false.
    """
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}.", fix="Check the path.")
    if not trust:
        raise ModelUntrusted(
            f"{path} is a Python pickle and was not opened.",
            why="Reading a pickle can execute any code that its author put there.",
            fix="Convert it where you trust it (torch.export.save or torch.onnx.export), or add "
            "--trust if you know where this file comes from.",
        )


def is_torchscript(path: Path) -> bool:
    """Whether a PyTorch archive holds TorchScript code rather than a pickled object."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def check_program(path: Path, trust: bool) -> None:
    """Raise unless `path` is a torch.export archive that cannot execute code, or is trusted.

    torch.export.load unpickles some payloads without restriction, runs native libraries
    (AOTInductor) and evaluates size expressions as Python, so an archive with any is refused.

    Raises:
        ModelNotFound: there is no such file.
        ModelCorrupt: it is no readable archive.
        ModelUntrusted: it carries something executable and `trust` is false.
    """
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}.", fix="Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            danger = "" if trust else next(_dangers(archive), "")
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ModelCorrupt(
            f"{path} is not a readable torch.export archive.",
            why=f"It is truncated or of another format ({path.stat().st_size} bytes): {error}",
            fix="Write it again with torch.export.save(program, path).",
        ) from error
    if danger:
        raise ModelUntrusted(
            f"{path} was not opened: {danger}.",
            why="Reading it can execute any code that its author put there.",
            fix="Add --trust if you know where this file comes from, or export it as ONNX.",
        )


def _dangers(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in archive.namelist():
        if name.endswith((".so", ".cubin", ".cpp", ".o")) or "/aotinductor/" in name:
            yield f"it holds native code ({name})"
        elif name.endswith(".pt"):
            if not _plain_tensors(archive.read(name)):
                yield f"it holds a pickle of more than tensors ({name})"
        elif name.endswith(".json"):
            yield from _json_dangers(name, json.loads(archive.read(name)))


def _plain_tensors(payload: bytes) -> bool:
    """Whether torch's restricted unpickler, which runs no code, reads the payload."""
    import io
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; the answer is below
            torch.load(io.BytesIO(payload), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return not payload
    return True


def _json_dangers(name: str, node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("use_pickle"):
            yield f"{name} asks for a pickled tensor"
        payload = str(node.get("path_name", ""))
        if payload.startswith(("custom_obj", "opaque_obj")):
            yield f"{name} asks for a pickled object"
        expression = node.get("expr_str")
        if isinstance(expression, str) and not _harmless(expression):
            yield f"{name} holds a size that is no arithmetic ({expression[:60]})"
        for value in node.values():
            yield from _json_dangers(name, value)
    elif isinstance(node, list):
        for value in node:
            yield from _json_dangers(name, value)


def _harmless(expression: str) -> bool:
    """Whether a size expression is arithmetic over symbols, in sympy's spelling: known functions
    of numbers, names and strings that are names or numbers; no attributes, no builtins."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in _ARITHMETIC:
                return False
        elif isinstance(node, ast.Name):
            if node.id in _BUILTINS or node.id.startswith("__"):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not re.fullmatch(r"\w*|-?[\d.e+-]+", node.value):
                return False
        elif not isinstance(node, _NODES):
            return False
    return True
