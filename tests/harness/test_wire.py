import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peregrine.harness import wire
from peregrine.types import Candidate, DimRange, Precision, Profile, Target

_DTYPES = ["float32", "float16", "int64", "int32", "uint8", "bool"]


@given(
    names=st.lists(st.text(min_size=1), unique=True, max_size=3),
    data=st.data(),
)
def test_arrays_cross_unchanged(tmp_path_factory, names, data):
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = {
        name: data.draw(hnp.arrays(data.draw(st.sampled_from(_DTYPES)), shapes)) for name in names
    }
    directory = tmp_path_factory.mktemp("arrays")
    back = wire.load_arrays(wire.save_arrays(directory, arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes_that_numpy_does_not_know_cross(tmp_path, dtype):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).astype(dtype)
    back = wire.load_arrays(wire.save_arrays(tmp_path / "a", {"x": array}))["x"]
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back.astype(np.float32), array.astype(np.float32))


def test_an_object_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        np.save(tmp_path / "0.npy", np.array([{}]), allow_pickle=False)


def test_candidate_and_target_round_trip():
    candidate = Candidate("b", "v", Precision.FP16, {"threads": 2, "graph": True})
    assert wire.decode_candidate(wire.encode_candidate(candidate)) == candidate
    target = Target("cuda:0", Profile({"batch": DimRange(1, 8, 32)}), threads=3)
    assert wire.decode_target(wire.encode_target(target)) == target
