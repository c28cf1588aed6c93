"""The inputs that a quantised graph's ranges come from, kept on disk for a worker to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peregrine.model.arrays import load_arrays, save_arrays
from peregrine.model.model import Model
from peregrine.types import Array, Feeds

_RECORD = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A directory of feeds. An item is one inference: a single row where the model batches."""

    directory: Path
    words: str
    """What it is, for the report: `40 of 160 photos in photos/`."""
    random: bool
    """Random numbers, which the user asked for by name."""
    sha256: str
    """Of all arrays: the same data gives the same ranges."""
    feeds: tuple[str, ...]
    """Sub-directories, each of one feed set of one or more rows."""
    rows: tuple[int, ...]
    """Items in each."""

    def __len__(self) -> int:
        return sum(self.rows)

    def items(self, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds of one item each, in order, at most `limit` of them."""
        left = len(self) if limit is None else limit
        for name, rows in zip(self.feeds, self.rows, strict=True):
            arrays = load_arrays(self.directory / name, mmap=True)
            for row in range(min(rows, left)):
                if rows == 1:
                    yield {key: np.array(value) for key, value in arrays.items()}
                else:
                    yield {key: np.array(value[row : row + 1]) for key, value in arrays.items()}
            left -= min(rows, left)

    @classmethod
    def write(
        cls,
        directory: Path,
        model: Model,
        feeds: Sequence[Feeds],
        words: str,
        *,
        random: bool = False,
    ) -> Calibration:
        """Keep feeds as calibration data. Rows are items where every input has the model's
        batch as its first dimension; else a feed set is one item."""
        batched = bool(model.batch) and all(s.shape[:1] == (model.batch,) for s in model.inputs)
        digest = hashlib.sha256()
        names, rows = [], []
        for number, arrays in enumerate(feeds):
            names.append(f"{number:04}")
            save_arrays(directory / names[-1], arrays)
            rows.append(len(next(iter(arrays.values()))) if batched else 1)
            _hash(digest, arrays)
        made = cls(directory, words, random, digest.hexdigest(), tuple(names), tuple(rows))
        record = {
            "words": made.words,
            "random": made.random,
            "sha256": made.sha256,
            "feeds": made.feeds,
            "rows": made.rows,
        }
        (directory / _RECORD).write_text(json.dumps(record))
        return made

    @classmethod
    def open(cls, directory: Path) -> Calibration:
        """Read what `write` wrote."""
        record = json.loads((directory / _RECORD).read_text())
        return cls(
            directory,
            record["words"],
            record["random"],
            record["sha256"],
            tuple(record["feeds"]),
            tuple(record["rows"]),
        )


def _hash(digest: hashlib._Hash, arrays: Mapping[str, Array]) -> None:
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
