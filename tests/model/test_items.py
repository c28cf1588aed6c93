"""A user's inputs as items, one inference each."""

import itertools

import numpy as np
import pytest
from PIL import Image

from peregrine.errors import FeedError, OptionError
from peregrine.model.items import GIVEN_AT_MOST, digest, random_items, read_items, rows
from peregrine.model.model import Model
from peregrine.types import TensorSpec


def model(tmp_path, *shapes, batch="batch", **fields):
    specs = tuple(TensorSpec(f"x{n}", "float32", shape) for n, shape in enumerate(shapes))
    out = TensorSpec("y", "float32", (batch or 1, 2))
    return Model("m", tmp_path, specs, (out,), batch, **fields)


@pytest.fixture
def net(tmp_path):
    return model(tmp_path, ("batch", 3))


def values(found):
    return [item.read()["x0"].tolist() for item in found.items]


def numbers(count, start=0):
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def test_rows_of_a_file_are_items(tmp_path, net):
    np.savez(tmp_path / "a.npz", x0=numbers(2))
    found = read_items([str(tmp_path / "a.npz")], net)
    assert values(found) == [[[0, 1, 2]], [[3, 4, 5]]]
    assert [item.name for item in found.items] == ["a.npz[0]", "a.npz[1]"]
    assert (found.words, found.photos) == ("items of a.npz", False)


def test_a_directory_of_single_items_is_read_by_name(tmp_path, net):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "b.npy", numbers(1, 6))
    np.savez(data / "a.npz", x0=numbers(1)[0])  # without a batch axis
    (data / "notes.md").touch()
    found = read_items([str(data)], net)
    assert values(found) == [[[0, 1, 2]], [[6, 7, 8]]]
    assert [item.name for item in found.items] == ["a.npz", "b.npy"]
    assert found.words == "items in data/"


def test_several_are_joined_and_counted(tmp_path, net):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", numbers(2))
    found = read_items([str(tmp_path / "a.npy"), str(tmp_path / "b.npy")], net)
    assert len(found.items) == 4
    assert found.words == "items (2 items of a.npy, 2 items of b.npy)"


def test_a_fixed_batch_of_one_takes_rows_too(tmp_path):
    fixed = model(tmp_path, (1, 3), batch="")
    assert [r["x0"].tolist() for r in rows(fixed, {"x0": numbers(2)}, "f")] == [
        [[0, 1, 2]],
        [[3, 4, 5]],
    ]
    with pytest.raises(FeedError, match="f, row 1"):
        rows(fixed, {"x0": np.ones((2, 4), np.float32)}, "f")


def test_arrays_that_do_not_batch_together_are_one_item(tmp_path):
    recurrent = model(tmp_path, ("batch", 3), (2, "batch", 4))
    feeds = {"x0": numbers(5), "x1": np.zeros((2, 5, 4), np.float32)}
    (item,) = rows(recurrent, feeds, "f")
    assert {k: v.shape for k, v in item.items()} == {"x0": (5, 3), "x1": (2, 5, 4)}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x0": np.ones((2, 4), np.float32)}, "shape"),
        ({"x0": np.ones((2, 3))}, "float64"),
        ({"x0": np.full((2, 3), np.nan, np.float32)}, "NaN"),
        ({"x0": np.ones((0, 3), np.float32)}, "size zero"),
        ({"x0": np.float32(1)}, "rank differs"),
        ({"y": np.ones((2, 3), np.float32)}, "no input 'y'"),
        ({}, "missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(net, arrays, said):
    with pytest.raises(FeedError, match=said) as caught:
        rows(net, arrays, "some.npz")
    assert "some.npz" in caught.value.what


def test_a_program_hands_over_what_it_has(net):
    for given in (
        [{"x0": numbers(2)}, {"x0": numbers(1)}],
        iter([numbers(2), numbers(1)[0]]),
        (numbers(count) for count in (2, 1)),
        ((numbers(2),), [numbers(1)]),
    ):
        found = read_items([], net, given=given)
        assert values(found) == [[[0, 1, 2]], [[3, 4, 5]], [[0, 1, 2]]]
        assert found.words == "given items"


def test_what_a_program_hands_over_may_have_no_end(net):
    found = read_items([], net, given=(numbers(1, n) for n in itertools.count()))
    assert len(found.items) == GIVEN_AT_MOST
    assert str(GIVEN_AT_MOST) in found.words
    exactly = read_items([], net, given=[numbers(1)] * GIVEN_AT_MOST)
    assert exactly.words == "given items"


def test_a_program_that_hands_over_nothing_or_nonsense(net):
    with pytest.raises(FeedError, match="no inputs to calibrate"):
        read_items([], net, given=iter(()))
    with pytest.raises(FeedError, match=r"feed 2: 2 arrays for 1 inputs"):
        read_items([], net, given=[numbers(1), (numbers(1), numbers(1))])


def test_paths_that_hold_no_data(tmp_path, net):
    with pytest.raises(OptionError, match="no calibration data") as caught:
        read_items([str(tmp_path / "none")], net)
    assert "--calibration random" in caught.value.fix
    (tmp_path / "a.csv").touch()
    with pytest.raises(OptionError, match=r"a\.csv is no calibration data"):
        read_items([str(tmp_path / "a.csv")], net)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(["a.png", "b.png", "c.png"]):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def vision(tmp_path):
    said = {"size": 4, "resize": "short side 4, nearest", "scale": "0..255"}
    return model(tmp_path, ("batch", 3, 4, 4), preprocessing=said)


def test_photos_are_decoded_when_they_are_read(photos, vision):
    (photos / "b.png").write_bytes(b"half")
    found = read_items([str(photos)], vision)
    assert (found.words, found.photos) == ("photos in photos/", True)
    assert [item.name for item in found.items] == ["a.png", "b.png", "c.png"]
    assert found.items[2].read()["x0"].shape == (1, 3, 4, 4)
    assert found.items[2].read()["x0"][0, 0, 0, 0] == 2
    with pytest.raises(FeedError, match=r"b\.png"):
        found.items[1].read()


def test_the_same_preprocessing_is_said_for_all(photos, vision):
    found = read_items([str(photos)], vision, {**vision.preprocessing, "channels": "BGR"})
    assert found.items[2].read()["x0"][0, :, 0, 0].tolist() == [0, 0, 2]


def test_labels_from_a_file_anywhere(tmp_path, photos, vision):
    labels = tmp_path / "val.txt"
    labels.write_text("z.png 9\nc.png 2\na.png 0\n")
    found = read_items([str(photos)], vision, labels=labels)
    assert [(item.name, item.label) for item in found.items] == [("c.png", 2), ("a.png", 0)]


def test_photos_and_arrays_in_one_directory_are_refused(photos, vision):
    np.save(photos / "a.npy", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(OptionError, match="photos and arrays"):
        read_items([str(photos)], vision)


def test_equal_bytes_have_equal_digests_and_others_do_not():
    base = {"x": np.zeros((1, 2), np.float32)}
    assert digest(base) == digest({"x": np.zeros((1, 2), np.float32)})
    for other in (
        {"x": np.ones((1, 2), np.float32)},
        {"x": np.zeros((2, 1), np.float32)},
        {"x": np.zeros((1, 2), np.int32)},
        {"y": base["x"]},
    ):
        assert digest(other) != digest(base)


def test_random_items_are_the_seeds(net):
    one, same, other = (random_items(net, seed) for seed in (5, 5, 50))
    assert len({digest(item) for item in one}) == 32
    assert [*map(digest, one)] == [*map(digest, same)]
    assert not {*map(digest, one)} & {*map(digest, other)}
