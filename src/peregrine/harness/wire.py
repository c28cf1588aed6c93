"""What crosses between the race and its workers: JSON lines for words, `.npy` files for arrays.

A worker may run in an interpreter that has numpy and little else, so this is standard library
and numpy only, and never a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peregrine.model.arrays import load_arrays as load_arrays
from peregrine.model.arrays import save_arrays as save_arrays
from peregrine.types import Candidate, DimRange, Precision, Profile, Target


def encode_candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "backend": candidate.backend,
        "variant": candidate.variant,
        "precision": str(candidate.precision),
        "options": dict(candidate.options),
        "graph": candidate.graph,
    }


def decode_candidate(record: Mapping[str, Any]) -> Candidate:
    return Candidate(
        record["backend"],
        record["variant"],
        Precision(record["precision"]),
        record["options"],
        record.get("graph", ""),
    )


def encode_target(target: Target) -> dict[str, Any]:
    dims = {name: [r.min, r.opt, r.max] for name, r in target.profile.dims.items()}
    return {"device": target.device, "threads": target.threads, "profile": dims}


def decode_target(record: Mapping[str, Any]) -> Target:
    dims = {name: DimRange(*sizes) for name, sizes in record["profile"].items()}
    return Target(record["device"], Profile(dims), record["threads"])
