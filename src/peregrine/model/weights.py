"""A module's state as one safetensors file: shared tensors once, no pickles."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from torch import Tensor, nn

from peregrine.errors import ModelCorrupt, ModelError

WEIGHTS_FILE = "weights.safetensors"


def save(module: nn.Module, path: Path) -> None:
    """Write every parameter and persistent buffer; tensors that are one are stored once.

    Raises:
        ModelError: the state dict holds something that is no dense tensor.
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not _strided():
            raise ModelError(
                f"The module's state {name!r} is a {type(value).__name__}, not a dense tensor.",
                fix="Export it with torch.export.save and name the .pt2.",
            )
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and same in first:
            aliases[name] = first[same]
        else:
            first[same] = name
            # A copy where it is a view of more: safetensors stores no strides.
            kept[name] = value.detach().contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(kept, path, metadata={"aliases": json.dumps(aliases)})
    except SafetensorError as error:  # how it reports a full or read-only disk
        raise OSError(errno.EIO, str(error), str(path)) from error


def load(module: nn.Module, path: Path, *, assign: bool = False) -> None:
    """Fill a module with what `save` wrote. `assign` replaces tensors (a module on "meta").

    Raises:
        ModelCorrupt: the file cannot be read, or is of another module.
    """
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
            for name in file.keys():  # noqa: SIM118  # not a mapping
                state[name] = file.get_tensor(name)
        state |= {name: state[original] for name, original in aliases.items()}
        module.load_state_dict(state, assign=assign)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelCorrupt(
            f"The weights {path.name} do not fit the module.",
            why=str(error)[:400],
            fix="Load the model again: its code changed since, or the file was damaged.",
        ) from error


def _strided() -> object:
    import torch

    return torch.strided
