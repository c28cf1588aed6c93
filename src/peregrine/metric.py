"""A user's own measure of accuracy: a function that scores outputs, an item each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peregrine.errors import ModelError, OptionError
from peregrine.model.importing import find_callable, importable_from
from peregrine.types import Array

_SHAPE = (
    "Define `def function(outputs, inputs, labels)`, where outputs and inputs map names to "
    "arrays; return one score per item, or a single number for them all. More is better."
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A function of (outputs, inputs, labels) that returns a score for each item."""

    name: str
    """`module:function`."""
    function: Callable[[dict[str, Array], dict[str, Array], Array | None], Any]
    search_path: tuple[str, ...] = ()
    """Where it may import from, while it runs."""

    def __call__(
        self, outputs: dict[str, Array], inputs: dict[str, Array], labels: Array | None
    ) -> Any:
        with importable_from(self.search_path):
            return self.function(outputs, inputs, labels)


def load_metric(ref: str) -> Metric:
    """The function that `module:function` names, looked for in the current directory too.

    Raises:
        OptionError: no such module or function, or importing it failed.
    """
    location, _, attribute = ref.partition(":")
    if not location or not attribute:
        raise OptionError(
            f"The metric {ref!r} names no function.",
            why="It must be written module:function.",
            fix="Give e.g. --metric my_metrics:accuracy, for my_metrics.py in this directory.",
        )
    search_path = (str(Path.cwd()),)
    try:
        with importable_from(search_path):
            function = find_callable(location, attribute, search_path)
    except ModelError as error:
        raise OptionError(
            f"The metric {ref!r} cannot be loaded: {error.what}",
            why=error.why,
            fix=error.fix or _SHAPE,
        ) from error
    return Metric(ref, function, search_path)


def score(
    metric: Metric,
    outputs: Mapping[str, Array],
    inputs: Mapping[str, Array],
    labels: Array | None = None,
) -> npt.NDArray[np.float64]:
    """Score one batch.

    Args:
        metric: the user's. It gets read-only views, so that what is judged stays what was run.
        outputs: by name, items along the first dimension.
        inputs: by name, the same.
        labels: one for each item, where there are labels.

    Returns:
        Shape (items,); (1,) where the metric returns a single number for the whole batch.
        NaN and Inf are kept: judging them is the guard's.

    Raises:
        OptionError: the function failed (with the line that did), or returned something else
            than a real number for each item.
    """
    try:
        raw = metric(
            {name: _read_only(value) for name, value in outputs.items()},
            {name: _read_only(value) for name, value in inputs.items()},
            None if labels is None else _read_only(labels),
        )
    except Exception as error:
        raise OptionError(
            f"The metric {metric.name} failed: {type(error).__name__}: {error}",
            why=_line(metric, error),
            fix=_SHAPE,
        ) from error
    try:
        found = np.asarray(raw)
    except ValueError as error:  # lists of different lengths
        raise OptionError(
            f"The metric {metric.name} returned no array of scores.", why=str(error), fix=_SHAPE
        ) from error
    # bfloat16 and the like have numpy's kind of a raw buffer, and convert all the same.
    if found.dtype.kind not in "biuf" and found.dtype.name not in ("bfloat16", "float8_e4m3fn"):
        raise OptionError(
            f"The metric {metric.name} returned {_kind(raw, found)}, not real numbers.",
            fix=_SHAPE,
        )
    items = _items(outputs, inputs, labels)
    fits = found.ndim == 0 or (found.ndim == 1 and items in (None, len(found)) and len(found))
    if not fits:
        raise OptionError(
            f"The metric {metric.name} returned scores of shape {found.shape}"
            + (f" for {items} items." if items is not None else "."),
            fix=_SHAPE,
        )
    return np.atleast_1d(found.astype(np.float64))


def _read_only(array: Array) -> Array:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _items(
    outputs: Mapping[str, Array], inputs: Mapping[str, Array], labels: Array | None
) -> int | None:
    """Items in the batch: as many as labels, or the inputs' one first dimension, or the
    outputs'; None where they differ, and the metric itself must know."""
    if labels is not None:
        return len(labels)
    for arrays in (inputs, outputs):
        sizes = {value.shape[:1] for value in arrays.values()}
        if len(sizes) == 1 and (size := sizes.pop()):
            return int(size[0])
    return None


def _kind(raw: object, found: Array) -> str:
    return f"a {type(raw).__name__}" if found.dtype.kind == "O" else f"values of {found.dtype.name}"


def _line(metric: Metric, error: BaseException) -> str:
    """Where the user's code failed: the deepest line in the file that defines the metric, else
    the deepest at all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(metric.function, "__code__", None)  # a callable object has none
    own = getattr(code, "co_filename", None)
    frame = [f for f in frames if f.filename == own][-1:] or frames[-1:]
    if frame[0].filename == __file__:
        return "It could not be called with (outputs, inputs, labels)."
    return f"{frame[0].filename}:{frame[0].lineno}: {frame[0].line}"
