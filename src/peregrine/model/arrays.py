"""Named arrays on disk: one `.npy` each and an index; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from peregrine.types import Array, numpy_dtype

_NAMES = "names.json"


def save_arrays(directory: Path, arrays: Mapping[str, Array]) -> Path:
    """Write named arrays as one `.npy` each; names may hold any character."""
    directory.mkdir(parents=True, exist_ok=True)
    index: list[dict[str, str]] = []
    for number, (name, array) in enumerate(arrays.items()):
        # numpy writes dtypes it does not know (bfloat16, fp8) as raw bytes: keep their name.
        index.append({"name": name, "dtype": array.dtype.name})
        np.save(directory / f"{number}.npy", np.ascontiguousarray(array).reshape(array.shape))
    (directory / _NAMES).write_text(json.dumps(index))
    return directory


def load_arrays(directory: Path, *, mmap: bool = False) -> dict[str, Array]:
    """Read what `save_arrays` wrote; `mmap` leaves large arrays on disk until touched."""
    index = json.loads((directory / _NAMES).read_text())
    arrays: dict[str, Array] = {}
    for number, entry in enumerate(index):
        array = np.load(directory / f"{number}.npy", mmap_mode="r" if mmap else None)
        dtype = numpy_dtype(entry["dtype"])
        arrays[entry["name"]] = array if array.dtype == dtype else array.view(dtype)
    return arrays
