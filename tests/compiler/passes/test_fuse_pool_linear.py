"""peregrine.PoolLinear: heads of classifiers, and means that are none."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_linear import FuseLinear
from peregrine.compiler.passes.fuse_pool_linear import FusePoolLinear
from peregrine.compiler.passes.rewriting import SOURCES

CONSTANTS = {
    "hw": np.array([2, 3]),
    "wh": np.array([-1, -2]),
    "hc": np.array([1, 2]),
    "two_five": np.array([2, 5]),
    "zero_rest": np.array([0, -1]),
    "five_two": np.array([5, 2]),
    "one": np.array([1]),
}


def network(body: str, seed: int, outputs=("y",), opset: int = 20, shape=(2, 5, 4, 3)):
    make = Arrays(seed)
    feeds = {"x": make.image(*shape)}
    constants = {name: value for name, value in CONSTANTS.items() if name in body}
    constants |= {"w": make(7, 5), "b": make(7), "v": make(7, 2)}
    model = graph(body, feeds, constants, outputs=outputs, opset=opset)
    return ir.passes.functionalize(FuseLinear())(model).model, feeds


GEMM = "c = Gemm<transB=1>(f, w, b)\n"


@pytest.mark.parametrize(
    ("head", "opset"),
    [
        ("g = GlobalAveragePool(x)\nf = Flatten(g)\n", 20),
        ("g = GlobalAveragePool(x)\nf = Reshape(g, two_five)\n", 20),
        ("g = GlobalAveragePool(x)\nf = Reshape(g, zero_rest)\n", 20),
        ("g = GlobalAveragePool(x)\nf = Squeeze(g, hw)\n", 20),
        ("g = GlobalAveragePool(x)\nh = Squeeze(g, wh)\nf = Flatten(h)\n", 20),
        ("f = ReduceMean<keepdims=0>(x, hw)\n", 20),
        ("f = ReduceMean<keepdims=0, axes=[-1,2]>(x)\n", 17),
        ("g = ReduceMean(x, wh)\nf = Flatten<axis=1>(g)\n", 20),
    ],
)
def test_a_head(head, opset):
    model, feeds = network(head + GEMM + "y = Sigmoid(c)", 1, opset=opset)
    prove(FusePoolLinear(), model, feeds)
    assert operators(model) == ["PoolLinear"]
    assert attributes(model, "PoolLinear")["activation"] == "sigmoid"
    names = json.loads(the(model, "PoolLinear").metadata_props[SOURCES])
    assert names == [line.split(" = ")[0] for line in (head + GEMM + "y = ").splitlines()]


@pytest.mark.parametrize(
    "body",
    [
        "f = ReduceMean<keepdims=0>(x, hc)\ny = Gemm<transB=1>(f, u)",
        "g = GlobalAveragePool(x)\nf = Reshape(g, five_two)\ny = Gemm<transB=1>(f, v)",
        "g = GlobalMaxPool(x)\nf = Flatten(g)\ny = Gemm<transB=1>(f, w)",
        "f = ReduceSum<keepdims=0>(x, hw)\ny = Gemm<transB=1>(f, w)",
        "g = GlobalAveragePool(x)\nh = Relu(g)\nf = Flatten(h)\ny = Gemm<transB=1>(f, w)",
        "g = GlobalAveragePool(x)\nf = Flatten(g)\nc = Gemm<transB=1>(f, w)\nm = ReduceMax(g)\n"
        "y = Add(c, m)",
        "g = GlobalAveragePool(x)\nf = Flatten(g)\nc = Gemm<transB=1>(f, w)\nm = ReduceMax(f)\n"
        "y = Add(c, m)",
        "g = GlobalAveragePool(x)\nf = Flatten(g)\nr = Gemm<transB=1>(f, w)\n"
        "m = Exp(r)\nc = Gemm<transB=1>(f, w, m)\ny = Neg(c)",
    ],
)
def test_what_is_no_such_head_stays(body):
    body = body.replace("(f, u)", "(f, t)")
    make = Arrays(2)
    feeds = {"x": make.image(2, 5, 4, 3)}
    constants = {name: value for name, value in CONSTANTS.items() if f"{name})" in body}
    constants |= {"w": make(7, 5), "v": make(7, 2), "t": make(7, 3)}
    model = graph(body, feeds, constants)
    FuseLinear()(model)
    untouched(FusePoolLinear(), model)


@pytest.mark.parametrize("output", ["g", "f"])
def test_an_output_of_the_graph_between_stays(output):
    head = "g = GlobalAveragePool(x)\nf = Flatten(g)\n"
    untouched(FusePoolLinear(), network(head + "y = Gemm<transB=1>(f, w)", 3, ("y", output))[0])


def test_other_than_images_stay():
    head = "g = GlobalAveragePool(x)\nf = Flatten(g)\n"
    model, _ = network(head + "y = Gemm<transB=1>(f, w)", 4, shape=(2, 5, 4))
    untouched(FusePoolLinear(), model)
