"""Activations after a Conv, in one operator or in many."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove
from peregrine.compiler.operators import Activation, ActivationKind
from peregrine.compiler.passes.fuse_conv import FuseConv

K = ActivationKind
CONV = "c = Conv(x, w)\n"
NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "zero": 0.0,
    "inf": np.inf,
    "root2": 2**0.5,
    "inverse_root2": 2**-0.5,
    "cubic": 0.044715,
    "root": (2 / np.pi) ** 0.5,
    "three_halves": 1.5,
    "quick": 1.702,
}

SINGLE = {
    "y = Relu(c)": Activation(K.RELU),
    "y = Clip(c, zero, six)": Activation(K.CLIP, 0, 6),
    "y = Clip(c, half, half)": Activation(K.CLIP, 0.5, 0.5),
    "y = Clip(c, zero)": Activation(K.RELU),
    "y = Clip(c, zero, inf)": Activation(K.RELU),
    "y = LeakyRelu(c)": Activation(K.LEAKY_RELU, 0.01),
    "y = LeakyRelu<alpha=0.25>(c)": Activation(K.LEAKY_RELU, 0.25),
    "y = Sigmoid(c)": Activation(K.SIGMOID),
    "y = Tanh(c)": Activation(K.TANH),
    "y = HardSigmoid(c)": Activation(K.HARD_SIGMOID, 0.2, 0.5),
    "y = HardSigmoid<alpha=0.25, beta=0.125>(c)": Activation(K.HARD_SIGMOID, 0.25, 0.125),
    "y = HardSwish(c)": Activation(K.HARD_SWISH),
    "y = Gelu(c)": Activation(K.GELU),
    'y = Gelu<approximate="tanh">(c)': Activation(K.GELU_TANH),
}

_CUBE = "q = Mul(c, c)\nr = Mul(q, c)\n"
_TANH = "s = Mul(r, cubic)\nt = Add(c, s)\nu = Mul(t, root)\nv = Tanh(u)\nd = Add(v, one)\n"
COMPOSED = {
    "s = Sigmoid(c)\ny = Mul(c, s)": Activation(K.SILU),
    "s = Sigmoid(c)\ny = Mul(s, c)": Activation(K.SILU),
    "s = HardSigmoid<alpha=0.16666667, beta=0.5>(c)\ny = Mul(s, c)": Activation(K.HARD_SWISH),
    "p = Add(three, c)\nq = Clip(p, zero, six)\nr = Mul(c, q)\ny = Div(r, six)": Activation(
        K.HARD_SWISH
    ),
    "p = Add(c, three)\nq = Clip(p, zero, six)\nr = Div(q, six)\ny = Mul(c, r)": Activation(
        K.HARD_SWISH
    ),
    "p = Add(c, three)\nq = Clip(p, zero, six)\ny = Mul(q, sixth)": Activation(
        K.HARD_SIGMOID, 1 / 6, 0.5
    ),
    "p = Div(c, root2)\nq = Erf(p)\nr = Add(q, one)\ns = Mul(c, r)\ny = Mul(s, half)": Activation(
        K.GELU
    ),
    "h = Mul(c, half)\np = Mul(c, inverse_root2)\nq = Erf(p)\nr = Add(one, q)\n"
    "y = Mul(h, r)": Activation(K.GELU),
    _CUBE + _TANH + "e = Mul(c, half)\ny = Mul(e, d)": Activation(K.GELU_TANH),
    "r = Pow(c, three)\n" + _TANH + "e = Mul(c, d)\ny = Div(e, two)": Activation(K.GELU_TANH),
}


def found(model) -> Activation:
    """That of the Conv, its numbers as ONNX keeps them."""
    return rounded(Activation.read(attributes(model, "Conv")))


def rounded(activation: Activation) -> Activation:
    return Activation(activation.kind, np.float32(activation.alpha), np.float32(activation.beta))


def network(body: str, dtype: type, seed: int):
    make = Arrays(seed, dtype)
    feeds = {"x": (3 * make.image(1, 4, 5, 3)).astype(dtype)}
    constants = {name: np.array(number, dtype) for name, number in NUMBERS.items()}
    used = {name: array for name, array in constants.items() if name in body}
    return graph(CONV + body, feeds, {"w": make(6, 4, 1, 1), **used}, opset=22), feeds


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("body", "activation"), (SINGLE | COMPOSED).items())
def test_is_found(body, activation, dtype):
    model, feeds = network(body, dtype, 1)
    tolerance = 5e-3 if dtype is np.float16 else 1e-6
    prove(FuseConv(), model, feeds, tolerance=tolerance)
    assert operators(model) == ["Conv"]
    assert found(model) == rounded(activation)


@pytest.mark.parametrize(("body", "activation"), COMPOSED.items())
def test_constants_rounded_to_bfloat16_are_still_its_own(body, activation):
    model, _ = network(body, ml_dtypes.bfloat16, 2)
    assert FuseConv()(model).modified
    assert found(model) == rounded(activation)


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(c)\ny = Add(c, s)",
        "s = Tanh(c)\ny = Mul(c, s)",
        "p = Mul(c, quick)\ns = Sigmoid(p)\ny = Mul(c, s)",
        "p = Add(c, two)\nq = Clip(p, zero, six)\nr = Mul(c, q)\ny = Div(r, six)",
        "p = Add(c, three)\nq = Clip(p, zero, three)\nr = Mul(c, q)\ny = Div(r, six)",
        "p = Div(c, root2)\nq = Erf(p)\nr = Add(q, one)\ny = Mul(c, r)",
        "p = Div(c, half)\nq = Erf(p)\nr = Add(q, one)\ns = Mul(c, r)\ny = Mul(s, half)",
        "y = Elu(c)",
        "y = Softplus(c)",
        "y = Clip(c, , six)",
        "y = PRelu(c, half)",
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_like_one_and_is_not_stays(body, dtype):
    model, feeds = network(body, dtype, 3)
    prove(FuseConv(), model, feeds)
    assert operators(model)[1:] == [line.split(" = ")[1].split("(")[0] for line in body.split("\n")]


def test_a_bound_that_is_computed_stays():
    make = Arrays(4)
    feeds = {"x": make.image(1, 4, 5, 3), "six": np.array(6, np.float32)}
    constants = {"w": make(6, 4, 1, 1), "zero": np.array(0, np.float32)}
    model = graph(CONV + "y = Clip(c, zero, six)", feeds, constants)
    assert operators(prove(FuseConv(), model, feeds)) == ["Conv", "Clip"]


@pytest.mark.parametrize("outside", ["s", "p"])
def test_a_part_that_something_else_reads_stays(outside):
    make = Arrays(5)
    feeds = {"x": make.image(1, 4, 5, 3)}
    body = CONV + "p = Neg(c)\ns = Sigmoid(c)\ny = Mul(c, s)"
    outputs = ("y", outside)
    model = graph(body, feeds, {"w": make(6, 4, 1, 1)}, outputs=outputs)
    prove(FuseConv(), model, feeds)
    assert sorted(operators(model)) == sorted(
        ["Conv", "Mul", "Neg", "Sigmoid"] if outside == "p" else ["Conv", "Neg", "Sigmoid", "Mul"]
    )


def test_a_number_of_more_dimensions_is_none():
    """It would give the result one dimension more."""
    make = Arrays(6)
    feeds = {"x": make.image(1, 4, 5, 3)}
    constants = {"w": make(6, 4, 1, 1), "three": np.full((1,) * 5, 3, np.float32)}
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    body = CONV + "p = Add(c, three)\nq = Clip(p, zero, six)\nr = Mul(c, q)\ny = Div(r, six)"
    model = graph(body, feeds, constants)
    assert operators(prove(FuseConv(), model, feeds)) == ["Conv", "Add", "Clip", "Mul", "Div"]
