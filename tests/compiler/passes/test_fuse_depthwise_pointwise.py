"""peregrine.DepthwisePointwise: which pairs of convolutions it takes."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.fuse_depthwise_pointwise import FuseDepthwisePointwise
from peregrine.compiler.passes.rewriting import SOURCES

DEPTHWISE = "d = Conv<group=6, pads=[1,0,1,2], strides=[2,1], dilations=[1,2]>(x, wd, bd)\n"


def network(body: str, seed: int, outputs=("y",), residual=False, **others):
    make = Arrays(seed)
    feeds = {"x": make.image(2, 6, 9, 7)}
    if residual:
        feeds["z"] = make.image(2, 4, 5, 5)
    constants = {"wd": make(6, 1, 3, 3), "bd": make(6), "wp": make(4, 6, 1, 1), "bp": make(4)}
    constants |= {name: make(*shape) for name, shape in others.items()}
    model = graph(body, feeds, constants, outputs=outputs)
    return ir.passes.functionalize(FuseConv())(model).model, feeds


def test_a_pair_with_all_that_it_may_have():
    body = DEPTHWISE + "r = HardSwish(d)\np = Conv(r, wp, bp)\ns = Add(p, z)\ny = Relu(s)"
    model, feeds = network(body, 1, residual=True)
    prove(FuseDepthwisePointwise(), model, feeds)
    assert operators(model) == ["DepthwisePointwise"]
    node = the(model, "DepthwisePointwise")
    assert [value.name for value in node.inputs] == ["x", "wd", "bd", "wp", "bp", "z"]
    found = attributes(model, "DepthwisePointwise")
    assert found.pop("inner_activation") == "hard_swish"
    assert found.pop("activation") == "relu"
    assert {name: value for name, value in found.items() if "activation" not in name} == {
        "kernel_shape": (3, 3),
        "strides": (2, 1),
        "pads": (1, 0, 1, 2),
        "dilations": (1, 2),
    }
    assert json.loads(node.metadata_props[SOURCES]) == ["d", "r", "p", "s", "y"]


def test_a_pair_with_nothing_but_weights():
    model, feeds = network("d = Conv<group=6>(x, wd)\ny = Conv(d, wp)", 2)
    prove(FuseDepthwisePointwise(), model, feeds)
    names = [v and v.name for v in the(model, "DepthwisePointwise").inputs]
    assert names == ["x", "wd", None, "wp"]


@pytest.mark.parametrize(
    ("body", "others"),
    [
        ("d = Conv<group=6>(x, wd)\ny = Conv<pads=[1,1,1,1]>(d, wp)", {}),
        ("d = Conv<group=6>(x, wd)\ny = Conv<strides=[2,2]>(d, wp)", {}),
        ("d = Conv<group=6>(x, wd)\ny = Conv<group=2>(d, w)", {"w": (4, 3, 1, 1)}),
        ("d = Conv<group=6>(x, wd)\ny = Conv(d, w)", {"w": (4, 6, 3, 1)}),
        ("d = Conv<group=6>(x, w)\ny = Conv(d, v)", {"w": (12, 1, 3, 3), "v": (4, 12, 1, 1)}),
        ("d = Conv<group=3>(x, w)\ny = Conv(d, wp)", {"w": (6, 2, 3, 3)}),
        ("d = Conv(x, w)\ny = Conv(d, wp)", {"w": (6, 6, 3, 3)}),
        ("d = Conv<group=6>(x, wd)\nr = Exp(d)\ny = Conv(r, wp)", {}),
        ("d = Conv<group=6>(x, wd)\np = Conv(d, w)\ny = Mul(p, d)", {"w": (6, 6, 1, 1)}),
        ("d = Conv<group=6>(x, wd)\np = Conv(d, w)\ny = Add(p, d)", {"w": (6, 6, 1, 1)}),
        ("d = Conv<group=6>(x, wd)\np = Conv(x, w)\ny = Add(p, d)", {"w": (6, 6, 3, 3)}),
    ],
)
def test_what_is_no_such_pair_stays(body, others):
    model, _ = network(body, 3, **others)
    untouched(FuseDepthwisePointwise(), model)


def test_an_output_of_the_graph_between_them_stays():
    model, _ = network("d = Conv<group=6>(x, wd)\ny = Conv(d, wp)", 4, outputs=("y", "d"))
    untouched(FuseDepthwisePointwise(), model)


def test_a_depthwise_convolution_with_a_residual_stays():
    """The operator has no place for it."""
    body = "a = Neg(x)\nd = Conv<group=6, pads=[1,1,1,1]>(x, wd)\ns = Add(d, a)\ny = Conv(s, wp)"
    model, _ = network(body, 5)
    assert operators(model) == ["Neg", "Conv", "Conv"]
    untouched(FuseDepthwisePointwise(), model)
