"""Feeds of one batch made into feeds of another, by repeating rows along the batch axis."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from peregrine.model.model import Model
from peregrine.types import Array, Feeds, TensorSpec


def batch_axis(spec: TensorSpec, symbol: str) -> int | None:
    """The axis that batches, or None: a scalar, a table shared by all rows."""
    return spec.shape.index(symbol) if symbol and symbol in spec.shape else None


def batch_of(model: Model, feeds: Feeds) -> int:
    """The batch of these feeds; 1 for a model that fixes its own."""
    for spec in model.inputs:
        axis = batch_axis(spec, model.batch)
        if axis is not None:
            return int(feeds[spec.name].shape[axis])
    return 1


def tile(specs: Iterable[TensorSpec], symbol: str, arrays: Feeds, batch: int) -> dict[str, Array]:
    """Arrays of `batch` rows that repeat the rows there are, in order.

    The result is C-contiguous, as a fresh input would be.
    """
    axes = {spec.name: batch_axis(spec, symbol) for spec in specs}
    tiled = {}
    for name, array in arrays.items():
        axis = axes[name]
        if axis is None or array.shape[axis] == batch:
            tiled[name] = array
        else:
            rows = np.arange(batch) % array.shape[axis]
            tiled[name] = np.ascontiguousarray(np.take(array, rows, axis=axis))
    return tiled
