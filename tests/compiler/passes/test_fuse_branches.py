"""peregrine.ConvBranches: fire modules, and what only looks like one."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_branches import FuseBranches
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.rewriting import SOURCES

FIRE = (
    "a = Conv(x, w1, b1)\np = Relu(a)\n"
    "c = Conv<pads=[1,1,1,1]>(x, w2, b2)\nq = Relu(c)\n"
    "y = Concat<axis=1>(p, q)"
)


def network(body: str, seed: int, outputs=("y",)):
    make = Arrays(seed)
    feeds = {"x": make.image(2, 3, 9, 7), "u": make.image(2, 3, 9, 7)}
    constants = {"w1": make(4, 3, 1, 1), "b1": make(4), "w2": make(6, 3, 3, 3), "b2": make(6)}
    constants |= {"wg": make(6, 1, 3, 3)}
    model = graph(body, feeds, constants, outputs=outputs)
    return ir.passes.functionalize(FuseConv())(model).model, feeds


@pytest.mark.parametrize("axis", [1, -3])
def test_a_fire_module(axis):
    model, feeds = network(FIRE.replace("axis=1", f"axis={axis}"), 1)
    prove(FuseBranches(), model, feeds)
    assert operators(model) == ["ConvBranches"]
    node = the(model, "ConvBranches")
    assert [value.name for value in node.inputs] == ["x", "w1", "b1", "w2", "b2"]
    assert attributes(model, "ConvBranches")["kernel_shape"] == (3, 3)
    assert attributes(model, "ConvBranches")["activation"] == "relu"
    assert json.loads(node.metadata_props[SOURCES]) == ["a", "p", "c", "q", "y"]


def test_strides_and_no_biases():
    body = (
        "a = Conv<strides=[2,3]>(x, w1)\nc = Conv<pads=[1,1,1,1], strides=[2,3]>(x, w2)\n"
        "y = Concat<axis=1>(a, c)"
    )
    model, feeds = network(body, 2)
    prove(FuseBranches(), model, feeds)
    names = [v and v.name for v in the(model, "ConvBranches").inputs]
    assert names == ["x", "w1", None, "w2"]
    assert attributes(model, "ConvBranches")["strides"] == (2, 3)


@pytest.mark.parametrize(
    ("was", "instead"),
    [
        ("(p, q)", "(q, p)"),
        ("(p, q)", "(p, q, x)"),
        ("(p, q)", "(p, p)"),
        ("axis=1>(p, q)", "axis=0>(q, q)"),
        ("q = Relu(c)", "q = Tanh(c)"),
        ("q = Relu(c)", "q = Exp(c)"),
        ("Conv(x, w1, b1)", "Conv(u, w1, b1)"),
        ("w2, b2", "wg, b2"),
        ("y = Concat<axis=1>(p, q)", "t = Concat<axis=1>(p, q)\nm = ReduceMax(p)\ny = Add(t, m)"),
        ("y = Concat<axis=1>(p, q)", "t = Concat<axis=1>(p, q)\nm = ReduceMax(q)\ny = Add(t, m)"),
        ("q = Relu(c)", "s = Add(c, k)\nq = Relu(s)"),
    ],
)
def test_what_is_no_fire_module_stays(was, instead):
    body = FIRE.replace(was, instead)
    if "wg" in body:
        body = body.replace("Conv<pads", "Conv<group=3, pads")
    if ", k)" in body:
        body = "k = Conv<pads=[1,1,1,1]>(u, w2)\n" + body
    model, _ = network(body, 3)
    untouched(FuseBranches(), model)


@pytest.mark.parametrize("output", ["p", "q"])
def test_a_branch_that_is_an_output_of_the_graph_stays(output):
    untouched(FuseBranches(), network(FIRE, 4, outputs=("y", output))[0])


def test_other_axes_stay():
    """Two outputs of one shape, joined over the rows."""
    body = FIRE.replace("w2, b2", "w3, b3").replace("axis=1", "axis=2")
    make = Arrays(5)
    feeds = {"x": make.image(2, 3, 9, 7)}
    constants = {"w1": make(4, 3, 1, 1), "b1": make(4), "w3": make(4, 3, 3, 3), "b3": make(4)}
    model = graph(body, feeds, constants)
    FuseConv()(model)
    untouched(FuseBranches(), model)
