"""What crosses between the race and its workers: JSON lines for words, `.npy` files for arrays.

A worker may run in an interpreter that has numpy and little else, so this is standard library
and numpy only, and never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.types import Array, Candidate, DimRange, Precision, Profile, Target, numpy_dtype

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


def encode_candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "backend": candidate.backend,
        "variant": candidate.variant,
        "precision": str(candidate.precision),
        "options": dict(candidate.options),
    }


def decode_candidate(record: Mapping[str, Any]) -> Candidate:
    return Candidate(
        record["backend"], record["variant"], Precision(record["precision"]), record["options"]
    )


def encode_target(target: Target) -> dict[str, Any]:
    dims = {name: [r.min, r.opt, r.max] for name, r in target.profile.dims.items()}
    return {"device": target.device, "threads": target.threads, "profile": dims}


def decode_target(record: Mapping[str, Any]) -> Target:
    dims = {name: DimRange(*sizes) for name, sizes in record["profile"].items()}
    return Target(record["device"], Profile(dims), record["threads"])
