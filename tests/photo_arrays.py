"""Directories of photos read whole, as tests want them; a race reads them one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peregrine.model.images import list_photos
from peregrine.model.model import Model
from peregrine.types import Array


class Read(NamedTuple):
    names: tuple[str, ...]
    pixels: Array
    """float32 [images, 3, size, size]; [images, size, size, 3] for NHWC."""
    labels: Array | None
    """Class indices [images], or None without a `labels.txt`."""


def read_images(
    directory: Path,
    model: Model,
    limit: int | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Read:
    """The first `limit` photos that `list_photos` finds."""
    photos = list_photos(directory, model, preprocessing)
    chosen = photos.listed[:limit]
    pixels = np.stack([photos.read(name) for name, _ in chosen])
    labels = [label for _, label in chosen if label is not None]
    return Read(tuple(n for n, _ in chosen), pixels, np.array(labels) if labels else None)
