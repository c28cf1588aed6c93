"""peregrine.Linear: products with a constant matrix, and what is no such product."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_linear import FuseLinear
from peregrine.compiler.passes.rewriting import SOURCES, constant


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, -2.0, 0.0])
def test_a_gemm_with_its_factors(dtype, transposed, alpha, beta):
    make = Arrays(1, dtype)
    feeds = {"x": make(3, 7)}
    constants = {"w": make(5, 7) if transposed else make(7, 5), "b": make(5)}
    body = f"c = Gemm<transB={transposed}, alpha={alpha}, beta={beta}>(x, w, b)\ny = Relu(c)"
    model = prove(FuseLinear(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Linear"]
    assert attributes(model, "Linear")["activation"] == "relu"
    assert constant(the(model, "Linear").inputs[1]).shape == (5, 7)
    assert len(the(model, "Linear").inputs) == (3 if beta else 2)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (1, 1)])
def test_a_gemms_bias_of_any_shape_that_is_one(shape):
    make = Arrays(2)
    feeds, constants = {"x": make(3, 7)}, {"w": make(7, 5), "b": make(*shape)}
    model = prove(FuseLinear(), graph("y = Gemm(x, w, b)", feeds, constants), feeds)
    assert constant(the(model, "Linear").inputs[2]).shape == (5,)


def test_a_gemms_third_input_of_the_outputs_shape_is_the_residual():
    make = Arrays(3)
    feeds, constants = {"x": make(3, 7), "z": make(3, 5)}, {"w": make(7, 5)}
    model = prove(FuseLinear(), graph("c = Gemm(x, w, z)\ny = Tanh(c)", feeds, constants), feeds)
    assert [v and v.name for v in the(model, "Linear").inputs][2:] == [None, "z"]


@pytest.mark.parametrize(
    ("third", "shape", "call"),
    [
        ("constant", (3, 1), "Gemm(x, w, b)"),
        ("input", (5,), "Gemm(x, w, b)"),
        ("input", (3, 1), "Gemm(x, w, b)"),
        ("input", (3, 5), "Gemm<beta=0.5>(x, w, b)"),
        ("constant", (5,), "Gemm<transA=1>(x, w, b)"),
    ],
)
def test_a_gemm_that_is_more_than_that_stays(third, shape, call):
    make = Arrays(4)
    feeds, constants = {"x": make(7, 3) if "transA" in call else make(3, 7)}, {"w": make(7, 5)}
    (constants if third == "constant" else feeds)["b"] = make(*shape)
    untouched(FuseLinear(), graph(f"y = {call}", feeds, constants))


@pytest.mark.parametrize("leading", [(), (3,), (2, 4), (2, 1, 3)])
def test_a_matmul_of_any_rank(leading):
    make = Arrays(5)
    feeds, constants = {"x": make.image(*leading, 7)}, {"w": make(7, 5), "b": make(5)}
    model = prove(FuseLinear(), graph("c = MatMul(x, w)\ny = Add(b, c)", feeds, constants), feeds)
    assert operators(model) == ["Linear"]
    assert json.loads(the(model, "Linear").metadata_props[SOURCES]) == ["c", "y"]


def test_bias_residual_and_activation_after_a_matmul():
    make = Arrays(6)
    feeds = {"x": make.image(2, 4, 7), "z": make.image(2, 4, 5)}
    constants = {"w": make(7, 5), "b": make(1, 1, 5)}
    body = "c = MatMul(x, w)\nd = Add(c, b)\ne = Add(z, d)\ny = Gelu(e)"
    model = prove(FuseLinear(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Linear"]
    assert the(model, "Linear").inputs[3].name == "z"


def test_two_products_with_one_matrix_share_it():
    make = Arrays(7)
    feeds, constants = {"x": make(3, 7)}, {"w": make(7, 7)}
    body = "c = MatMul(x, w)\nd = MatMul(c, w)\ny = Add(c, d)"
    model = prove(FuseLinear(), graph(body, feeds, constants), feeds)
    first, second = (node for node in model.graph if node.op_type == "Linear")
    assert first.inputs[1] is second.inputs[1]


@pytest.mark.parametrize("shape", [(2, 4, 1), (4, 1), (4, 5), (2, 1, 5), (2, 2, 4, 5)])
@pytest.mark.parametrize("is_constant", [True, False])
def test_a_sum_that_broadcasts_and_is_no_bias_stays(shape, is_constant):
    make = Arrays(8)
    feeds, constants = {"x": make.image(2, 4, 7)}, {"w": make(7, 5)}
    (constants if is_constant else feeds)["z"] = make.image(*shape)
    model = prove(FuseLinear(), graph("c = MatMul(x, w)\ny = Add(c, z)", feeds, constants), feeds)
    assert operators(model) == ["Linear", "Add"]


def test_products_without_a_constant_matrix_on_the_right_stay():
    make = Arrays(9)
    both = {"x": make(3, 7), "w": make(7, 5)}
    untouched(FuseLinear(), graph("y = MatMul(x, w)", both))
    untouched(FuseLinear(), graph("y = Gemm(x, w)", both))
    left = graph("y = MatMul(w, x)", {"x": make(7, 3)}, {"w": make(5, 7)})
    untouched(FuseLinear(), left)
    batched = graph("y = MatMul(x, w)", {"x": make(2, 3, 7)}, {"w": make(2, 7, 5)})
    untouched(FuseLinear(), batched)
    vector = graph("y = MatMul(x, w)", {"x": make(3, 7)}, {"w": make(7)})
    untouched(FuseLinear(), vector)
    whole = {"x": np.ones((3, 7), np.int32)}
    integers = graph("y = MatMul(x, w)", whole, {"w": np.ones((7, 5), np.int32)})
    untouched(FuseLinear(), integers)


def test_an_output_or_a_second_reader_ends_the_fusion():
    make = Arrays(10)
    feeds, constants = {"x": make(3, 7)}, {"w": make(7, 5), "b": make(5)}
    model = graph("c = MatMul(x, w)\ny = Add(c, b)", feeds, constants, outputs=("y", "c"))
    assert operators(prove(FuseLinear(), model, feeds)) == ["Linear", "Add"]
    model = graph("c = Gemm(x, w, b)\nr = Relu(c)\ny = Mul(c, r)", feeds, constants)
    assert operators(prove(FuseLinear(), model, feeds)) == ["Linear", "Relu", "Mul"]
