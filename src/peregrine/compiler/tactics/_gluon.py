"""What the tactics of kernels in Gluon share: where they run, how tensors lie in
shared memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.tactics import _triton
from peregrine.compiler.tactics.base import Device

if TYPE_CHECKING:
    import torch

HALVES = ("float16", "bfloat16")
"""Of what the kernels read and write."""
SHARED_MEMORY = 227 * 1024
"""Bytes a program may use on Hopper."""
BARRIERS = 512
"""Bytes for its barriers and what else the compiler puts there."""


def missing(device: Device, *, overlapping: bool = False) -> str:
    """Why such kernels can't run there; empty where they can.

    Args:
        overlapping: the kernel sees one piece of shared memory as larger than it is, which Gluon
            refuses from Triton 3.7 on.
    """
    if _triton.interpreted():
        return "Triton's interpreter has no Gluon"
    if device.capability[0] != 9:
        return "its products are those of compute capability 9.0"
    reason = _triton.available(device)
    if reason:
        return reason
    release = version()
    if release < (3, 6) or (overlapping and release >= (3, 7)):
        return "this version of Triton has another Gluon"
    return ""


def version() -> tuple[int, int]:
    """Of Triton, as far as it matters."""
    from importlib.metadata import version

    major, minor, *_ = version("triton").split(".")
    return int(major), int(minor)


def dtype_problem(operation: Operation, biases: Collection[int]) -> str:
    """Why the dtypes of an operation can't be taken; empty where they can.

    Args:
        biases: positions of inputs that may have any, being packed as float32.
    """
    read = [kind for place, kind in enumerate(operation.inputs) if place not in biases]
    dtypes = {kind.dtype for kind in (*read, *operation.outputs) if kind is not None}
    if len(dtypes) == 1 and dtypes <= set(HALVES):
        return ""
    return f"its images and weights are not all of {' or '.join(HALVES)}"


def layout(columns: int, rank: int) -> Any:
    """Of blocks with this many elements of 16 bits in a row, as tensor cores and the tensor memory
    accelerator take them."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(min(128, 2 * columns), 16, rank=rank)


def view(tensor: torch.Tensor, sizes: list[int], strides: list[int], block: list[int]) -> Any:
    """A descriptor of a tensor's memory for requests of a block; strides in elements."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(tensor, sizes, strides, block, layout(block[-1], len(block)))


def aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether the accelerator can be told of their addresses."""
    return all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


def power(value: int, least: int = 1) -> int:
    """The smallest power of two that is no less than either."""
    return max(least, 1 << max(0, value - 1).bit_length())
