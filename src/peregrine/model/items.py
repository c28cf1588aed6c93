"""A user's real inputs as items: photos, rows of arrays in files, what a program hands over.

An item is one inference. Where the first dimension of every input counts items (the batch, or a
fixed 1), each row of an array is one; else a whole set of arrays is. Photos are decoded when
they are read, so that choosing some of many costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.errors import FeedError, OptionError
from peregrine.model.images import LABELS_FILE, Photos, is_photo, list_photos
from peregrine.model.inputs import check_fit, random_feeds, read_arrays
from peregrine.model.model import Model
from peregrine.types import Array, Feeds

RANDOM = "random"
"""The word that asks for random numbers."""
RANDOM_ITEMS = 32
GIVEN_AT_MOST = 1200
"""Feeds taken from an iterable, which may have no end: as many as a quarter of them calibrates."""
_ARRAYS = {".npy", ".npz"}


@dataclass(frozen=True, slots=True)
class Item:
    """One inference's inputs, read when they are asked for."""

    name: str
    read: Callable[[], dict[str, Array]]
    """Arrays by input name; the first dimension is 1 where it counts items."""
    label: int | None = None


@dataclass(frozen=True, slots=True)
class Items:
    """Items of one origin."""

    items: tuple[Item, ...]
    words: str
    """What they are, after a number: `photos in photos/`."""
    photos: bool = False


def counts_items(model: Model) -> bool:
    """Whether the first dimension of every input counts items: it is the batch, or 1."""
    first = (model.batch or 1,)
    return bool(model.inputs) and all(spec.shape[:1] == first for spec in model.inputs)


def read_items(
    words: Sequence[str],
    model: Model,
    preprocessing: Mapping[str, Any] | None = None,
    labels: Path | None = None,
    *,
    given: Iterable[Any] = (),
) -> Items:
    """The items that a user names, in order.

    Args:
        words: directories of photos, directories of arrays, `.npz` and `.npy` files.
        model: what they must fit.
        preprocessing: of photos, instead of the model's own.
        labels: a file that names and labels the photos, instead of a directory's own.
        given: feeds of a program: mappings of input name to array, arrays for a model of one
            input, or sequences of arrays in the order of the inputs.

    Raises:
        OptionError: no such path, a directory of both kinds, or no preprocessing for photos.
        FeedError: a photo or an array that cannot be read or fed, or no item at all.
    """
    found = [_of_path(Path(word), model, preprocessing, labels) for word in words]
    handed = _of_program(given, model)
    if handed.items or not words:
        found.append(handed)
    items = tuple(item for part in found for item in part.items)
    if not items:
        raise FeedError("There are no inputs to calibrate with.", fix="Give at least two items.")
    if len(found) == 1:
        return found[0]
    each = ", ".join(f"{len(part.items)} {part.words}" for part in found)
    return Items(items, f"items ({each})", all(part.photos for part in found))


def random_items(model: Model, seed: int) -> list[dict[str, Array]]:
    """`RANDOM_ITEMS` random feeds of one item each, from seeds `seed`, `seed + 1`, ..."""
    return [random_feeds(model, 1, seed + number) for number in range(RANDOM_ITEMS)]


def rows(model: Model, arrays: Feeds, where: str) -> list[dict[str, Array]]:
    """Arrays as items: a row each where the first dimension counts them.

    Arrays that all lack that dimension are one item.

    Raises:
        FeedError: they do not fit the model, naming `where` they come from.
    """
    named = dict(arrays)
    ranks = {spec.name: len(spec.shape) for spec in model.inputs}
    if counts_items(model) and named.keys() == ranks.keys():
        if all(named[name].ndim == rank - 1 for name, rank in ranks.items()):
            named = {name: array[np.newaxis] for name, array in named.items()}
        counts = {array.shape[:1] for array in named.values()}
        count = int(next(iter(counts))[0]) if len(counts) == 1 and () not in counts else 0
        if count:
            items = [{n: a[row : row + 1] for n, a in named.items()} for row in range(count)]
            if model.batch:
                check_fit(model, named, where)
            else:
                for row, item in enumerate(items):
                    check_fit(model, item, f"{where}, row {row + 1}" if count > 1 else where)
            return items
    check_fit(model, named, where)
    return [named]


def digest(arrays: Feeds) -> str:
    """The same for equal bytes, shapes, dtypes and names."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def photo_items(photos: Photos, model: Model) -> Items:
    """A directory's photos as items."""
    name = model.inputs[0].name
    items = tuple(
        Item(file, partial(_read_photo, photos, file, name), label) for file, label in photos.listed
    )
    return Items(items, f"photos in {photos.directory.name}/", photos=True)


def _read_photo(photos: Photos, file: str, name: str) -> dict[str, Array]:
    return {name: photos.read(file)[np.newaxis]}


def _of_path(
    path: Path, model: Model, preprocessing: Mapping[str, Any] | None, labels: Path | None
) -> Items:
    if path.is_file():
        if path.suffix.lower() not in _ARRAYS:
            raise OptionError(
                f"{path} is no calibration data.",
                fix="Name a directory of photos, or .npz and .npy files, or a directory of those.",
            )
        return Items(_of_file(path, model), f"items of {path.name}")
    if not path.is_dir():
        raise OptionError(
            f"There is no calibration data {path}.",
            fix="Check the path. Random numbers are taken where you ask for them: "
            "--calibration random.",
        )
    files = sorted(p for p in path.iterdir() if p.is_file())
    arrays = [p for p in files if p.suffix.lower() in _ARRAYS]
    photos = (path / LABELS_FILE).is_file() or any(map(is_photo, files))
    if arrays and photos:
        raise OptionError(
            f"{path} holds photos and arrays, so it is not clear which of them to use.",
            fix="Name a directory of photos, or the .npz files one by one.",
        )
    if arrays:
        items = tuple(item for file in arrays for item in _of_file(file, model))
        return Items(items, f"items in {path.name}/")
    # Where there are neither, or only labels that list photos further below, it says so.
    return photo_items(list_photos(path, model, preprocessing, labels), model)


def _of_file(path: Path, model: Model) -> tuple[Item, ...]:
    return _items(rows(model, read_arrays(path, model), str(path)), path.name)


def _of_program(given: Iterable[Any], model: Model) -> Items:
    feeds = list(islice(given, GIVEN_AT_MOST + 1))
    words = "given items"
    if len(feeds) > GIVEN_AT_MOST:
        feeds.pop()
        words = f"given items (of the first {GIVEN_AT_MOST} feeds)"
    items: list[Item] = []
    for number, value in enumerate(feeds, 1):
        where = f"calibration feed {number}"
        items += _items(rows(model, _named(value, model, where), where), where)
    return Items(tuple(items), words)


def _items(found: Sequence[dict[str, Array]], name: str) -> tuple[Item, ...]:
    if len(found) == 1:
        return (Item(name, found[0].copy),)
    return tuple(Item(f"{name}[{row}]", arrays.copy) for row, arrays in enumerate(found))


def _named(value: Any, model: Model, where: str) -> dict[str, Array]:
    """What a program hands over, by input name."""
    names = [spec.name for spec in model.inputs]
    if isinstance(value, Mapping):
        return {str(name): np.asarray(array) for name, array in value.items()}
    arrays = [*value] if isinstance(value, list | tuple) else [value]
    if len(arrays) != len(names):
        raise FeedError(
            f"{where}: {len(arrays)} arrays for {len(names)} inputs.",
            fix=f"Give a dict with the arrays {', '.join(names)}.",
        )
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
