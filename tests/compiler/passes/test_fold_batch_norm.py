"""BatchNormalization, scales and shifts in the weights beside them: exact, and where it may be."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from compiler.passes.graphs import Arrays, graph, operators, prove, same, the, untouched
from peregrine.compiler.passes.fold_batch_norm import FoldBatchNorm, FoldScaleIntoNext
from peregrine.compiler.passes.rewriting import SOURCES, constant

NORM = "y = BatchNormalization(c, s, t, m, v)"


def statistics(make: Arrays, channels: int):
    return {
        "s": make(channels),
        "t": make(channels),
        "m": make(channels),
        "v": make.positive(channels),
    }


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("Conv<pads=[1,0,0,1]>", (6, 4, 3, 2)),
        ("Conv<group=2>", (6, 2, 3, 2)),
        ("Conv<group=4>", (4, 1, 3, 2)),
        ("ConvTranspose<strides=[2,1]>", (4, 6, 3, 2)),
    ],
)
def test_after_a_convolution(call, shape, biased):
    make = Arrays(1)
    feeds, constants = {"x": make.image(2, 4, 5, 7)}, {"w": make(*shape)}
    channels = 4 if call == "Conv<group=4>" else 6
    constants |= statistics(make, channels)
    if biased:
        constants["b"] = make(channels)
    body = f"c = {call}(x, w{', b' if biased else ''})\n{NORM}"
    model = prove(FoldBatchNorm(), graph(body, feeds, constants), feeds)
    assert operators(model) == [call.split("<")[0]]
    assert json.loads(next(iter(model.graph)).metadata_props[SOURCES]) == ["c", "y"]


def test_after_a_transposed_convolution_in_groups():
    """By ONNX Runtime: onnx's reference fails on these."""
    make = Arrays(13)
    feeds, constants = {"x": make.image(2, 4, 5, 7)}, {"w": make(4, 3, 3, 2), "b": make(6)}
    body = f"c = ConvTranspose<group=2>(x, w, b)\n{NORM}"
    model = graph(body, feeds, constants | statistics(make, 6))

    def outputs():
        blob = ir.to_proto(model).SerializeToString()
        return ort.InferenceSession(blob, providers=["CPUExecutionProvider"]).run(None, feeds)

    before = outputs()
    assert FoldBatchNorm()(model).modified
    assert operators(model) == ["ConvTranspose"]
    same(outputs(), before, None)


