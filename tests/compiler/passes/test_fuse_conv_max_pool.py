"""peregrine.ConvMaxPool: stems, and pools that it cannot be."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.fuse_conv_max_pool import FuseConvMaxPool
from peregrine.compiler.passes.rewriting import SOURCES

CONV = "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)\n"  # of 17 x 14: 9 x 7


def network(body: str, seed: int, channels: int = 3, outputs=("y",), group: int = 1):
    make = Arrays(seed)
    feeds = {"x": make.image(2, channels, 17, 14)}
    constants = {"w": make(6, channels // group, 3, 3), "b": make(6)}
    model = graph(body, feeds, constants, outputs=outputs)
    return ir.passes.functionalize(FuseConv())(model).model, feeds


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
def test_a_stem(channels, activation):
    body = CONV + f"r = {activation}(c)\ny = MaxPool<kernel_shape=[3,2], strides=[2,1]>(r)"
    model, feeds = network(body, 1, channels)
    prove(FuseConvMaxPool(), model, feeds)
    assert operators(model) == ["ConvMaxPool"]
    found = attributes(model, "ConvMaxPool")
    assert found["activation"] == activation.lower()
    assert found["strides"] == (2, 2)
    assert found["pool_kernel_shape"] == (3, 2)
    assert found["pool_strides"] == (2, 1)
    assert json.loads(the(model, "ConvMaxPool").metadata_props[SOURCES]) == ["c", "r", "y"]


@pytest.mark.parametrize(
    ("geometry", "pads"),
    [
        ("kernel_shape=[3,3], pads=[1,0,1,2], strides=[2,2]", (1, 0, 1, 2)),
        ('kernel_shape=[2,3], auto_pad="SAME_UPPER", strides=[2,2]', (0, 1, 1, 1)),
        ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1", (0, 0, 0, 0)),  # 9 x 7 has no rest
        ("kernel_shape=[2,2]", (0, 0, 0, 0)),
    ],
)
def test_geometries_of_the_pool(geometry, pads):
    model, feeds = network(CONV + f"y = MaxPool<{geometry}>(c)", 2)
    prove(FuseConvMaxPool(), model, feeds)
    assert attributes(model, "ConvMaxPool")["pool_pads"] == pads


@pytest.mark.parametrize(
    "pool",
    [
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(c)",  # 9 rows: 5 by ceil
        "y = MaxPool<kernel_shape=[2,2], dilations=[2,1]>(c)",
        "y = AveragePool<kernel_shape=[2,2]>(c)",
        "m = MaxPool<kernel_shape=[2,2]>(c)\nt = ReduceSum(c)\ny = Add(m, t)",
        "y, i = MaxPool<kernel_shape=[2,2]>(c)",
        "n = Neg(c)\ny = MaxPool<kernel_shape=[2,2]>(n)",
    ],
)
def test_what_is_no_such_pool_stays(pool):
    outputs = ("y", "i") if "i =" in pool else ("y",)
    untouched(FuseConvMaxPool(), network(CONV + pool, 3, outputs=outputs)[0])


def test_indices_that_nobody_reads_are_none():
    model, feeds = network(CONV + "y, i = MaxPool<kernel_shape=[2,2]>(c)", 4)
    assert operators(prove(FuseConvMaxPool(), model, feeds)) == ["ConvMaxPool"]


def test_many_channels_groups_outputs_and_residuals_stay():
    body = CONV + "y = MaxPool<kernel_shape=[2,2]>(c)"
    untouched(FuseConvMaxPool(), network(body, 5, channels=5)[0])
    untouched(FuseConvMaxPool(), network(body, 5, outputs=("y", "c"))[0])
    grouped = body.replace("pads", "group=2, pads", 1)
    untouched(FuseConvMaxPool(), network(grouped, 5, channels=4, group=2)[0])
    summed = "c = Conv(x, w, b)\nd = Conv(x, w)\ns = Add(c, d)\n"
    untouched(FuseConvMaxPool(), network(summed + "y = MaxPool<kernel_shape=[2,2]>(s)", 5)[0])
