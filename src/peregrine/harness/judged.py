"""The inputs of a race, written: random ones, the user's, photos; and apart, what calibrates.

feeds/random-0-batch-1/  one feed set
feeds/user-0/            the user's own
feeds/images/            items that judge, photos or rows, stacked along the first dimension
calibration/             see `conversion.calibration`
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.conversion.calibration import Calibration
from peregrine.errors import OptionError
from peregrine.harness import wire
from peregrine.harness.batching import batch_of
from peregrine.harness.division import Loaded, apart, split
from peregrine.harness.graphs import CALIBRATION
from peregrine.harness.request import IN_MEMORY, Request
from peregrine.harness.rundir import RunDirectory, slug
from peregrine.model.inputs import random_feeds, read_feeds
from peregrine.model.items import (
    RANDOM,
    RANDOM_ITEMS,
    Items,
    counts_items,
    digest,
    photo_items,
    random_items,
    read_items,
    rows,
)
from peregrine.model.model import Model
from peregrine.types import Array, Feeds

RANDOM_SETS = 3
"""Random inputs that judge the first batch."""
IMAGES = "images"


@dataclass(frozen=True, slots=True)
class FeedSet:
    """Inputs on disk with the reference's outputs for them."""

    name: str
    batch: int
    words: str
    """For the report, e.g. `random uniform [0, 1), seed 3, batch 8`."""
    real: bool = False
    """The user's data, not random numbers."""

    def feeds(self, run: RunDirectory) -> Path:
        return run.file("feeds", self.name)

    def outputs(self, run: RunDirectory) -> dict[str, Array]:
        """The reference's outputs."""
        return wire.load_arrays(run.file("reference", self.name))


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    sets: tuple[FeedSet, ...]
    images: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    kind: str = IMAGES
    split: str = ""
    calibrating: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Judged:
    """Items that judge, and the words for them."""

    items: tuple[Loaded, ...] = ()
    words: str = IMAGES
    photos: bool = False


def write_inputs(
    run: RunDirectory,
    model: Model,
    request: Request,
    given: Sequence[Feeds],
    calibrating: Iterable[Any] | None,
) -> Written:
    """Write all inputs of a race, none of which both calibrates and judges.

    Args:
        run: where to.
        model: what is raced.
        request: what the user named.
        given: a program's inputs to judge on.
        calibrating: a program's feeds to calibrate with.

    Raises:
        FeedError: the user's inputs or photos do not fit the model.
        OptionError: the options contradict each other or the data.
    """
    for stale in ("feeds", CALIBRATION):
        shutil.rmtree(run.file(stale), ignore_errors=True)
    try:
        sets = _random_sets(run, model, request)
    except MemoryError as error:
        raise OptionError(
            f"The inputs of a batch of {max(request.batches)} do not fit into memory.",
            why=str(error),
            fix="Name smaller batches with --batch.",
        ) from error
    user = [*given, *read_feeds([Path(path) for path in request.feeds], model)]
    for number, feeds in enumerate(user):
        name = f"user-{number}"
        wire.save_arrays(run.file("feeds", name), feeds)
        words = f"given input {number + 1}"
        sets.append(FeedSet(name, batch_of(model, feeds), words, real=True))
    judged = _photos_that_judge(model, request)
    story = ""
    names: tuple[str, ...] = ()
    if RANDOM in request.calibration:
        story, names = _calibrate_randomly(run, model, request)
    elif request.calibration:
        items = _to_calibrate(model, request, calibrating)
        # An example that a program gave fixes shapes, and may be zeros: it judges as well, and is
        # no reason not to split.
        if request.feeds or judged.items:
            known = {digest(item.arrays) for item in judged.items}
            known |= {digest(row) for feeds in user for row in rows(model, feeds, "given input")}
            division = apart(items, known, request.seed)
        else:
            division = split(items, request.seed)
            judged = _Judged(division.judging, items.words, items.photos)
        names = tuple(item.name for item in division.calibrating)
        chosen = division.calibrating
        _write_calibration(run, model, chosen, division.words, photos=items.photos)
        story = division.split
    written = _write_judged(run, model, request, judged)
    return dataclasses.replace(written, sets=(*sets, *written.sets), split=story, calibrating=names)


def image_chunk(model: Model, batch: int) -> int:
    """Items a worker runs at once: the race's batch, or the one the model fixes."""
    if model.batch:
        return batch
    return model.inputs[0].resolve(model.dims)[0]


def _random_sets(run: RunDirectory, model: Model, request: Request) -> list[FeedSet]:
    sets = []
    batches = request.batches if model.batch else (1,)
    for batch in batches:
        count = RANDOM_SETS if batch == batches[0] else 1
        for offset in range(count):
            seed = request.seed + offset
            name = f"random-{seed}-batch-{batch}"
            wire.save_arrays(run.file("feeds", name), random_feeds(model, batch, seed))
            words = f"random uniform [0, 1), seed {seed}, batch {batch}"
            sets.append(FeedSet(name, batch, words))
    return sets


def _preprocessing(request: Request) -> dict[str, Any] | None:
    from peregrine.model.images import load_preprocessing

    return load_preprocessing(Path(request.preprocessing)) if request.preprocessing else None


