"""Records to JSON's words and back."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

NOT_ALWAYS_FINITE = frozenset({"scaled_error", "cosine", "max_abs"})
"""Figures that are NaN or Inf where a candidate's outputs are; JSON shows null."""


def to_builtins(record: Any) -> Any:
    """A record as JSON-ready dicts, lists and scalars. NaN and Inf become None: JSON has none."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_builtins(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(k): to_builtins(v) for k, v in record.items()}
    if isinstance(record, enum.Enum):
        return record.value
    if isinstance(record, float) and not math.isfinite(record):
        return None
    if isinstance(record, Sequence) and not isinstance(record, str | bytes):
        return [to_builtins(v) for v in record]
    return record


def from_builtins(data: Any, kind: type[T]) -> T:
    """The record of class `kind` that `to_builtins` turned into `data`.

    The figures of a validation may be NaN or Inf, which JSON shows as null: they come back as
    NaN (`nan_count` and `inf_count` keep which it was), a threshold as Inf, that is no limit.

    Raises:
        ValueError: `data` is not such a record; the message names the field.
    """
    import msgspec

    try:
        return msgspec.convert(_restore(data), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _restore(data: Any) -> Any:
    if isinstance(data, Mapping):
        restored = {key: _restore_item(key, value) for key, value in data.items()}
        if {"backend", "log"} <= data.keys() and "absent" not in data:
            # A row of a version that told it by the name of the log alone.
            restored["absent"] = str(data["log"]).endswith(f"/probe-{data['backend']}.log")
        return restored
    # Samples are the bulk of a report and hold only numbers: left as they are.
    if isinstance(data, list) and not (data and isinstance(data[0], float)):
        return [_restore(value) for value in data]
    return data


def _restore_item(key: str, value: Any) -> Any:
    if value is None and key in NOT_ALWAYS_FINITE:
        return math.nan
    if key == "thresholds" and isinstance(value, Mapping):
        return {name: math.inf if limit is None else limit for name, limit in value.items()}
    return _restore(value)
