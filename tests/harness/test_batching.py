from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peregrine.harness.batching import batch_of, tile
from peregrine.model.model import Model
from peregrine.types import TensorSpec

_SPECS = (
    TensorSpec("x", "float32", ("batch", 3)),
    TensorSpec("state", "float32", (2, "batch", 4)),
    TensorSpec("rate", "int64", ()),
)


def _model() -> Model:
    return Model("m", Path(), _SPECS, (), batch="batch")


@given(st.integers(1, 5), st.integers(1, 17))
def test_tiling_repeats_rows_along_the_batch_axis_of_each_input(base, batch):
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.random((base, 3), np.float32),
        "state": rng.random((2, base, 4), np.float32),
        "rate": np.array(16000),
    }
    tiled = tile(_SPECS, "batch", feeds, batch)
    assert batch_of(_model(), tiled) == batch
    for row in range(batch):
        np.testing.assert_array_equal(tiled["x"][row], feeds["x"][row % base])
        np.testing.assert_array_equal(tiled["state"][:, row], feeds["state"][:, row % base])
    assert tiled["rate"] == 16000
    assert all(array.flags.c_contiguous for array in tiled.values())


def test_a_model_without_a_batch_has_one_item():
    model = Model("m", Path(), (TensorSpec("x", "float32", (4, 3)),), ())
    feeds = {"x": np.zeros((4, 3), np.float32)}
    assert batch_of(model, feeds) == 1
    assert tile(model.inputs, "", feeds, 8)["x"] is feeds["x"]
