"""Tensors as matrices of pixels (rows) by channels, as they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peregrine.compiler.operation import TensorType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor seen as rows of adjacent elements."""

    rows: int
    columns: int
    pitch: int
    """Elements from one row to the next."""

    @classmethod
    def of(cls, tensor: TensorType, *, image: bool) -> Matrix | None:
        """Rows over all dimensions but the channels: dimension 1 of an image, otherwise the last
        one. None where they do not lie at equal distances, as in an image with the width
        innermost."""
        if tensor.shape is None or tensor.strides is None:
            return None
        shape, strides = tensor.shape, tensor.strides
        order = (0, 2, 3, 1) if image else tuple(range(len(shape)))
        columns = shape[order[-1]]
        if columns > 1 and strides[order[-1]] != 1:
            return None
        rows, pitch = 1, columns
        for axis in reversed(order[:-1]):
            if shape[axis] == 1:
                continue
            if rows == 1:
                pitch = strides[axis]
            elif strides[axis] != rows * pitch:
                return None
            rows *= shape[axis]
        return cls(rows, columns, pitch) if pitch >= columns else None

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """(rows, columns) over the tensor's memory."""
        return tensor.as_strided((self.rows, self.columns), (self.pitch, 1))
