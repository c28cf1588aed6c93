"""What calibrates never judges, by content."""

import numpy as np
import pytest

from peregrine.errors import OptionError
from peregrine.harness.division import MOST, apart, share, split
from peregrine.model.items import Item, Items, digest


def items(values):
    return Items(
        tuple(
            Item(f"{n}.npz", {"x": np.full((1, 2), value, np.float32)}.copy)
            for n, value in enumerate(values)
        ),
        "items in data/",
    )


def digests(loaded):
    return {digest(item.arrays) for item in loaded}


@pytest.mark.parametrize(
    ("count", "calibrate"),
    [(2, 1), (7, 1), (8, 2), (15, 3), (16, 8), (31, 8), (40, 10), (160, 40), (5000, 300)],
)
def test_a_quarter_calibrates_and_at_least_8_and_at_most_300(count, calibrate):
    assert share(count) == calibrate


@pytest.mark.parametrize("count", [2, 3, 16, 50])
def test_a_split_is_whole_and_disjoint(count):
    found = split(items(range(count)), seed=3)
    names = [item.name for item in (*found.calibrating, *found.judging)]
    assert sorted(names) == sorted(f"{n}.npz" for n in range(count))
    assert not digests(found.calibrating) & digests(found.judging)
    assert found.words == f"{share(count)} of {count} items in data/"
    assert found.split == (
        f"{found.words} calibrate, the other {count - share(count)} judge (split by seed 3)"
    )


def test_a_split_is_the_seeds():
    names = [
        [item.name for item in split(items(range(40)), seed).calibrating] for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2]


def test_doubles_are_in_one_part_only():
    found = split(items([1, 2, 1, 3, 3, 3]), seed=0)
    assert len(found.calibrating) + len(found.judging) == 3
    assert not digests(found.calibrating) & digests(found.judging)
    assert "; 3 doubles were left out" in found.split
    assert "; 1 double was left out" in split(items([1, 2, 1]), seed=0).split


@pytest.mark.parametrize("values", [[1], [1, 1, 1]])
def test_one_item_cannot_be_split(values):
    with pytest.raises(OptionError, match="cannot both calibrate and judge") as caught:
        split(items(values), seed=0)
    assert "--images" in caught.value.fix


def test_what_also_judges_does_not_calibrate():
    judged = {digest(item.read()) for item in items([2, 4]).items}
    found = apart(items([1, 2, 3, 4, 5]), judged, seed=0)
    assert [item.name for item in found.calibrating] == ["0.npz", "2.npz", "4.npz"]
    assert found.judging == ()
    assert found.words == "3 of 5 items in data/"
    assert found.split == (
        "3 of 5 items in data/ calibrate; 2 that also judge were left out; other data judges"
    )


def test_all_of_a_set_calibrates_where_other_data_judges():
    found = apart(items([1, 2]), set(), seed=0)
    assert (found.words, len(found.calibrating)) == ("2 items in data/", 2)


def test_nothing_left_to_calibrate_is_refused():
    both = items([1, 2])
    judged = {digest(item.read()) for item in both.items}
    with pytest.raises(OptionError, match="nothing is left") as caught:
        apart(both, judged, seed=0)
    assert "split in two" in caught.value.fix


def test_of_a_large_set_300_are_chosen_by_the_seed_and_no_more_are_read():
    read = []

    def large():
        def item(n):
            return Item(str(n), lambda: read.append(n) or {"x": np.array([n])})

        return Items(tuple(item(n) for n in range(1000)), "photos in p/")

    first, again, other = (apart(large(), set(), seed) for seed in (0, 0, 1))
    names = [[item.name for item in found.calibrating] for found in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == MOST
    assert len(read) == 3 * MOST
    assert first.split == "300 of 1000 photos in p/ calibrate (chosen by seed 0); other data judges"
