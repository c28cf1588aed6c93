"""torch.export programs: made from a module, opened from a `.pt2`, called by position."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from peregrine.errors import ExportError, ModelCorrupt
from peregrine.model.module import Frozen, Positional
from peregrine.types import TensorSpec

PROGRAM_FILE = "model.pt2"


def export_program(
    module: nn.Module, example: Sequence[Tensor], inputs: Sequence[TensorSpec]
) -> ExportedProgram:
    """Export a module that takes tensors by position, every symbol of `inputs` dynamic.

    `example` has batch 2 or more: torch.export takes a size of 1 for a constant.

    Raises:
        ExportError: torch.export fails, or fixes a dimension that should be symbolic.
    """
    dynamic = tuple(
        {axis: Dim.DYNAMIC for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in inputs
    )
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                Positional(module), tuple(example), dynamic_shapes=(dynamic,)
            )
    except Exception as error:
        raise ExportError(
            "torch.export cannot export the module.",
            why=f"{type(error).__name__}: {str(error)[:600]}",
        ) from error
    found, _ = specs(program)
    for wanted, got in zip(inputs, found, strict=True):
        for mine, theirs in zip(wanted.shape, got.shape, strict=True):
            if isinstance(mine, str) and isinstance(theirs, int):
                raise ExportError(
                    f"torch.export fixed {mine} of input {wanted.name!r} at {theirs}.",
                    why="The module's code depends on that size.",
                )
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn, log and print of what is decided afterwards by running what they made."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def open_program(path: Path) -> ExportedProgram:
    """Open a `.pt2` on the CPU. Whether it may be opened is `trust.check_program`'s to say.

    Raises:
        ModelCorrupt: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            # torch 2.11 of its own loader, which makes tensors of the bytes of the file.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            program = torch.export.load(path)
    except Exception as error:
        raise ModelCorrupt(
            f"{path} cannot be opened by torch.export.",
            why=f"{type(error).__name__}: {str(error)[:400]}",
            fix=f"Write it again with torch.export.save from torch {torch.__version__}.",
        ) from error
    if any(tensor.device.type != "cpu" for tensor in program.state_dict.values()):
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, "cpu")
    return program


def specs(program: ExportedProgram) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the program declares them; symbols are torch's (`s77`).

    Raises:
        ExportError: an input or output that is no tensor.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    outputs = [
        _spec(str(name), values.get(str(name))) for name in program.graph_signature.user_outputs
    ]
    return tuple(_spec(name, values[name]) for name in _inputs(program)), tuple(outputs)


def _inputs(program: ExportedProgram) -> list[str]:
    given = program.graph_signature.user_inputs
    for value in given:
        if not isinstance(value, str):
            raise ExportError(
                f"The program takes the constant {value!r} as an input.",
                fix="Export it with tensor inputs only.",
            )
    return [str(name) for name in given]


def _spec(name: str, value: object) -> TensorSpec:
    if not isinstance(value, Tensor):
        raise ExportError(
            f"{name!r} of the program is a {type(value).__name__}, not a tensor.",
            fix="Export it with tensors in and out only.",
        )
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def module_of(program: ExportedProgram) -> nn.Module:
    """The program as a module: tensors in by position, a tensor or a flat tuple out.

    Raises:
        ExportError: it takes nested inputs.
    """
    keywords: list[str] = []
    tree: Any = program.call_spec.in_spec
    if tree is not None:
        positional, named = tree.unflatten(list(range(tree.num_leaves)))
        if not all(isinstance(leaf, int) for leaf in [*positional, *named.values()]):
            raise ExportError(
                "The program takes nested inputs (lists or mappings of tensors).",
                fix="Export a wrapper whose forward takes each tensor as an argument of its own.",
            )
        keywords = list(named)
    return Frozen(program.module(), keywords)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a `.pt2` without the example inputs.

    Raises:
        ExportError: torch cannot serialise it.
        OSError: the file cannot be written.
    """
    bare = copy.copy(program)
    bare._example_inputs = None  # a pickle inside the archive, of no use to anyone here
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # by way of memory, so that a full disk is told from a bad program
    try:
        torch.export.save(bare, buffer)
    except Exception as error:
        raise ExportError(
            "torch.export cannot save the module.", why=f"{type(error).__name__}: {error}"
        ) from error
    path.write_bytes(buffer.getbuffer())
