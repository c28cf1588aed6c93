"""What a model is fed: specs a user writes, random feeds, feeds from files."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peregrine.errors import FeedError, OptionError, did_you_mean
from peregrine.model.feeds import check_feeds, check_finite
from peregrine.model.model import Model
from peregrine.types import Array, Dim, Feeds, TensorSpec, numpy_dtype

BATCH = "batch"
_BATCH_LETTERS = {"B", "b", "N", BATCH}
_DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
)
_EXAMPLE = "Write name:dtype:shape, e.g. x:float32:Bx3x224x224 or ids:int64:Bx128=0..30522."


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input as a user describes it. `range` bounds random values, [low, high);
    low == high means that one value."""

    spec: TensorSpec
    range: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.range is None:
            return str(self.spec)
        low, high = (f"{v:g}" if v % 1 else str(int(v)) for v in self.range)
        return f"{self.spec}={low}" if low == high else f"{self.spec}={low}..{high}"


def parse_input(text: str) -> InputSpec:
    """Parse `name:dtype:shape`, optionally with `=low..high` or `=value`.

    A shape is sizes and symbols joined by `x` (`Bx3x48xwidth`) or, where a symbol contains an
    x, by commas (`B,maxlen`). `B`, `N` and `batch` are the batch. `scalar` is no dimension.

    Raises:
        OptionError: saying which part does not parse.
    """
    # From the right: TensorFlow's names contain colons ("input:0").
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not parts[0]:
        raise OptionError(f"Cannot read the input {text!r}.", fix=_EXAMPLE)
    name, dtype, tail = parts
    shape, equals, values = tail.partition("=")
    if dtype not in _DTYPES:
        raise OptionError(
            f"Input {name!r}: there is no dtype {dtype!r}.{did_you_mean(dtype, _DTYPES)}",
            fix=f"Use one of: {', '.join(_DTYPES)}.",
        )
    spec = TensorSpec(name, dtype, _parse_shape(text, shape))
    return InputSpec(spec, _parse_range(text, values) if equals else None)


def _parse_shape(text: str, shape: str) -> tuple[Dim, ...]:
    if shape == "scalar":
        return ()
    dims: list[Dim] = []
    for token in shape.split("," if "," in shape else "x"):
        if token in _BATCH_LETTERS:
            dims.append(BATCH)
        elif re.fullmatch(r"[1-9]\d*", token):
            dims.append(int(token))
        elif re.fullmatch(r"[A-Za-z_]\w*", token):
            dims.append(token)
        else:
            raise OptionError(
                f"Cannot read the shape {shape!r} of the input {text!r}.",
                why=f"{token!r} is neither a size above zero nor a symbol.",
                fix=_EXAMPLE + " Join with commas where a symbol contains an x.",
            )
    return tuple(dims)


def _parse_range(text: str, values: str) -> tuple[float, float]:
    low, dots, high = values.partition("..")
    try:
        bounds = float(low), float(high if dots else low)
    except ValueError:
        bounds = math.nan, math.nan
    if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] <= bounds[1]):
        raise OptionError(
            f"Cannot read the values {values!r} of the input {text!r}.",
            fix="Write =low..high with low below high (high is excluded), or =value.",
        )
    return bounds


def random_feeds(model: Model, batch: int, seed: int) -> dict[str, Array]:
    """Random inputs at one batch size, equal for equal seeds.

    Floats are uniform in [0, 1), as in the paper, or in the model's `ranges`. Integers are
    uniform in `ranges`, or 0 and 1, or the whole byte for int8 and uint8. Bools are fair coins.

    Raises:
        OptionError: a batch below 1, or one that a model of fixed batch cannot take.
    """
    if batch < 1:
        raise OptionError(f"Batch {batch} is not possible.", fix="The smallest batch is 1.")
    if not model.batch and batch != 1:
        raise OptionError(
            f"{model.name} fixes its batch size; batch {batch} is not possible.",
            fix="Use --batch 1 (one inference of the model as it is), or export the model with a "
            "symbolic batch dimension.",
        )
    sizes = model.sizes(batch)
    return {
        spec.name: random_array(
            spec, spec.resolve(sizes), model.ranges.get(spec.name), np.random.default_rng([seed, i])
        )
        for i, spec in enumerate(model.inputs)
    }


def random_array(
    spec: TensorSpec,
    shape: tuple[int, ...],
    bounds: tuple[float, float] | None,
    rng: np.random.Generator,
) -> Array:
    """One random array of `shape` and the dtype of `spec`; see `random_feeds`."""
    dtype = numpy_dtype(spec.dtype)
    if bounds is not None and bounds[0] == bounds[1]:
        return np.full(shape, bounds[0], dtype)
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        whole = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
        low, high = bounds or (whole if dtype.itemsize == 1 else (0, 2))
        return rng.integers(math.ceil(low), math.ceil(high), shape, np.int64).astype(dtype)
    low, high = bounds or (0.0, 1.0)
    return (low + (high - low) * rng.random(shape, np.float32)).astype(dtype)


def read_feeds(paths: Iterable[Path | str], model: Model) -> list[dict[str, Array]]:
    """Read feeds from files: `.npz` with one array per input, `.npy` for a model of one input.

    Raises:
        FeedError: a file that cannot be read, arrays that do not fit the model's inputs (name,
            dtype, shape), or NaN or infinity in them.
    """
    feeds = []
    for path in paths:
        arrays = read_arrays(Path(path), model)
        check_fit(model, arrays, str(path))
        feeds.append(arrays)
    return feeds


def check_fit(model: Model, arrays: Feeds, where: str) -> None:
    """Check that a user's arrays can be fed in the race that was set up.

    Raises:
        FeedError: naming `where` they come from; see `read_feeds`.
    """
    try:
        sizes = check_feeds(model.inputs, arrays)
        check_finite(arrays)
        _check_sizes(model, sizes)
    except FeedError as error:
        raise FeedError(f"{where}: {error.what}", why=error.why, fix=error.fix) from error


def _check_sizes(model: Model, sizes: dict[str, int]) -> None:
    for symbol, size in sizes.items():
        wanted = model.dims.get(symbol, size)
        if symbol != model.batch and size != wanted:
            raise FeedError(
                f"{symbol} is {size} in the data; the race was set up for {wanted}.",
                fix=f"Add --dim {symbol}={size}.",
            )


def read_arrays(path: Path, model: Model) -> dict[str, Array]:
    """The named arrays of an `.npz`, or the one of an `.npy` for a model of one input.

    Raises:
        FeedError: there is no such file, it is damaged, or an `.npy` cannot be all inputs.
    """
    inputs = model.inputs
    try:
        # allow_pickle stays off: an object array can execute code.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if len(inputs) != 1:
                raise FeedError(
                    f"{path} holds one array; the model takes {len(inputs)} inputs.",
                    fix=f"Save an .npz with the arrays {', '.join(s.name for s in inputs)}.",
                )
            return {inputs[0].name: loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise FeedError(f"There is no file {path}.", fix="Check the path.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FeedError(
            f"{path} cannot be read as .npy or .npz.",
            why=str(error),
            fix="Write it with numpy.save or numpy.savez (no object arrays).",
        ) from error
