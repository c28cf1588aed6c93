"""The one door: whatever a user names becomes a model directory that stands on its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peregrine.errors import ModelError, ModelNotFound, OptionError, RunDirectoryError, nearest
from peregrine.model import zoo
from peregrine.model.inputs import InputSpec
from peregrine.model.model import Model
from peregrine.model.options import LoadOptions
from peregrine.model.trust import PICKLE_SUFFIXES
from peregrine.types import Feeds

if TYPE_CHECKING:
    import onnx
    from torch import nn

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SUFFIXES = (".onnx", ".pt2", *PICKLE_SUFFIXES)
_WEIGHTS = ("auto", "pretrained", "random")


def load(
    source: str | Path | nn.Module | onnx.ModelProto,
    directory: Path,
    *,
    inputs: Sequence[InputSpec] = (),
    dims: Mapping[str, int] | None = None,
    example: Feeds | None = None,
    seed: int = 0,
    weights: str = "auto",
    trust: bool = False,
    name: str = "",
) -> Model:
    """Read a model and write a directory that `Model.open` reads in any process.

    Args:
        source: a zoo name; a path to `.onnx`, `.pt2` (torch.export) or, trusted, `.pt`/`.pth`
            (a pickled module or TorchScript); `package.module:factory`, looked for in the
            working directory too; a `torch.nn.Module`; an onnx `ModelProto`.
        directory: written to; made where it is missing. Needs nothing of `source` afterwards,
            but for the code of a zoo network or a factory.
        inputs: what a module takes, in order; for a graph, only what it leaves open.
        dims: sizes of open dimensions by symbol, other than the batch.
        example: arrays by input name, from which what is still open is taken.
        seed: of random weights and of the inputs that an export is verified with.
        weights: "auto", "pretrained" or "random"; for zoo names.
        trust: allow files that can execute code when read.
        name: of the model in print; derived from `source` when empty.

    Raises:
        ModelNotFound: nothing of that name; the message suggests the nearest.
        ModelCorrupt: the file is damaged or fails the ONNX checker.
        ModelUntrusted: reading the file could execute code, and `trust` is false.
        ModelError: the module does not run, or can neither be exported nor rebuilt.
        OptionError: an input or size is missing (the message shows the flag) or contradicts.
        FeedError: `example` does not fit.
        RunDirectoryError: `directory` cannot be written.
    """
    if weights not in _WEIGHTS:
        raise OptionError(
            f"There are no {weights!r} weights.", fix=f"Use one of: {', '.join(_WEIGHTS)}."
        )
    options = LoadOptions(tuple(inputs), dict(dims or {}), example, seed, weights, trust, name)
    with _writable(Path(directory)):
        return _dispatch(source, Path(directory).resolve(), options)


def _dispatch(source: Any, directory: Path, options: LoadOptions) -> Model:
    if not isinstance(source, (str, Path)):
        return _from_memory(source, directory, options)
    text, path = str(source), Path(source).expanduser()
    if path.suffix in _SUFFIXES and not path.exists():
        raise _unknown(text)
    if path.suffix == ".onnx":
        from peregrine.model.from_onnx import load_file

        return load_file(path, directory, options)
    named = text in zoo.names()
    if not named and not path.exists() and not _FACTORY.fullmatch(text) and not path.suffix:
        raise _unknown(text)
    from peregrine.model import from_module

    if named:
        return from_module.load_zoo(text, directory, options)
    if path.suffix == ".pt2":
        return from_module.load_program(path, directory, options)
    if path.suffix in PICKLE_SUFFIXES:
        return from_module.load_pickle(path, directory, options)
    if not path.exists() and _FACTORY.fullmatch(text):
        return from_module.load_factory(text, directory, options)
    raise _unknown(text)


def _from_memory(source: Any, directory: Path, options: LoadOptions) -> Model:
    # Whoever holds an object of these types has imported their library already.
    if "torch" in sys.modules:
        from torch import nn

        if isinstance(source, nn.Module):
            from peregrine.model.from_module import load_module

            return load_module(source, directory, options)
    if "onnx" in sys.modules:
        import onnx

        if isinstance(source, onnx.ModelProto):
            from peregrine.model.from_onnx import load_proto

            return load_proto(source, directory, options)
    raise ModelError(
        f"A {type(source).__name__} is not a model.",
        fix="Pass a path, a zoo name, `package.module:factory`, a torch.nn.Module or an "
        "onnx.ModelProto.",
    )


def _unknown(text: str) -> ModelNotFound:
    """What to say of a name that is neither a zoo network nor a file of a known kind."""
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        return ModelNotFound(
            f"{text} is a directory.",
            fix=f"Name a file in it: {', '.join(files)}." if files else "Name a model file.",
        )
    if path.exists():
        return ModelNotFound(
            f"{text} is of no kind that is known by its name.",
            fix=f"Use a file that ends in one of: {', '.join(_SUFFIXES)}.",
        )
    folder = path.parent if path.parent.is_dir() else Path()
    files = [p.name for p in folder.iterdir() if p.suffix in _SUFFIXES]
    near_file = nearest(path.name, files, cutoff=0.6)
    near = str(path.parent / near_file) if near_file else zoo.nearest(text)
    return ModelNotFound(
        f"There is no model {text!r}: no file, no zoo network."
        + (f" Did you mean {near!r}?" if near else ""),
        why=f"The zoo has: {', '.join(zoo.names())}.",
        fix="Name one of these, a path to .onnx or .pt2, or package.module:factory.",
    )


@contextmanager
def _writable(directory: Path) -> Iterator[None]:
    """Turn what the operating system says of a full or read-only disk into our error."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        culprit = Path(error.filename).resolve() if isinstance(error.filename, str) else directory
        if not culprit.is_relative_to(directory.resolve()):
            raise ModelError(
                f"{culprit} cannot be read.", why=error.strerror or "", fix="Check its permissions."
            ) from error
        raise RunDirectoryError(
            f"The model could not be written to {directory}.",
            why=f"{error.strerror or error}",
            fix="Free disk space, or choose another directory.",
        ) from error
