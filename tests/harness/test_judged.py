"""What is written for a race: what judges, what calibrates, and that they are apart."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from peregrine.conversion.calibration import Calibration
from peregrine.errors import FeedError, OptionError
from peregrine.harness import wire
from peregrine.harness.judged import IMAGES, write_inputs
from peregrine.harness.request import IN_MEMORY, Request
from peregrine.harness.rundir import RunDirectory
from peregrine.model.items import digest
from peregrine.model.model import Model
from peregrine.types import TensorSpec
from tiny_model import make_tiny

PLAIN = {"size": 4, "resize": "short side 4, nearest", "scale": "0..255"}


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "model")


@pytest.fixture
def photos(tmp_path):
    """Nine photos, the last two of them the same; labelled by number."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (4, 4), (min(number, 7), 9, 9)).save(folder / f"{number}.png")
    lines = "".join(f"{number}.png {number}\n" for number in range(9))
    (tmp_path / "labels.txt").write_text(lines)
    return folder


def vision(tmp_path, first="batch", outputs=None):
    spec = TensorSpec("x", "float32", (first, 3, 4, 4))
    outputs = outputs or (TensorSpec("y", "float32", (first, 9)),)
    batch = first if isinstance(first, str) else ""
    return Model("eyes", tmp_path, (spec,), outputs, batch, preprocessing=PLAIN)


def rows(count, start=0):
    return np.arange(6 * start, 6 * (start + count), dtype=np.float32).reshape(count, 6)


class Wrote:
    """A run directory's inputs, read back from disk."""

    def __init__(self, path, model, given=(), calibrating=None, **asked):
        self.run = RunDirectory.create(path, Request("m", **asked))
        self.again(model, given, calibrating)

    def again(self, model, given=(), calibrating=None):
        self.found = write_inputs(self.run, model, self.run.request, given, calibrating)

    @property
    def calibration(self):
        return Calibration.open(self.run.file("calibration"))

    @property
    def calibrating(self):
        return {digest(item) for item in self.calibration.items()}

    @property
    def judging(self):
        """Digests of all real rows that judge."""
        names = [s.name for s in self.found.sets if s.real] + [IMAGES] * bool(self.found.images)
        stacks = [wire.load_arrays(self.run.file("feeds", name)) for name in names]
        return {
            digest({k: a[row : row + 1] for k, a in arrays.items()})
            for arrays in stacks
            for row in range(len(next(iter(arrays.values()))))
        }


def test_without_calibration_data_none_is_written(tmp_path, tiny):
    wrote = Wrote(tmp_path / "run", tiny, given=[{"x": rows(2)}])
    assert not wrote.run.file("calibration").exists()
    assert (wrote.found.split, wrote.found.calibrating) == ("", ())
    assert [s.real for s in wrote.found.sets] == [False, False, False, True]


def test_one_set_of_arrays_is_split(tmp_path, tiny):
    np.savez(tmp_path / "d.npz", x=rows(40))
    asked = {"calibration": (str(tmp_path / "d.npz"),)}
    wrote = Wrote(tmp_path / "run", tiny, **asked)
    found = wrote.found
    assert (len(found.calibrating), len(found.images), found.kind) == (10, 30, "items")
    assert len(wrote.calibrating | wrote.judging) == 40
    assert not wrote.calibrating & wrote.judging
    assert not set(found.calibrating) & set(found.images)
    assert wrote.calibration.words == "10 of 40 items of d.npz"
    assert found.split.startswith("10 of 40 items of d.npz calibrate, the other 30 judge")
    assert not any(s.real for s in found.sets)
    assert not wrote.calibration.random
    # Names and contents belong together.
    place = int(found.images[3].removeprefix("d.npz[").removesuffix("]"))
    stacked = wire.load_arrays(wrote.run.file("feeds", IMAGES))["x"]
    assert stacked[3].tolist() == rows(40)[place].tolist()

    other = Wrote(tmp_path / "other", tiny, **asked)
    assert other.found == found
    assert other.calibration.sha256 == wrote.calibration.sha256
    third = Wrote(tmp_path / "third", tiny, **asked, seed=1)
    assert third.found.calibrating != found.calibrating


def test_photos_are_split_with_their_labels(tmp_path, photos):
    wrote = Wrote(
        tmp_path / "run",
        vision(tmp_path),
        calibration=(str(photos),),
        labels=str(tmp_path / "labels.txt"),
    )
    found = wrote.found
    # One of the two equal photos is left out.
    assert (len(found.calibrating), len(found.images)) == (2, 6)
    assert "1 double was left out" in found.split
    assert [f"{label}.png" for label in found.labels] == [*found.images]
    assert found.kind == "images"
    assert not wrote.calibrating & wrote.judging


