import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peregrine.errors import FeedError, OptionError
from peregrine.model.inputs import InputSpec, parse_input, random_feeds, read_feeds
from peregrine.model.model import Model
from peregrine.types import TensorSpec


@pytest.fixture
def model(tmp_path):
    return Model(
        name="m",
        directory=tmp_path,
        inputs=(
            TensorSpec("x", "float32", ("batch", 3, "width")),
            TensorSpec("ids", "int64", ("batch", 5)),
            TensorSpec("mask", "bool", ("batch",)),
            TensorSpec("rate", "int64", ()),
            TensorSpec("byte", "uint8", ("batch", 400)),
        ),
        outputs=(TensorSpec("y", "float32", ("batch",)),),
        batch="batch",
        dims={"width": 7},
        ranges={"ids": (10, 20), "rate": (16000, 16000)},
    )


@pytest.fixture
def image_model(tmp_path):
    spec = TensorSpec("x", "float32", ("batch", 3))
    return Model("m", tmp_path, (spec,), (TensorSpec("y", "float32", ("batch",)),), "batch")


def test_reads_the_usual_spelling():
    assert parse_input("x:float32:Bx3x224x224") == InputSpec(
        TensorSpec("x", "float32", ("batch", 3, 224, 224))
    )


@pytest.mark.parametrize(
    ("text", "shape", "bounds"),
    [
        ("ids:int64:Bx128=0..30522", ("batch", 128), (0, 30522)),
        ("sr:int64:scalar=16000", (), (16000, 16000)),
        ("x:float32:batchx3xheightxwidth", ("batch", 3, "height", "width"), None),
        ("x:float32:N,maxlen", ("batch", "maxlen"), None),
        ("input:0:float32:Bx8", ("batch", 8), None),
        ("x:float32:4=-1.5..1.5", (4,), (-1.5, 1.5)),
    ],
)
def test_reads_ranges_symbols_and_colons(text, shape, bounds):
    found = parse_input(text)
    assert (found.spec.shape, found.range) == (shape, bounds)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "name:dtype:shape"),
        ("x:float32", "name:dtype:shape"),
        (":float32:3", "name:dtype:shape"),
        ("x:flaot32:3", "float32"),
        ("x:complex64:3", "Use one of"),
        ("x:float32:Bx0", "'0'"),
        ("x:float32:Bx-3", "'-3'"),
        ("x:float32:", "shape"),
        ("x:int64:B=5..2", "values"),
        ("x:int64:B=a..b", "values"),
        ("x:int64:B=0..inf", "values"),
    ],
)
def test_says_what_does_not_parse(text, said):
    with pytest.raises(OptionError) as caught:
        parse_input(text)
    assert said in str(caught.value)


_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_DIMS = st.one_of(st.integers(1, 999), _NAMES.filter(lambda n: "x" not in n and n not in "bn"))


@given(
    name=_NAMES,
    dims=st.lists(_DIMS, max_size=5),
    bounds=st.none() | st.tuples(st.integers(-99, 99), st.integers(100, 999)),
)
def test_prints_what_it_reads(name, dims, bounds):
    spec = InputSpec(TensorSpec(name, "int32", tuple(dims)), bounds)
    assert parse_input(str(spec)) == spec


def test_random_feeds_are_shaped_typed_and_bounded(model):
    feeds = random_feeds(model, 4, seed=1)
    assert {k: (v.shape, v.dtype.name) for k, v in feeds.items()} == {
        "x": ((4, 3, 7), "float32"),
        "ids": ((4, 5), "int64"),
        "mask": ((4,), "bool"),
        "rate": ((), "int64"),
        "byte": ((4, 400), "uint8"),
    }
    assert feeds["x"].min() >= 0
    assert feeds["x"].max() < 1
    assert feeds["ids"].min() >= 10
    assert feeds["ids"].max() < 20
    assert feeds["rate"] == 16000
    assert feeds["byte"].min() < 20
    assert feeds["byte"].max() > 235


def test_random_feeds_depend_on_the_seed_alone(model):
    one, same, other = (random_feeds(model, 2, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(one[k], same[k]) for k in one)
    assert not np.array_equal(one["x"], other["x"])


def test_batch_zero_is_refused(model):
    with pytest.raises(OptionError, match="smallest batch is 1"):
        random_feeds(model, 0, seed=0)


def test_a_fixed_batch_takes_no_other(tmp_path):
    spec = TensorSpec("x", "float32", (1, 3))
    fixed = Model("m", tmp_path, (spec,), (spec,))
    assert random_feeds(fixed, 1, seed=0)["x"].shape == (1, 3)
    with pytest.raises(OptionError, match="fixes its batch"):
        random_feeds(fixed, 2, seed=0)


def test_reads_npy_and_npz(tmp_path, image_model):
    value = np.ones((2, 3), np.float32)
    np.save(tmp_path / "a.npy", value)
    np.savez(tmp_path / "b.npz", x=2 * value)
    one, two = read_feeds([tmp_path / "a.npy", str(tmp_path / "b.npz")], image_model)
    assert one["x"].sum() == 6
    assert two["x"].sum() == 12


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "no input 'y'"),
        ({"x": np.ones((2, 4), np.float32)}, r"shape \(2, 4\)"),
        ({"x": np.ones(3, np.float32)}, "rank differs"),
        ({"x": np.ones((2, 3))}, "dtype float64"),
        ({"x": np.ones((0, 3), np.float32)}, "size zero"),
        ({"x": np.float32([[1, np.nan, 2], [np.inf, 0, 0]])}, r"2 NaN or infinite of 6"),
        ({}, "'x' is missing"),
    ],
)
def test_refuses_arrays_that_do_not_fit(tmp_path, image_model, arrays, said):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(FeedError, match=said) as caught:
        read_feeds([tmp_path / "f.npz"], image_model)
    assert "f.npz" in caught.value.what
    if "NaN" in said:
        assert "index [0, 1]" in str(caught.value)


def test_refuses_other_sizes_than_the_race_was_set_up_for(tmp_path, model):
    feeds = random_feeds(model, 2, seed=0) | {"x": np.zeros((2, 3, 9), np.float32)}
    np.savez(tmp_path / "f.npz", **feeds)
    with pytest.raises(FeedError, match="--dim width=9"):
        read_feeds([tmp_path / "f.npz"], model)


def test_refuses_files_that_are_no_arrays(tmp_path, image_model):
    (tmp_path / "bad.npy").write_bytes(b"\x00random\xff" * 9)
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.ones((2, 3), np.float32))
    cut = tmp_path / "cut.npy"
    cut.write_bytes((tmp_path / "whole.npy").read_bytes()[:-5])
    for name in ("bad.npy", "pickle.npy", "cut.npy"):
        with pytest.raises(FeedError, match="cannot be read"):
            read_feeds([tmp_path / name], image_model)
    with pytest.raises(FeedError, match="no file"):
        read_feeds([tmp_path / "none.npy"], image_model)


def test_one_array_cannot_feed_several_inputs(tmp_path, model):
    np.save(tmp_path / "a.npy", np.ones((2, 3, 7), np.float32))
    with pytest.raises(FeedError, match="takes 5 inputs"):
        read_feeds([tmp_path / "a.npy"], model)
