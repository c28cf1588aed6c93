"""Attributes of standard operators as JSON, and back as what `torch_ops` reads.

Numbers, strings and tuples of them are themselves. A tensor is
`{"tensor": [dtype, shape, values]}`, a subgraph of control flow is
`{"plan": ..., "captures": [...]}`: the plan in builtins, and the names of the outer tensors that
it reads, which the step has as further inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.errors import Unsupported
from peregrine.types import numpy_dtype

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from peregrine.types import Array

TENSOR = "tensor"
PLAN = "plan"
CAPTURES = "captures"


def is_subgraph(value: object) -> bool:
    """Whether an encoded attribute is a subgraph."""
    return isinstance(value, Mapping) and PLAN in value


def encode(attribute: ir.Attr) -> Any:
    """An attribute that is no subgraph, as JSON.

    Raises:
        Unsupported: a kind that no supported operator has (sparse tensors, types).
    """
    import onnx_ir as ir

    kinds = ir.AttributeType
    if attribute.type in (kinds.INT, kinds.FLOAT, kinds.STRING):
        return attribute.value
    if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return tuple(attribute.value)
    if attribute.type is kinds.TENSOR:
        return encode_tensor(attribute.value.numpy())
    raise Unsupported(
        f"The native engine does not take attribute {attribute.name!r}.",
        why=f"It is of kind {attribute.type.name}.",
    )


def encode_tensor(array: Array) -> dict[str, Any]:
    """An array with its values; for small ones."""
    if array.dtype.kind in "OSU":
        raise Unsupported("The native engine does not compute on strings.")
    kept = array if array.dtype.kind in "biuf" and array.dtype.itemsize > 1 else array.astype("f4")
    return {TENSOR: [array.dtype.name, list(array.shape), kept.reshape(-1).tolist()]}


def decode_tensor(encoded: Mapping[str, Any]) -> torch.Tensor:
    """What `encode_tensor` encoded, on the CPU."""
    dtype, shape, values = encoded[TENSOR]
    return tensor_of(np.asarray(values).astype(numpy_dtype(dtype)).reshape(shape))


def tensor_of(array: Array) -> torch.Tensor:
    """A copy of an array on the CPU; numpy's bfloat16 and float8 become torch's."""
    import torch

    dtype = torch_dtype(array.dtype.name)
    plain = np.ascontiguousarray(array)
    if array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1:
        return torch.from_numpy(plain.copy()).reshape(array.shape)
    return (
        torch.from_numpy(plain.view(f"u{plain.itemsize}").copy()).view(dtype).reshape(array.shape)
    )


_NAMES_ONLY = ("int2", "int4", "uint2", "uint4")
"""What torch has names for and nothing else: no values, no arithmetic."""


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of numpy's name.

    Raises:
        Unsupported: torch has none that it computes with (strings, int4).
    """
    import torch

    found = getattr(torch, name, None)
    if name in _NAMES_ONLY or not isinstance(found, torch.dtype):
        raise Unsupported(f"The native engine has no tensors of type {name}.")
    return found
