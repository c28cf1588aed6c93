"""peregrine.PointwisePair: which pairs of convolutions it takes."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from compiler.fused_reference import run
from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.fuse_pointwise_pair import FusePointwisePair
from peregrine.compiler.passes.rewriting import SOURCES, problems


class FuseSmallPair(FusePointwisePair):
    """Of as few pixels as there are in these tests."""

    fewest = 2 * 5 * 7


FIRST = "c = Conv(x, w1, b1)\ns = Add(c, z)\nr = Relu(s)\n"


def network(body, seed, *, outputs=("y",), dtype=np.float16, channels=4, **others):
    """Convolutions of `channels` to 6 to 5 channels, and what a test adds to them."""
    make = Arrays(seed, dtype)
    feeds = {"x": make.image(2, channels, 5, 7), "z": make.image(2, 6, 5, 7)}
    constants = {
        "w1": make(6, channels, 1, 1),
        "b1": make(6),
        "w2": make(5, 6, 1, 1),
        "b2": make(5),
    }
    constants |= {name: make(*shape) for name, shape in others.items()}
    feeds = {
        name: array for name, array in feeds.items() if f"{name}," in body or f"{name})" in body
    }
    model = graph(body, feeds, constants, outputs=outputs)
    return ir.passes.functionalize(FuseConv())(model).model, feeds


def test_across_the_border_of_two_residual_blocks():
    """The reader of the residual comes last."""
    body = FIRST + (
        "d = Conv(r, w2, b2)\ne = Sigmoid(d)\n"
        "f = Conv<pads=[1,1,1,1]>(e, w3)\ng = Add(f, r)\ny = Relu(g)"
    )
    model, feeds = network(body, 1, w3=(6, 5, 3, 3))
    prove(FuseSmallPair(), model, feeds)
    assert operators(model) == ["PointwisePair", "Conv"]
    pair = the(model, "PointwisePair")
    assert [value.name for value in pair.inputs] == ["x", "w1", "b1", "z", "w2", "b2"]
    assert [value.name for value in pair.outputs] == ["r", "e"]
    found = attributes(model, "PointwisePair")
    assert (found["activation"], found["second_activation"]) == ("relu", "sigmoid")
    assert json.loads(pair.metadata_props[SOURCES]) == ["c", "s", "r", "d", "e"]


def test_the_other_reader_may_stand_before_the_second_convolution():
    """A downsampling convolution, as the first of ResNet's stages has."""
    body = FIRST + "t = Conv<strides=[2,2]>(r, w2)\nd = Conv(r, w2, b2)\ny = Relu(d)"
    model, feeds = network(body, 2, outputs=("t", "y"))
    prove(FuseSmallPair(), model, feeds)
    assert operators(model) == ["PointwisePair", "Conv"]


def test_with_nothing_but_weights_and_an_output_of_the_graph_between_them():
    model, feeds = network("c = Conv(x, w1)\ny = Conv(c, w2)", 3, outputs=("c", "y"))
    prove(FuseSmallPair(), model, feeds)
    pair = the(model, "PointwisePair")
    assert [v and v.name for v in pair.inputs] == ["x", "w1", None, None, "w2"]
    assert [value.name for value in model.graph.outputs] == ["c", "y"]
    assert attributes(model, "PointwisePair") == {}


def test_of_three_in_a_row_the_last_two():
    body = "a = Conv(x, w)\nc = Conv(a, w1)\nd = Conv(c, w2)\ny = Add(a, a)"
    model, feeds = network(body, 4, outputs=("y", "c", "d"), w=(4, 4, 1, 1))
    prove(FuseSmallPair(), model, feeds)
    assert operators(model) == ["Conv", "PointwisePair", "Add"]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"outputs": ("y",)}),  # c need not be written
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"dtype": np.float32}),
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"channels": 8}),  # wider before than between
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"w2": (257, 6, 1, 1)}),
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"w1": (300, 257, 1, 1), "w2": (5, 300, 1, 1),
         "channels": 257}),
        ("c = Conv<pads=[1,1,1,1]>(x, w1)\ny = Conv(c, w2)", {}),
        ("c = Conv<strides=[2,2]>(x, w1)\ny = Conv(c, w2)", {}),
        ("c = Conv<group=2>(x, w1)\ny = Conv(c, w2)", {"w1": (6, 2, 1, 1)}),
        ("c = Conv(x, w1)\ny = Conv<strides=[1,2]>(c, w2)", {}),
        ("c = Conv(x, w1)\ny = Conv(c, w2)", {"w2": (5, 6, 3, 1)}),
        ("c = Conv(x, w1)\ny = Conv<group=2>(c, w2)", {"w2": (4, 3, 1, 1)}),
        ("c = Conv(x, w1)\ne = Exp(c)\ny = Conv(e, w2)", {}),
        ("c = Conv(x, w1)\nd = Conv(c, w2)\ny = Conv(c, w3)", {"w3": (3, 6, 1, 1),
         "outputs": ("c", "d", "y")}),  # two could be the second
        ("c = Conv(x, w1)\nd = Conv(c, w3)\ny = Add(d, c)", {"w3": (6, 6, 1, 1)}),
    ],
)  # fmt: skip
def test_what_is_no_such_pair_stays(body, options):
    model, _ = network(body, 5, **{"outputs": ("c", "y"), **options})
    untouched(FuseSmallPair(), model)


def test_few_pixels_stay():
    """2 images of 5 by 7."""
    model, _ = network("c = Conv(x, w1)\ny = Conv(c, w2)", 7, outputs=("c", "y"))
    untouched(FusePointwisePair(), model)


def test_a_pair_has_two_outputs():
    model, feeds = network("c = Conv(x, w1)\ny = Conv(c, w2)", 6, outputs=("c", "y"))
    FuseSmallPair()(model)
    assert not list(problems(model.graph))
    assert [output.shape for output in run(model, feeds)] == [(2, 6, 5, 7), (2, 5, 5, 7)]
    pair = the(model, "PointwisePair")
    model.graph.outputs.pop()
    pair.resize_outputs(1)
    assert any("1 outputs" in problem for problem in problems(model.graph))
