"""What passes require of a graph and ensure."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, graph, untouched
from peregrine.compiler.operators import DOMAIN, Fused
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.rewriting import GraphPass, Weights, problems

BODY = "c = Conv(x, w)\ny = Relu(c)"


def network() -> ir.Model:
    make = Arrays(1)
    return graph(BODY, {"x": make.image(1, 2, 4, 4)}, {"w": make(3, 2, 3, 3)})


class Breaks(GraphPass):
    """Does what it is told."""

    def __init__(self, damage):
        self.damage = damage

    def call(self, model):
        self.damage(model.graph)
        return ir.passes.PassResult(model, True)


def reorder(graph: ir.Graph) -> None:
    relu = graph[1]
    graph.remove(relu)
    graph.insert_before(graph[0], relu)


def rename(graph: ir.Graph) -> None:
    graph.outputs[0].name = "other"


def retype(graph: ir.Graph) -> None:
    graph.outputs[0].dtype = ir.DataType.FLOAT16


def misname(graph: ir.Graph) -> None:
    graph[0].domain = DOMAIN
    graph[0].op_type = "Convolution"


def overfill(graph: ir.Graph) -> None:
    graph[1].domain = DOMAIN
    graph[1].op_type = Fused.CONV.op_type


def untype(graph: ir.Graph) -> None:
    graph[0].domain = DOMAIN
    graph[0].outputs[0].type = None


@pytest.mark.parametrize("damage", [reorder, rename, retype, misname, overfill, untype])
def test_a_pass_that_breaks_a_graph_is_caught(damage):
    with pytest.raises(ir.passes.PostconditionError):
        Breaks(damage)(network())


@pytest.mark.parametrize("damage", [reorder, misname, overfill, untype])
def test_a_broken_graph_is_refused(damage):
    model = network()
    damage(model.graph)
    with pytest.raises(ir.passes.PreconditionError):
        FuseConv()(model)


def test_problems_in_the_bodies_of_control_flow_are_found():
    branches = "then_branch=t () => (float[4] p) {a = Neg(x) p = Exp(a)}, "
    branches += "else_branch=e () => (float[4] q) {q = Neg(x)}"
    feeds = {"x": np.ones(4, np.float32), "yes": np.array(True)}
    model = graph(f"y = If<{branches}>(yes)", feeds)
    assert not list(problems(model.graph))
    reorder(model.graph[0].attributes["then_branch"].as_graph())
    (problem,) = problems(model.graph)
    assert "before it is made" in problem


def test_a_pass_that_finds_nothing_says_so():
    untouched(FuseConv(), graph("y = Relu(x)", {"x": np.ones(4, np.float32)}))


def test_new_weights_take_no_name_that_is_there():
    model = network()
    weights = Weights(model)
    names = [weights.add(np.ones(3), name, ir.DataType.FLOAT16).name for name in ("w", "c", "w")]
    assert len({*names, "w", "c", "x", "y"}) == 7
    assert set(names) <= set(model.graph.initializers)
    value = model.graph.initializers[names[0]]
    assert value.dtype is ir.DataType.FLOAT16
    assert value.shape == (3,)
