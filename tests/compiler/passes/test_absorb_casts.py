"""Casts at the borders of a graph, and Casts that must stay."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, counts, graph, operators, prove, the, untouched
from peregrine.compiler.passes.absorb_casts import AbsorbCasts
from peregrine.compiler.passes.fuse_branches import FuseBranches
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.fuse_conv_max_pool import FuseConvMaxPool
from peregrine.compiler.passes.fuse_linear import FuseLinear
from peregrine.compiler.passes.fuse_pool_linear import FusePoolLinear
from peregrine.compiler.passes.rewriting import SOURCES

FUSE = ir.passes.Sequential(
    FuseConv(), FuseLinear(), FuseConvMaxPool(), FuseBranches(), FusePoolLinear()
)
FLOAT16, BFLOAT16, FLOAT = 10, 16, 1
X = f"h = Cast<to={FLOAT16}>(x)\n"
Y = f"\ny = Cast<to={FLOAT}>(o)"


def network(body: str, seed: int, dtype: type = np.float16, outputs=("y",)):
    make = Arrays(seed)
    feeds = {"x": make.image(2, 3, 8, 7)}
    constants = {"w": make(3, 3, 3, 3), "p": make(5, 3, 1, 1), "k": make(7, 5)}
    halves = {name: array.astype(dtype) for name, array in constants.items()}
    model = graph(body, feeds, halves, outputs=outputs, opset=22)
    FUSE(model)
    return model, feeds


@pytest.mark.parametrize(("dtype", "code"), [(np.float16, 10), (ml_dtypes.bfloat16, 16)])
def test_in_and_out_of_a_convolution(dtype, code):
    body = X.replace(str(FLOAT16), str(code)) + "o = Conv(h, w)" + Y
    model, feeds = network(body, 1, dtype)
    prove(AbsorbCasts(), model, feeds, tolerance=2e-2 if code == BFLOAT16 else 2e-3)
    node = the(model, "Conv")
    assert node.inputs[0] is model.graph.inputs[0]
    assert node.outputs[0] is model.graph.outputs[0]
    assert node.outputs[0].dtype is ir.DataType.FLOAT
    assert json.loads(node.metadata_props[SOURCES]) == ["h", "o", "y"]


def test_into_a_stem_and_out_of_a_head():
    body = X + (
        "c = Conv(h, w)\nm = MaxPool<kernel_shape=[2,2]>(c)\nd = Conv(m, p)\n"
        "g = GlobalAveragePool(d)\nf = Flatten(g)\no = Gemm<transB=1>(f, k)"
    )
    model, feeds = network(body + Y, 2)
    prove(AbsorbCasts(), model, feeds, tolerance=2e-3)
    assert operators(model) == ["ConvMaxPool", "Conv", "PoolLinear"]


def test_out_of_a_linear():
    body = X + "f = ReduceMax<keepdims=0>(h, hw)\no = MatMul(f, t)" + Y
    make = Arrays(3)
    feeds = {"x": make.image(2, 3, 8, 7)}
    constants = {"hw": np.array([2, 3]), "t": make(3, 4).astype(np.float16)}
    model = graph(body, feeds, constants)
    FUSE(model)
    prove(AbsorbCasts(), model, feeds, tolerance=2e-3)
    assert operators(model) == ["Cast", "ReduceMax", "Linear"]


def test_two_convolutions_read_one_input():
    body = X + "a = Conv(h, w)\nb = Conv(h, w)\nc = Mul(a, b)\no = Conv(c, p)" + Y
    model, feeds = network(body, 4)
    prove(AbsorbCasts(), model, feeds, tolerance=2e-3)
    assert operators(model) == ["Conv", "Conv", "Mul", "Conv"]


@pytest.mark.parametrize(
    "body",
    [
        # read by something else as well
        X + "c = Conv(h, w)\nd = ReduceMax(h)\no = Add(c, d)\nq = Cast<to=1>(o)\ny = Neg(q)",
        # no input of the graph, no output of the graph
        "n = Neg(x)\nh = Cast<to=10>(n)\no = Conv(h, w)\nq = Cast<to=1>(o)\ny = Neg(q)",
        # the residual is not X
        X + "n = Neg(h)\nc = Conv<pads=[1,1,1,1]>(n, w)\nr = Add(c, h)\nz = Cast<to=1>(r)\n"
        "y = Neg(z)",
        # no writer that may
        X + "n = Neg(h)\ng = GlobalAveragePool(n)\ny = Cast<to=1>(g)",
        X + "n = Neg(h)\na = Conv(n, p)\nc = Conv(n, p)\nj = Concat<axis=1>(a, c)\n"
        "y = Cast<to=1>(j)",
        # to another type than float32
        "h = Cast<to=10>(x)\nn = Neg(h)\no = Conv(n, w)\ny = Cast<to=11>(o)",
        # from and to what is no float
        X + "n = Neg(h)\no = Conv(n, w)\ny = Cast<to=6>(o)",
    ],
)
def test_other_casts_stay(body):
    untouched(AbsorbCasts(), network(body, 5)[0])


def test_an_output_that_something_else_reads_stays():
    body = X + "n = Neg(h)\no = Conv(n, w)" + Y
    untouched(AbsorbCasts(), network(body, 6, outputs=("y", "o"))[0])
    twice = X + "n = Neg(h)\no = Conv(n, w)\nu = Neg(o)" + Y
    untouched(AbsorbCasts(), network(twice, 6, outputs=("y", "u"))[0])


def test_weights_of_another_type_than_the_cast_stay():
    """Rounding to float16 first is not what a convolution in float32 would do."""
    make = Arrays(7)
    feeds = {"x": make.image(2, 3, 8, 7).astype(np.float64)}
    model = graph("h = Cast<to=1>(x)\ny = Conv(h, w)", feeds, {"w": make(5, 3, 3, 3)})
    FUSE(model)
    prove(AbsorbCasts(), model, feeds)
    assert counts(model) == {"peregrine.Conv": 1}
    whole = {"x": np.arange(84, dtype=np.int32).reshape(1, 3, 4, 7)}
    model = graph("h = Cast<to=1>(x)\ny = Conv(h, w)", whole, {"w": make(5, 3, 3, 3)})
    FUSE(model)
    untouched(AbsorbCasts(), model)
