"""Where the real networks and photos are, on a machine that has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data() -> Path:
    """The directory of them; skips the test where there is none."""
    named = os.environ.get("PEREGRINE_SHARED_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"there are no real networks at {path}; PEREGRINE_SHARED_DATA names them")
    return path