def _photos_that_judge(model: Model, request: Request) -> _Judged:
    """The photos of --images, decoded."""
    if not request.images:
        return _Judged()
    from peregrine.model.images import default_photos, list_photos

    directory = default_photos() if request.images == "default" else Path(request.images)
    labels = Path(request.labels) if request.labels else None
    found = photo_items(list_photos(directory, model, _preprocessing(request), labels), model)
    return _Judged(_load(found), found.words, photos=True)


def _load(items: Items) -> tuple[Loaded, ...]:
    return tuple(Loaded(item.name, item.read(), item.label) for item in items.items)


def _to_calibrate(model: Model, request: Request, calibrating: Iterable[Any] | None) -> Items:
    paths = [word for word in request.calibration if word != IN_MEMORY]
    if IN_MEMORY in request.calibration and calibrating is None:
        raise OptionError(
            "The calibration data that a program handed over is gone.",
            why="The race was interrupted before it was written.",
            fix="Start the race again with the data.",
        )
    # Labels are of what judges: photos that calibrate apart from it need none.
    labels = Path(request.labels) if request.labels and not request.images else None
    given = () if calibrating is None else calibrating
    items = read_items(paths, model, _preprocessing(request), labels, given=given)
    if labels is not None and not any(item.label is not None for item in items.items):
        raise OptionError(
            f"The labels {labels.name} belong to no photos.",
            why=f"The data is {len(items.items)} {items.words}; labels are by a photo's name.",
            fix="Give photos to --calibration or --images, or leave --labels out.",
        )
    return items


def _calibrate_randomly(
    run: RunDirectory, model: Model, request: Request
) -> tuple[str, tuple[str, ...]]:
    # Other seeds than those that judge; one more is taken by the test for independent rows.
    first = request.seed + RANDOM_SETS + 1
    items = [
        Loaded(f"seed {first + number}", arrays)
        for number, arrays in enumerate(random_items(model, first))
    ]
    words = "random numbers, asked for by name"
    _write_calibration(run, model, items, words, random=True)
    return f"{RANDOM_ITEMS} feeds of {words}, calibrate", tuple(item.name for item in items)


def _write_calibration(
    run: RunDirectory,
    model: Model,
    items: Sequence[Loaded],
    words: str,
    *,
    random: bool = False,
    photos: bool = False,
) -> None:
    feeds = [item.arrays for item in items]
    if model.batch and counts_items(model):
        feeds = [_stacked(items)]
    elif photos and not model.batch:
        # So many at a time as the model fixes; the last photo is repeated to fill it up.
        whole, chunk = _stacked(items), image_chunk(model, 1)
        places = np.arange(-(-len(items) // chunk) * chunk).clip(max=len(items) - 1)
        feeds = [
            {name: array[places[start : start + chunk]] for name, array in whole.items()}
            for start in range(0, len(places), chunk)
        ]
    Calibration.write(run.file(CALIBRATION), model, feeds, words, random=random)


def _write_judged(run: RunDirectory, model: Model, request: Request, judged: _Judged) -> Written:
    """Items that judge: as one stack where rows of the outputs belong to rows of the inputs,
    else each alone."""
    items, labels = judged.items, _labels(judged)
    needs = "--labels" if request.labels else "--max-drop" if request.max_drop is not None else ""
    if needs == "--max-drop" and not labels and not request.metric:
        raise OptionError(
            "There is nothing to measure a drop by.",
            why="A drop (--max-drop) is one of top-1 on labelled photos, or of a metric.",
            fix="Give --labels FILE with photos, or --metric module:function; or leave --max-drop "
            "out.",
        )
    if not items:
        return Written(())
    if _stackable(model, judged):
        wire.save_arrays(run.file("feeds", IMAGES), _stacked(items))
        kind = IMAGES if judged.photos else "items"
        return Written((), tuple(item.name for item in items), labels, kind)
    if labels and needs and not request.metric:
        raise OptionError(
            f"{model.name} gives no row of scores for each photo, so labels cannot judge it.",
            why=f"Its outputs are {', '.join(map(str, model.outputs))}.",
            fix="Leave --labels out, or judge by --metric module:function.",
        )
    sets = []
    for number, item in enumerate(items):
        name = f"item-{number:04}-{slug(item.name)}"
        wire.save_arrays(run.file("feeds", name), item.arrays)
        words = f"{len(items)} {judged.words}, one at a time"
        sets.append(FeedSet(name, batch_of(model, item.arrays), words, real=True))
    return Written((*sets,))


def _stackable(model: Model, judged: _Judged) -> bool:
    if judged.photos and not model.batch and image_chunk(model, 1) > 1:
        return True  # a photo is less than one inference
    first = (model.batch or 1,)
    return counts_items(model) and all(spec.shape[:1] == first for spec in model.outputs)


def _labels(judged: _Judged) -> tuple[int, ...]:
    labels = [item.label for item in judged.items if item.label is not None]
    if labels and len(labels) < len(judged.items):
        raise OptionError(
            f"Of {len(judged.items)} items that judge, {len(labels)} have a label.",
            why=f"They are {judged.words}.",
            fix="Label all of them in one file with --labels, or judge with --images and leave "
            "the others to --calibration.",
        )
    return tuple(labels)


def _stacked(items: Sequence[Loaded]) -> dict[str, Array]:
    """Single items along the first dimension."""
    return {name: np.concatenate([item.arrays[name] for item in items]) for name in items[0].arrays}
