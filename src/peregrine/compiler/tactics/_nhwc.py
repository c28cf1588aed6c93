"""What the tactics of NHWC kernels ask of an operation's tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.tactics.base import Device

if TYPE_CHECKING:
    import torch

HALVES = ("float16", "bfloat16")
FLOATS = ("float16", "bfloat16", "float32")
_MOST = 2**31 - 1
"""Kernels count elements in 32 bits."""

START = 2.2e-6
"""Seconds of a kernel in a CUDA graph that are no work: its start, the first loads' latency."""
SPLIT = 1.5e-6
"""Seconds more where partial sums are written, counted and read back."""


def shape(kind: TensorType | None) -> tuple[int, ...]:
    """Sizes, which are known."""
    assert kind is not None
    assert kind.shape is not None
    return kind.shape


def strides(kind: TensorType | None) -> tuple[int, ...]:
    """In elements, which are known."""
    assert kind is not None
    assert kind.strides is not None
    return kind.strides


def optional(operation: Operation, position: int) -> TensorType | None:
    """An input that may be absent."""
    return operation.inputs[position] if position < len(operation.inputs) else None


def dtype_problem(kind: TensorType | None, allowed: tuple[str, ...], name: str) -> str:
    """Why a tensor's dtype can't be taken; empty where it can, or where there is no tensor."""
    if kind is None or kind.dtype in allowed:
        return ""
    return f"it takes {name} as {', '.join(allowed)}, not {kind.dtype}"


def size_problem(kind: TensorType | None, name: str, *, innermost: bool = True) -> str:
    """Why a tensor's layout can't be taken; empty where it can, or where there is no tensor.

    Args:
        innermost: (N, C, H, W) must have its channels as neighbours, as in a channels_last tensor
            or a slice of its channels.
    """
    if kind is None:
        return ""
    if kind.shape is None or kind.strides is None:
        return f"the sizes of {name} are not known"
    if len(kind.shape) != 4:
        return f"{name} has {len(kind.shape)} dimensions, not 4"
    if 0 in kind.shape:
        return f"{name} is empty"
    if innermost and kind.shape[1] > 1 and kind.strides[1] != 1:
        return f"the channels of {name} are not innermost"
    extent = sum(
        (size - 1) * abs(step) for size, step in zip(kind.shape, kind.strides, strict=True)
    )
    return f"{name} reaches over more than 2^31 elements" if extent > _MOST else ""


def constant_problem(operation: Operation, positions: tuple[int, ...]) -> str:
    """Which input should be a constant and is none; empty where all are, or are absent."""
    for position in positions:
        if optional(operation, position) is not None and position not in operation.constants:
            return f"input {position} is no constant"
    return ""


def first(*problems: str) -> str:
    """The first that is one."""
    return next((problem for problem in problems if problem), "")


def pdl(device: Device) -> bool:
    """Whether the device has programmatic dependent launch."""
    return device.is_cuda and device.capability >= (9, 0)


def power(value: int, least: int = 1) -> int:
    """The smallest power of two that is no less than either."""
    return max(least, 1 << max(0, value - 1).bit_length())


def moved(operation: Operation) -> int:
    """The fewest bytes the operation must move."""
    kinds = (*operation.inputs, *operation.outputs)
    return sum(kind.bytes for kind in kinds if kind is not None)


def stand_in(kind: TensorType | None, dtype: str = "") -> torch.Tensor | None:
    """An aligned pointer of a tensor's dtype, where a kernel is only compiled."""
    from peregrine.compiler.attributes import torch_dtype
    from peregrine.compiler.tactics._triton import pointer

    return None if kind is None else pointer(torch_dtype(dtype or kind.dtype))


def stand_ins(
    kinds: Sequence[TensorType | None], biases: Collection[int] = (2,)
) -> list[torch.Tensor | None]:
    """The same for all tensors of a launch.

    Args:
        biases: positions of those that are packed as float32.
    """
    return [
        stand_in(kind, "float32" if place in biases else "") for place, kind in enumerate(kinds)
    ]


def nhw(prefix: str, kind: TensorType | None) -> dict[str, int]:
    """Arguments `stride_<prefix>n`, `..h`, `..w` of a (N, C, H, W); zeros of an absent one."""
    n, _, h, w = (0, 0, 0, 0) if kind is None else strides(kind)
    return {f"stride_{prefix}n": n, f"stride_{prefix}h": h, f"stride_{prefix}w": w}


def activation_arguments(kind: Any, prefix: str = "") -> dict[str, Any]:
    """An `Activation` as a kernel's constants."""
    return {
        f"{prefix}KIND": str(kind.kind),
        f"{prefix}ALPHA": kind.alpha,
        f"{prefix}BETA": kind.beta,
    }
