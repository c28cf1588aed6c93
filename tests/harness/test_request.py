"""What no race could mean is refused before anything runs."""

import math

import pytest

from peregrine.errors import OptionError
from peregrine.harness.request import Request


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batches": ()}, "no batch"),
        ({"batches": (0,)}, "batch of 0"),
        ({"threads": -1}, "-1 threads"),
        ({"final_rounds": 2}, "3 final rounds"),
        ({"calibration": ("random", "photos")}, "beside real data"),
        ({"labels": "labels.txt"}, "no photos"),
        ({"labels": "labels.txt", "calibration": ("random",)}, "no photos"),
        ({"max_drop": -0.1}, "-0.1"),
        ({"max_drop": math.nan}, "nan"),
        ({"max_drop": math.inf}, "inf"),
        ({"repair_s": -1.0}, "-1 s"),
        ({"repair_s": math.nan}, "nan s"),
        ({"metric": "mine"}, "'mine'"),
        ({"metric": ":score"}, "':score'"),
        ({"metric": "mine:"}, "'mine:'"),
        ({"metric": "mine:2nd"}, "'mine:2nd'"),
    ],
)
def test_contradictions_are_refused_with_a_fix(fields, said):
    with pytest.raises(OptionError, match=said) as caught:
        Request("m", **fields)
    assert caught.value.fix


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": "labels.txt", "images": "photos"},
        {"labels": "labels.txt", "calibration": ("photos",)},
        {"calibration": ("random",)},
        {"max_drop": 0.0},
        {"repair_s": 0.0},
        {"metric": "my.package:score"},
    ],
)
def test_what_makes_sense_is_taken(fields):
    assert Request("m", **fields)
