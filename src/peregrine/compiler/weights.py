"""Weights as the engine's file has them: equal ones once, each in C order, strides beside it.

safetensors stores contiguous tensors only, and tactics pack weights with strides of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    import torch

    from peregrine.types import Array

Weights: TypeAlias = "Mapping[str, Array | torch.Tensor]"


class Strided(msgspec.Struct, frozen=True):
    """A tensor that is not stored in C order: the file has its span of memory, flat."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


def share(
    weights: Sequence[Weights],
) -> tuple[dict[str, torch.Tensor], dict[str, Strided], tuple[dict[str, str], ...]]:
    """Tensors by the names that the file has them under, those that are not in C order, and of
    each plan which is which. Equal contents are stored once."""
    stored: dict[str, torch.Tensor] = {}
    strided: dict[str, Strided] = {}
    by_content: dict[str, str] = {}
    names = []
    for own in weights:
        mine = {}
        for name, value in own.items():
            flat, shape = _flat(value)
            content = _content(flat, shape)
            if content not in by_content:
                key = name
                while key in stored:
                    key += "'"
                by_content[content] = key
                # safetensors refuses tensors that share memory.
                stored[key] = flat.clone() if _is_shared(flat, stored) else flat
                if shape is not None:
                    strided[key] = shape
            mine[name] = by_content[content]
        names.append(mine)
    return stored, strided, tuple(names)


def _flat(value: Array | torch.Tensor) -> tuple[torch.Tensor, Strided | None]:
    """A tensor in C order on the CPU, and what it was where that was something else."""
    import torch

    from peregrine.compiler.attributes import tensor_of

    tensor = value.detach() if isinstance(value, torch.Tensor) else tensor_of(value)
    if tensor.is_contiguous():
        return tensor.cpu(), None
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A copy of a view to another device need not keep its strides.
    return tensor.as_strided((span,), (1,)).clone().cpu(), Strided(shape, strides)


def _is_shared(flat: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> bool:
    memory = flat.untyped_storage().data_ptr()
    return any(other.untyped_storage().data_ptr() == memory for other in stored.values())


def restride(flat: torch.Tensor, kept: Strided | None) -> torch.Tensor:
    """What `share` took apart."""
    return flat if kept is None else flat.as_strided(kept.shape, kept.strides)


def _content(flat: torch.Tensor, shape: Strided | None) -> str:
    import torch

    digest = hashlib.sha256(repr((flat.dtype, tuple(flat.shape), shape)).encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
