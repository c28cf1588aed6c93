"""Whether arrays fit a model's inputs: the one check that every door uses.

It runs at every inference, and is timed with it: `benchmarks/harness_overhead.py`. So words
are put together only where they are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from peregrine.errors import FeedError
from peregrine.types import Array, Feeds, TensorSpec


def check_feeds(inputs: Iterable[TensorSpec], feeds: Feeds) -> dict[str, int]:
    """Check names, dtypes and shapes of `feeds`; returns the size of each symbol.

    Raises:
        FeedError: naming the first input that is missing, unknown, or of another dtype,
            rank or size, and what was expected.
    """
    specs = {spec.name: spec for spec in inputs}
    dims: dict[str, int] = {}
    if specs.keys() != feeds.keys():
        _refuse_names(specs, feeds)
    for spec in specs.values():
        _check_feed(spec, feeds[spec.name], dims)
    return dims


def _refuse_names(specs: Mapping[str, TensorSpec], feeds: Feeds) -> NoReturn:
    expected = ", ".join(map(str, specs.values()))
    for name in feeds:
        if name not in specs:
            raise FeedError(f"The model has no input {name!r}.", fix=f"Feed exactly: {expected}.")
    missing = next(name for name in specs if name not in feeds)
    raise FeedError(f"Input {missing!r} is missing.", fix=f"Feed exactly: {expected}.")


@functools.lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which numpy puts together anew, in microseconds, each time it is asked."""
    return dtype.name


def _check_feed(spec: TensorSpec, value: Array, dims: dict[str, int]) -> None:
    if not hasattr(value, "dtype"):
        raise FeedError(
            f"Input {spec.name!r} is a {type(value).__name__}, not an array.",
            fix=f"Pass numpy.asarray(value, dtype={spec.dtype!r}).",
        )
    if _name(value.dtype) != spec.dtype:
        raise FeedError(
            f"Input {spec.name!r} has dtype {value.dtype.name}; the model takes {spec.dtype}.",
            fix=f"Convert it: feeds[{spec.name!r}].astype({spec.dtype!r}).",
        )
    wrong_rank = value.ndim != len(spec.shape)
    if wrong_rank or any(
        size != (dim if isinstance(dim, int) else dims.setdefault(dim, size))
        for size, dim in zip(value.shape, spec.shape, strict=True)
    ):
        known = {k: v for k, v in dims.items() if k in spec.symbols}
        raise FeedError(
            f"Input {spec.name!r} has shape {tuple(value.shape)}; the model takes {spec}.",
            why="the rank differs" if wrong_rank else f"sizes so far: {known}" if known else "",
            fix="Reshape the input, or export the model with that dimension symbolic.",
        )
    if 0 in value.shape:
        raise FeedError(
            f"Input {spec.name!r} has shape {tuple(value.shape)}: a dimension of size zero.",
            fix="Feed at least one element; the smallest batch is 1.",
        )


def check_finite(feeds: Feeds) -> None:
    """Refuse NaN and infinity: every output would be judged against garbage.

    Raises:
        FeedError: naming the input, how many of its elements, and the index of the first.
    """
    for name, value in feeds.items():
        if not np.issubdtype(value.dtype, np.number) or value.dtype.kind in "iu":
            continue
        bad = ~np.isfinite(value)
        if count := int(np.count_nonzero(bad)):
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise FeedError(
                f"Input {name!r} has {count} NaN or infinite of {value.size} elements.",
                why=f"The first is {value[first]} at index {list(first)}.",
                fix="Clean the data; a validation against NaN proves nothing.",
            )
