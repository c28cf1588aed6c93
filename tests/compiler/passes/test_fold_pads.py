"""Pads of zeros before a Conv."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fold_pads import FoldPads
from peregrine.compiler.passes.rewriting import SOURCES

HW = np.array([0, 0, 1, 0, 0, 0, 2, 3])


@pytest.mark.parametrize(
    ("pad", "conv", "pads"),
    [
        ("Pad(x, hw)", "Conv(p, w)", (1, 0, 2, 3)),
        ("Pad(x, hw, zero)", "Conv<pads=[1,2,3,4], strides=[2,1]>(p, w)", (2, 2, 5, 7)),
        ("Pad(x, hw)", 'Conv<auto_pad="VALID">(p, w)', (1, 0, 2, 3)),
        ("Pad(x, some, zero, axes)", "Conv(p, w)", (2, 1, 4, 3)),
    ],
)
def test_become_pads_of_the_convolution(pad, conv, pads):
    make = Arrays(1)
    feeds, constants = {"x": make.image(2, 3, 6, 5)}, {"w": make(4, 3, 3, 2), "hw": HW}
    constants |= {"zero": np.zeros((), np.float32), "some": np.array([1, 2, 3, 4])}
    constants |= {"axes": np.array([-1, 2])}
    model = prove(FoldPads(), graph(f"p = {pad}\ny = {conv}", feeds, constants), feeds)
    assert operators(model) == ["Conv"]
    assert attributes(model, "Conv")["pads"] == pads
    assert json.loads(the(model, "Conv").metadata_props[SOURCES]) == ["p", "y"]


def test_in_one_and_three_dimensions():
    make = Arrays(2)
    for spatial in ((6,), (4, 5, 6)):
        rank = len(spatial)
        amounts = np.array([0, 0, *range(1, rank + 1), 0, 0, *range(rank)])
        feeds = {"x": make.image(1, 3, *spatial)}
        constants = {"w": make(4, 3, *[3] * rank), "p": amounts}
        model = graph("c = Pad(x, p)\ny = Conv(c, w)", feeds, constants)
        assert operators(prove(FoldPads(), model, feeds)) == ["Conv"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Pad(x, hw, one)\ny = Conv(p, w)",
        "p = Pad(x, channels)\ny = Conv(p, v)",
        "p = Pad(x, crop)\ny = Conv(p, w)",
        'p = Pad<mode="reflect">(x, hw)\ny = Conv(p, w)',
        'p = Pad(x, hw)\ny = Conv<auto_pad="SAME_UPPER">(p, w)',
        "p = Pad(x, hw)\nc = Conv(p, w)\nm = ReduceMax(p)\ny = Add(c, m)",
        "p = Pad(x, hw)\ny = MaxPool<kernel_shape=[2,2]>(p)",
    ],
)
def test_other_pads_stay(body):
    make = Arrays(3)
    feeds = {"x": make.image(2, 3, 6, 5)}
    constants = {"w": make(4, 3, 3, 2), "v": make(4, 4, 3, 2), "hw": np.array([0, 0, 1, 0] * 2)}
    constants |= {"channels": np.array([0, 1, 1, 0, 0, 0, 0, 0])}
    constants |= {"crop": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "one": np.ones((), np.float32)}
    used = {name: array for name, array in constants.items() if name in body}
    untouched(FoldPads(), graph(body, feeds, used))


def test_amounts_that_are_computed_and_outputs_stay():
    make = Arrays(4)
    feeds, constants = {"x": make.image(2, 3, 6, 5)}, {"w": make(4, 3, 3, 2), "hw": HW}
    body = "p = Pad(x, hw)\ny = Conv(p, w)"
    untouched(FoldPads(), graph(body, feeds, constants, outputs=("y", "p")))
    untouched(FoldPads(), graph(body, feeds | {"hw": HW}, {"w": constants["w"]}))