@pytest.mark.parametrize("attributes", ["transB=1", "transB=0, alpha=0.5, beta=3.0"])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), ()])
def test_after_a_gemm(attributes, bias):
    make = Arrays(2)
    feeds = {"x": make(3, 7)}
    constants = {"w": make(5, 7) if "transB=1" in attributes else make(7, 5)}
    constants |= statistics(make, 5)
    if bias is not None:
        constants["b"] = make(*bias)
    body = f"c = Gemm<{attributes}>(x, w{', b' if bias is not None else ''})\n{NORM}"
    model = prove(FoldBatchNorm(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Gemm"]


def test_the_algebra_is_done_in_float64_and_rounded_once():
    make = Arrays(3)
    feeds, constants = {"x": make.image(1, 3, 4, 4)}, {"w": make(5, 3, 3, 3), "b": make(5)}
    constants |= statistics(make, 5)
    model = graph(
        "c = Conv(x, w, b)\ny = BatchNormalization<epsilon=0.25>(c, s, t, m, v)", feeds, constants
    )
    FoldBatchNorm()(model)
    wide = {name: array.astype(np.float64) for name, array in constants.items()}
    factor = wide["s"] / np.sqrt(wide["v"] + 0.25)
    weight = (wide["w"] * factor[:, None, None, None]).astype(np.float32)
    bias = (wide["b"] * factor + (wide["t"] - wide["m"] * factor)).astype(np.float32)
    assert np.array_equal(constant(the(model, "Conv").inputs[1]), weight)
    assert np.array_equal(constant(the(model, "Conv").inputs[2]), bias)


def test_a_chain_of_constants_a_channel():
    make = Arrays(4)
    feeds, constants = {"x": make.image(2, 3, 5, 4)}, {"w": make(6, 3, 1, 1)}
    constants |= statistics(make, 6) | {"p": make(1, 6, 1, 1), "q": make(1), "r": make(6, 1, 1)}
    body = (
        "a = Conv(x, w)\nc = BatchNormalization(a, s, t, m, v)\nd = Mul(c, q)\n"
        "e = Sub(p, d)\nf = Div(e, q)\ng = Add(r, f)\nh = Sub(g, p)\ny = Relu(h)"
    )
    model = prove(FoldBatchNorm(), graph(body, feeds, constants), feeds, tolerance=1e-5)
    assert operators(model) == ["Conv", "Relu"]


def test_a_matmul_takes_a_scale_and_leaves_a_shift():
    make = Arrays(5)
    feeds, constants = {"x": make(2, 3, 7)}, {"w": make(7, 5), "p": make(5), "q": make(5)}
    body = "a = MatMul(x, w)\nb = Mul(a, p)\ny = Add(b, q)"
    model = prove(FoldBatchNorm(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["MatMul", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Exp(x)\n" + NORM,
        "c = Conv(x, w)\nd = BatchNormalization(c, s, t, m, v)\ny = Add(c, d)",
        "c = Conv(x, w)\ny = Div(p, c)",
        "c = Conv(x, w)\ny = Mul(c, c)",
        "c = Conv(x, w)\ny = Mul(c, rows)",
        "c = Conv(x, w)\ny = Add(c, deep)",
        "c = Conv(x, w)\ny = Div(c, zero)",
        "c = MatMul(x, matrix)\ny = Mul(c, p)",
    ],
)
def test_what_is_no_scale_after_a_product_stays(body):
    make = Arrays(6)
    feeds = {"x": make.image(2, 3, 5, 4)}
    constants = {"w": make(3, 3, 1, 1), "p": make(3, 1, 1), "rows": make(5, 1)}
    constants |= {"deep": make(1, 1, 3, 1, 1), "zero": np.zeros(1, np.float32)}
    constants |= {"matrix": make(4, 4)} | statistics(make, 3)
    used = {name: array for name, array in constants.items() if f"{name}" in body}
    untouched(FoldBatchNorm(), graph(body, feeds, used))


def test_statistics_or_weights_that_are_computed_stay():
    make = Arrays(7)
    feeds, constants = {"x": make.image(2, 3, 5, 4)}, {"w": make(3, 3, 1, 1), "b": make(3)}
    constants |= statistics(make, 3)
    for name in ("m", "w", "b"):
        rest = {key: array for key, array in constants.items() if key != name}
        model = graph(f"c = Conv(x, w, b)\n{NORM}", feeds | {name: constants[name]}, rest)
        untouched(FoldBatchNorm(), model)


def test_an_output_between_and_training_stay():
    make = Arrays(8)
    feeds, constants = {"x": make.image(2, 3, 5, 4)}, {"w": make(3, 3, 1, 1)}
    constants |= statistics(make, 3)
    body = f"c = Conv(x, w)\n{NORM}"
    untouched(FoldBatchNorm(), graph(body, feeds, constants, outputs=("y", "c")))
    training = "y, a, b = BatchNormalization<training_mode=1>(c, s, t, m, v)"
    body = f"c = Conv(x, w)\n{training}"
    untouched(FoldBatchNorm(), graph(body, feeds, constants))


def test_parts_of_an_activation_stay_with_it():
    """Folding the + 3 would leave a Clip and a product that nobody knows as a hard sigmoid."""
    make = Arrays(9)
    feeds, constants = {"x": make.image(2, 3, 5, 4)}, {"w": make(6, 3, 1, 1), "v": make(2, 6, 1, 1)}
    constants |= {
        name: np.array(number, np.float32)
        for name, number in {"three": 3, "zero": 0, "six": 6}.items()
    }
    body = "c = Conv(x, w)\np = Add(c, three)\nq = Clip(p, zero, six)\nr = Div(q, six)\n"
    untouched(FoldBatchNorm(), graph(body + "y = Conv(r, v)", feeds, constants))
    untouched(FoldScaleIntoNext(), graph(body + "y = Conv(r, v)", feeds, constants))
    swish = body.replace("r = Div(q, six)", "u = Mul(c, q)\nr = Div(u, six)")
    untouched(FoldScaleIntoNext(), graph(swish + "y = Conv(r, v)", feeds, constants))


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_before_a_convolution(group, biased):
    make = Arrays(10)
    feeds, constants = {"c": make.image(2, 4, 5, 7)}, {"w": make(8, 4 // group, 3, 2)}
    constants |= statistics(make, 4) | ({"b": make(8)} if biased else {})
    body = NORM.replace("y =", "n =") + "\n"
    body += f"y = Conv<group={group}>(n, w{', b' if biased else ''})"
    model = prove(FoldScaleIntoNext(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv"]
    assert json.loads(the(model, "Conv").metadata_props[SOURCES]) == ["n", "y"]


def test_before_pads_a_scale_goes_and_a_shift_stays():
    make = Arrays(11)
    feeds, constants = {"x": make.image(2, 4, 5, 7)}, {"w": make(6, 4, 3, 3)}
    constants |= {"p": make(4, 1, 1), "q": make(1)}
    padded = "y = Conv<pads=[1,1,1,1]>(b, w)"
    body = "a = Add(x, p)\nb = Mul(a, q)\n" + padded
    model = prove(FoldScaleIntoNext(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Add", "Conv"]
    body = "b = Add(x, p)\n" + padded
    untouched(FoldScaleIntoNext(), graph(body, feeds, constants | {"q": make(1)}))
    same = 'y = Conv<auto_pad="SAME_UPPER">(b, w)'
    untouched(FoldScaleIntoNext(), graph("b = Add(x, p)\n" + same, feeds, constants))


@pytest.mark.parametrize(
    "body",
    [
        "b = Mul(x, p)\nc = Conv(b, w)\nd = ReduceMax(b)\ny = Add(c, d)",
        "b = Mul(x, rows)\ny = Conv(b, w)",
        "b = Mul(x, p)\ny = Conv(x, b)",
        "b = Mul(x, p)\ny = Relu(b)",
    ],
)
def test_what_is_no_scale_before_a_convolution_stays(body):
    make = Arrays(12)
    feeds, constants = {"x": make.image(4, 4, 1, 1)}, {"w": make(6, 4, 1, 1), "p": make(4, 1, 1)}
    constants |= {"rows": make(4, 1, 1, 1)}
    untouched(FoldScaleIntoNext(), graph(body, feeds, constants))
