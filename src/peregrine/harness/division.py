"""Which items calibrate and which judge: never the same one, by content.

A graph whose ranges were chosen on the data that judges it looks better than it is. So what the
user gives for both is told apart by its bytes after preprocessing, and where there is one set
only, it is split.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from peregrine.errors import OptionError
from peregrine.model.items import Items, digest
from peregrine.types import Array

MOST = 300
"""Items that calibrate, at most: ranges hardly move after some hundreds."""
_SHARE = 4
"""One item in so many calibrates, where one set is split."""
_LEAST = 8
"""Items that calibrate where there are twice as many."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An item that was read."""

    name: str
    arrays: dict[str, Array]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class Division:
    """What calibrates, what judges, and the words for it."""

    calibrating: tuple[Loaded, ...]
    words: str
    """What calibrates: `40 of 160 photos in photos/`."""
    split: str
    """The whole story, for the report."""
    judging: tuple[Loaded, ...] = ()
    """What judges of the same set; empty where other data does."""


def share(count: int) -> int:
    """Of `count` items that must calibrate and judge, those that calibrate."""
    least = _LEAST if count >= 2 * _LEAST else 1
    return min(MOST, max(least, count // _SHARE))


def split(items: Items, seed: int) -> Division:
    """One set as two, by a seeded permutation. Doubles are left out, so that none is in both.

    Raises:
        OptionError: there is one item, or none but doubles of it.
    """
    loaded, doubles = _distinct(items)
    if len(loaded) < 2:
        raise OptionError(
            f"One item ({loaded[0].name}) cannot both calibrate and judge.",
            why="A graph that is judged on what it was calibrated with looks better than it is.",
            fix="Give more items to --calibration, or others to judge with --images or --feeds.",
        )
    count = share(len(loaded))
    order = np.random.default_rng(seed).permutation(len(loaded))
    first, rest = sorted(order[:count]), sorted(order[count:])
    words = f"{count} of {len(loaded)} {items.words}"
    return Division(
        tuple(loaded[i] for i in first),
        words,
        f"{words} calibrate, the other {len(rest)} judge (split by seed {seed})"
        + _left_out(doubles, "double", "doubles"),
        tuple(loaded[i] for i in rest),
    )


def apart(items: Items, judged: Collection[str], seed: int) -> Division:
    """Items to calibrate with where other data judges; those that judge too are left out.

    Args:
        items: what the user gives to calibrate with.
        judged: digests of the items that judge.
        seed: of the choice where there are more than `MOST`.

    Raises:
        OptionError: all of them judge.
    """
    count = len(items.items)
    order = np.random.default_rng(seed).permutation(count) if count > MOST else np.arange(count)
    chosen: dict[int, Loaded] = {}
    both = 0
    for place in map(int, order):
        if len(chosen) == MOST:
            break
        item = items.items[place]
        arrays = item.read()
        if digest(arrays) in judged:
            both += 1
        else:
            chosen[place] = Loaded(item.name, arrays, item.label)
    if not chosen:
        raise OptionError(
            f"All of the {count} {items.words} also judge, so that nothing is left to calibrate.",
            why="A graph that is judged on what it was calibrated with looks better than it is.",
            fix="Give other data to --calibration; or leave --images and --feeds out, and the "
            "calibration data is split in two.",
        )
    words = f"{count} {items.words}"
    if len(chosen) < count:
        words = f"{len(chosen)} of {words}"
    story = f"{words} calibrate" + (f" (chosen by seed {seed})" if count > MOST else "")
    story += _left_out(both, "that also judges", "that also judge") + "; other data judges"
    return Division(tuple(chosen[place] for place in sorted(chosen)), words, story)


def _left_out(count: int, one: str, several: str) -> str:
    if not count:
        return ""
    return f"; {count} {one} was left out" if count == 1 else f"; {count} {several} were left out"


def _distinct(items: Items) -> tuple[list[Loaded], int]:
    """Items that differ in content, and how many were left out."""
    seen: set[str] = set()
    loaded = []
    for item in items.items:
        arrays = item.read()
        known = digest(arrays)
        if known not in seen:
            seen.add(known)
            loaded.append(Loaded(item.name, arrays, item.label))
    return loaded, len(items.items) - len(loaded)