def test_photos_that_judge_do_not_calibrate(tmp_path, photos):
    judging = tmp_path / "judging"
    judging.mkdir()
    for number in (1, 7):
        # Other names and other bytes of the file, the same pixels.
        pixels = Image.open(photos / f"{number}.png")
        pixels.save(judging / f"renamed-{number}.bmp")
    wrote = Wrote(
        tmp_path / "run", vision(tmp_path), images=str(judging), calibration=(str(photos),)
    )
    assert wrote.found.images == ("renamed-1.bmp", "renamed-7.bmp")
    assert not wrote.calibrating & wrote.judging
    assert wrote.calibration.words == "6 of 9 photos in photos/"
    assert "3 that also judge were left out" in wrote.found.split

    with pytest.raises(OptionError, match="nothing is left"):
        Wrote(tmp_path / "b", vision(tmp_path), images=str(photos), calibration=(str(photos),))


def test_labels_are_of_the_photos_that_judge(tmp_path, photos):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(other / "cat.png")
    wrote = Wrote(
        tmp_path / "run",
        vision(tmp_path),
        images=str(photos),
        calibration=(str(other),),
        labels=str(tmp_path / "labels.txt"),
        max_drop=1.0,
    )
    assert wrote.found.labels == tuple(range(9))
    assert wrote.found.calibrating == ("cat.png",)


@pytest.mark.parametrize("by_file", [True, False])
def test_the_users_feeds_judge_beside_what_calibrates(tmp_path, tiny, by_file):
    np.savez(tmp_path / "d.npz", x=rows(5))
    np.savez(tmp_path / "judge.npz", x=rows(2, start=3))
    feeds = {"feeds": (str(tmp_path / "judge.npz"),)} if by_file else {}
    given = [] if by_file else [{"x": rows(2, start=3)}]
    data = (str(tmp_path / "d.npz"),)
    wrote = Wrote(tmp_path / "run", tiny, given, calibration=data, **feeds)
    assert [s.batch for s in wrote.found.sets if s.real] == [2]
    if by_file:
        assert len(wrote.calibration) == 3
        assert wrote.found.images == ()
    else:  # a program's example fixes shapes, and is no reason not to split
        assert len(wrote.calibration) == 1
        assert len(wrote.found.images) == 4


def test_an_iterable_calibrates_and_is_split(tmp_path, tiny):
    wrote = Wrote(
        tmp_path / "run",
        tiny,
        calibrating=(rows(1, start) for start in range(8)),
        calibration=(IN_MEMORY,),
    )
    assert wrote.found.split.startswith("2 of 8 given items calibrate, the other 6 judge")
    with pytest.raises(OptionError, match="is gone"):
        wrote.again(tiny)


def test_random_numbers_are_marked_and_are_not_those_that_judge(tmp_path, tiny):
    wrote = Wrote(tmp_path / "run", tiny, calibration=("random",))
    assert wrote.calibration.random
    assert wrote.calibration.words == "random numbers, asked for by name"
    assert len(wrote.calibrating) == 32
    judged = {digest(wire.load_arrays(s.feeds(wrote.run))) for s in wrote.found.sets}
    assert len(judged) == 3
    assert not judged & wrote.calibrating
    assert "random numbers, asked for by name, calibrate" in wrote.found.split


def test_a_model_that_fixes_its_batch_is_fed_whole_batches(tmp_path, photos):
    fixed = vision(tmp_path, first=2)
    wrote = Wrote(tmp_path / "run", fixed, calibration=(str(photos),), seed=4)
    shapes = [item["x"].shape for item in wrote.calibration.items()]
    assert shapes == [(2, 3, 4, 4)]
    assert len(wrote.judging) == 6
    calibrating = {
        digest({"x": item["x"][row : row + 1]})
        for item in wrote.calibration.items()
        for row in range(2)
    }
    assert len(calibrating) == 2
    assert not calibrating & wrote.judging


