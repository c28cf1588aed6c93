"""One operator at known sizes: what a tactic is asked to run, and the key of its timings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peregrine.types import numpy_dtype


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements with the last dimension innermost (C order)."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, shape[axis + 1])
    return tuple(strides)


def channels_last_strides(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Strides in elements of (N, C, H, W) with the channels innermost (NHWC in memory)."""
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype (numpy's name), sizes, and strides in elements. `shape` and `strides` are None for a
    tensor whose sizes depend on computed values: only `torch_ops` takes such."""

    dtype: str
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None

    @classmethod
    def contiguous(cls, dtype: str, shape: tuple[int, ...]) -> TensorType:
        return cls(dtype, shape, contiguous_strides(shape))

    @classmethod
    def channels_last(cls, dtype: str, shape: tuple[int, int, int, int]) -> TensorType:
        return cls(dtype, shape, channels_last_strides(shape))

    @property
    def elements(self) -> int:
        """0 where the sizes are not known."""
        return math.prod(self.shape) if self.shape is not None else 0

    @property
    def itemsize(self) -> int:
        return int(numpy_dtype(self.dtype).itemsize)

    @property
    def bytes(self) -> int:
        """Of its elements, without gaps; 0 where the sizes are not known."""
        return self.elements * self.itemsize

    @property
    def extent(self) -> int:
        """Bytes from the first element to behind the last, gaps counted; 0 where there are none."""
        assert self.shape is not None
        assert self.strides is not None
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Dimensions of one element may have any stride."""
        return self.shape is not None and self._has(contiguous_strides(self.shape))

    @property
    def is_channels_last(self) -> bool:
        """(N, C, H, W) with the channels innermost and no gaps. True of a contiguous tensor too
        where C, or H and W, are 1."""
        if self.shape is None or len(self.shape) != 4:
            return False
        n, c, h, w = self.shape
        return self._has(channels_last_strides((n, c, h, w)))

    def _has(self, strides: tuple[int, ...]) -> bool:
        assert self.shape is not None
        assert self.strides is not None
        return all(
            size <= 1 or mine == theirs
            for size, mine, theirs in zip(self.shape, self.strides, strides, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator with its attributes and the types of what it reads and writes."""

    operator: str
    """`peregrine.Conv`, or a standard one as `ai.onnx.Softmax`."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain ints, floats, strings and tuples of them; of standard operators also tensors and
    subgraphs, as `attributes` writes them."""
    inputs: tuple[TensorType | None, ...] = ()
    """None where an optional input is absent."""
    outputs: tuple[TensorType, ...] = ()
    constants: frozenset[int] = frozenset()
    """Positions of the inputs that are weights: a tactic may repack them once, when it is built."""
    opset: int = 0
    """The version of the standard operators that decides what a standard operator means."""
    tf32: bool = False
    """float32 matrix products may round their inputs to TF32."""

    def key(self) -> str:
        """The same for operations that a tactic cannot tell apart; JSON."""

        def of(tensor: TensorType | None) -> list[Any] | None:
            return None if tensor is None else [tensor.dtype, tensor.shape, tensor.strides]

        return json.dumps(
            [
                self.operator,
                dict(sorted(self.attributes.items())),
                [of(t) for t in self.inputs],
                [of(t) for t in self.outputs],
                sorted(self.constants),
                self.opset,
                self.tf32,
            ],
            separators=(",", ":"),
        )
