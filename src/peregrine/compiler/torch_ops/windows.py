"""The geometry of convolutions and poolings in any number of dimensions, as ONNX words it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.registry import Call

Ints: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True, slots=True)
class Sliding:
    """A window with explicit pads, one entry a spatial dimension."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    begins: Ints
    ends: Ints

    @classmethod
    def read(cls, call: Call, sizes: Sequence[int], kernel: Sequence[int] | None = None) -> Sliding:
        """From `kernel_shape`, `strides`, `dilations`, `pads` and `auto_pad`.

        Args:
            sizes: of the input's spatial dimensions.
            kernel: taken instead of `kernel_shape`: a convolution's weights tell it.
        """
        rank = len(sizes)
        kernel = tuple(kernel if kernel is not None else call.get("kernel_shape"))
        strides = tuple(call.get("strides") or (1,) * rank)
        dilations = tuple(call.get("dilations") or (1,) * rank)
        mode = call.get("auto_pad") or "NOTSET"
        if mode == "NOTSET":
            pads = tuple(call.get("pads") or (0,) * (2 * rank))
            return cls(kernel, strides, dilations, pads[:rank], pads[rank:])
        if mode == "VALID":
            return cls(kernel, strides, dilations, (0,) * rank, (0,) * rank)
        begins, ends = [], []
        for size, extent, stride in zip(sizes, extents(kernel, dilations), strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            half = total // 2
            begins.append(half if mode == "SAME_UPPER" else total - half)
            ends.append(total - begins[-1])
        return cls(kernel, strides, dilations, tuple(begins), tuple(ends))

    @property
    def extents(self) -> Ints:
        """How far a window reaches in each dimension."""
        return extents(self.kernel, self.dilations)

    @property
    def is_symmetric(self) -> bool:
        return self.begins == self.ends

    def outputs(self, sizes: Sequence[int], *, ceil: bool = False) -> Ints:
        """How many positions there are. `ceil` takes a last window that reaches beyond the
        padding too, as long as it begins before it."""
        found = []
        for size, extent, stride, begin, end in zip(
            sizes, self.extents, self.strides, self.begins, self.ends, strict=True
        ):
            room = size + begin + end - extent
            if not ceil:
                found.append(room // stride + 1)
                continue
            count = -(-room // stride) + 1
            found.append(count - 1 if (count - 1) * stride >= size + begin else count)
        return tuple(found)

    def views(self, x: Tensor) -> Tensor:
        """Every window of a padded (N, C, *sizes) as a view: (N, C, *positions, *kernel)."""
        rank = len(self.kernel)
        for axis in range(rank):
            x = x.unfold(2 + axis, self.extents[axis], self.strides[axis])
        steps: list[Any] = [slice(None, None, dilation) for dilation in self.dilations]
        return x[(..., *steps)]


def extents(kernel: Sequence[int], dilations: Sequence[int]) -> Ints:
    """How far a kernel reaches with its gaps."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))


def pad(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """The last dimensions padded, or cropped where a pad is negative."""
    if not any(begins) and not any(ends):
        return x
    pairs = zip(reversed(begins), reversed(ends), strict=True)
    return F.pad(x, list(chain.from_iterable(pairs)), value=value)