def test_the_last_whole_batch_is_filled_up(tmp_path, photos):
    (photos / "judge").mkdir()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(photos / "judge" / "cat.png")
    fixed = vision(tmp_path, first=3)
    wrote = Wrote(tmp_path / "run", fixed, images=str(photos / "judge"), calibration=(str(photos),))
    reds = [item["x"][:, 0, 0, 0].tolist() for item in wrote.calibration.items()]
    assert reds == [[0, 1, 2], [3, 4, 5], [6, 7, 7]]
    (photos / "7.png").unlink()
    wrote.again(fixed)
    (photos / "6.png").unlink()
    wrote.again(fixed)
    reds = [item["x"][:, 0, 0, 0].tolist() for item in wrote.calibration.items()]
    assert reds == [[0, 1, 2], [3, 4, 5], [7, 7, 7]]


def test_photos_whose_outputs_are_no_rows_judge_one_at_a_time(tmp_path, photos):
    boxes = (TensorSpec("boxes", "float32", ("found", 6)),)
    detector = vision(tmp_path, outputs=boxes)
    wrote = Wrote(tmp_path / "run", detector, calibration=(str(photos),))
    real = [s for s in wrote.found.sets if s.real]
    assert (len(real), wrote.found.images) == (6, ())
    assert {s.words for s in real} == {"6 photos in photos/, one at a time"}
    assert real[0].name.startswith("item-0000-")
    assert not wrote.calibrating & wrote.judging
    with pytest.raises(OptionError, match="no row of scores"):
        Wrote(
            tmp_path / "b",
            detector,
            calibration=(str(photos),),
            labels=str(tmp_path / "labels.txt"),
        )


def test_a_recurrent_network_judges_a_file_at_a_time(tmp_path, tiny):
    state = TensorSpec("s", "float32", (2, "batch", 3))
    recurrent = dataclasses.replace(tiny, inputs=(*tiny.inputs, state))
    data = tmp_path / "data"
    data.mkdir()
    for n in range(4):
        np.savez(data / f"{n}.npz", x=rows(2, n * 2), s=np.full((2, 2, 3), n, np.float32))
    wrote = Wrote(tmp_path / "run", recurrent, calibration=(str(data),))
    real = [s for s in wrote.found.sets if s.real]
    assert [s.batch for s in real] == [2, 2, 2]
    assert len(wrote.calibration) == 1


@pytest.mark.parametrize("asked", [{}, {"images": "photos"}])
def test_a_drop_of_nothing_is_refused(tmp_path, photos, asked):
    asked = {name: str(photos) for name in asked}
    with pytest.raises(OptionError, match="nothing to measure a drop by") as caught:
        Wrote(tmp_path / "run", vision(tmp_path), max_drop=0.5, **asked)
    assert "--metric" in caught.value.fix
    assert Wrote(tmp_path / "b", vision(tmp_path), max_drop=0.5, metric="mine:score", **asked)


def test_labels_of_arrays_are_refused(tmp_path, tiny):
    np.savez(tmp_path / "d.npz", x=rows(4))
    (tmp_path / "labels.txt").write_text("d.npz 1\n")
    with pytest.raises(OptionError, match="belong to no photos"):
        Wrote(
            tmp_path / "run",
            tiny,
            calibration=(str(tmp_path / "d.npz"),),
            labels=str(tmp_path / "labels.txt"),
        )


def test_a_set_of_which_a_part_is_labelled_is_refused(tmp_path, photos):
    more = np.random.default_rng(0).random((9, 3, 4, 4), np.float32)
    np.save(tmp_path / "more.npy", more)
    with pytest.raises(OptionError, match="have a label"):
        Wrote(
            tmp_path / "run",
            vision(tmp_path),
            calibration=(str(photos), str(tmp_path / "more.npy")),
            labels=str(tmp_path / "labels.txt"),
        )


def test_data_that_does_not_fit_is_refused_by_name(tmp_path, tiny):
    np.savez(tmp_path / "d.npz", x=rows(4)[:, :5])
    with pytest.raises(FeedError, match=r"d\.npz"):
        Wrote(tmp_path / "run", tiny, calibration=(str(tmp_path / "d.npz"),))


def test_what_an_interrupted_try_left_is_replaced(tmp_path, tiny):
    np.savez(tmp_path / "d.npz", x=rows(8))
    wrote = Wrote(tmp_path / "run", tiny, calibration=(str(tmp_path / "d.npz"),))
    before = wrote.found, wrote.calibration
    (wrote.run.file("calibration") / "calibration.json").unlink()
    (wrote.run.file("feeds") / "stale").mkdir()
    wrote.again(tiny)
    assert (wrote.found, wrote.calibration) == before
    assert not (wrote.run.file("feeds") / "stale").exists()
