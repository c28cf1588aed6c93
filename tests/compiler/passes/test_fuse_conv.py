"""peregrine.Conv: what is fused into it, and what must not be."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from compiler.passes.graphs import Arrays, attributes, graph, operators, prove, the, untouched
from peregrine.compiler.passes.fuse_conv import FuseConv
from peregrine.compiler.passes.rewriting import SOURCES

CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)\n"


def arrays(seed: int = 0, dtype: type = np.float32):
    make = Arrays(seed, dtype)
    feeds = {"x": make.image(2, 3, 9, 7)}
    return make, feeds, {"w": make(5, 3, 3, 3), "b": make(5)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_alone_it_keeps_its_weights_and_geometry(dtype):
    _, feeds, constants = arrays(1, dtype)
    body = "y = Conv<pads=[2,0,1,3], strides=[2,1], dilations=[1,2]>(x, w, b)"
    model = prove(FuseConv(), graph(body, feeds, constants, opset=22), feeds)
    assert operators(model) == ["Conv"]
    assert the(model, "Conv").domain == "peregrine"
    assert attributes(model, "Conv") == {
        "kernel_shape": (3, 3),
        "strides": (2, 1),
        "pads": (2, 0, 1, 3),
        "dilations": (1, 2),
        "group": 1,
    }
    assert [value.name for value in the(model, "Conv").inputs] == ["x", "w", "b"]
    assert model.opset_imports["peregrine"] == 1


@pytest.mark.parametrize("group", [2, 6])
def test_groups(group):
    make = Arrays(2)
    feeds = {"x": make.image(1, 6, 5, 8)}
    constants = {"w": make(12, 6 // group, 3, 1)}
    body = f"y = Conv<group={group}>(x, w)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert attributes(model, "Conv")["group"] == group
    assert len(the(model, "Conv").inputs) == 2


@pytest.mark.parametrize(
    ("auto", "strides", "kernel", "pads"),
    [
        ("SAME_UPPER", (2, 2), (3, 3), (1, 1, 1, 1)),  # of 9 x 7
        ("SAME_UPPER", (2, 3), (4, 4), (1, 1, 2, 2)),
        ("SAME_LOWER", (2, 3), (4, 4), (2, 2, 1, 1)),
        ("SAME_UPPER", (3, 3), (2, 1), (0, 0, 0, 0)),
        ("VALID", (1, 2), (3, 2), (0, 0, 0, 0)),
    ],
)
def test_automatic_pads_are_resolved(auto, strides, kernel, pads):
    make, feeds, _ = arrays(3)
    body = f'y = Conv<auto_pad="{auto}", strides=[{strides[0]},{strides[1]}]>(x, w)'
    model = prove(FuseConv(), graph(body, feeds, {"w": make(4, 3, *kernel)}), feeds)
    assert attributes(model, "Conv")["pads"] == pads


def test_sums_with_constants_a_channel_are_its_bias():
    make, feeds, constants = arrays(4)
    constants |= {"p": make(1, 5, 1, 1), "q": make(5, 1, 1), "s": make(1)}
    body = CONV + "d = Add(c, p)\ne = Add(q, d)\nf = Add(e, s)\ny = Relu(f)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv"]
    assert len(the(model, "Conv").inputs) == 3
    assert attributes(model, "Conv")["activation"] == "relu"
    assert json.loads(the(model, "Conv").metadata_props[SOURCES]) == ["c", "d", "e", "f", "y"]


@pytest.mark.parametrize("order", ["c, z", "z, c"])
def test_a_residual_is_read_before_the_activation(order):
    make, feeds, constants = arrays(5)
    feeds["z"] = make.image(2, 5, 9, 7)
    body = CONV + f"s = Add({order})\ny = Relu(s)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv"]
    assert the(model, "Conv").inputs[3].name == "z"


def test_a_residual_without_a_bias_leaves_its_place_empty():
    make, feeds, constants = arrays(6)
    feeds["z"] = make.image(2, 5, 7, 5)
    model = prove(FuseConv(), graph("c = Conv(x, w)\ny = Add(c, z)", feeds, constants), feeds)
    assert the(model, "Conv").inputs[2] is None


def test_a_sum_of_two_convolutions_goes_into_the_later_one():
    make, feeds, constants = arrays(7)
    constants["v"] = make(5, 3, 1, 1)
    body = CONV + "d = Conv(x, v)\ns = Add({})\ny = Relu(s)"
    for order in ("c, d", "d, c"):
        model = prove(FuseConv(), graph(body.format(order), feeds, constants), feeds)
        first, second = model.graph
        assert first.inputs[1].name == "w"
        assert second.inputs[1].name == "v"
        assert second.inputs[3] is first.outputs[0]


def test_a_residual_that_is_computed_after_the_convolution():
    """The fused operator moves to the place of the sum."""
    make, feeds, constants = arrays(8)
    feeds["u"] = make.image(2, 5, 9, 7)
    body = CONV + "z = Exp(u)\ny = Add(c, z)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Exp", "Conv"]


def test_only_the_first_sum_with_a_tensor_is_taken():
    make, feeds, constants = arrays(9)
    feeds |= {"z": make.image(2, 5, 9, 7), "u": make.image(2, 5, 9, 7)}
    body = CONV + "s = Add(c, z)\nt = Add(s, u)\ny = Relu(t)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv", "Add", "Relu"]


def test_an_output_of_the_graph_ends_the_fusion():
    _, feeds, constants = arrays(10)
    for outputs in (("y", "c"), ("c", "y")):
        model = graph(CONV + "y = Relu(c)", feeds, constants, outputs=outputs)
        assert operators(prove(FuseConv(), model, feeds)) == ["Conv", "Relu"]


def test_a_second_reader_ends_the_fusion():
    _, feeds, constants = arrays(11)
    body = CONV + "r = Relu(c)\ny = Add(c, r)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv", "Relu", "Add"]
    doubled = prove(FuseConv(), graph(CONV + "y = Add(c, c)", feeds, constants), feeds)
    assert operators(doubled) == ["Conv", "Add"]


@pytest.mark.parametrize(
    "shape", [(5, 9, 7), (1, 5, 9, 7), (2, 1, 9, 7), (2, 5, 1, 1), (7,), (9, 1), (1, 2, 5, 9, 7)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_a_sum_that_broadcasts_and_is_no_bias_stays(shape, constant):
    make, feeds, constants = arrays(12)
    (constants if constant else feeds)["z"] = make.image(*shape)
    model = prove(FuseConv(), graph(CONV + "y = Add(c, z)", feeds, constants), feeds)
    assert operators(model) == ["Conv", "Add"]


def test_a_sum_that_broadcasts_the_convolution_stays():
    make, feeds, constants = arrays(13)
    feeds["z"] = make.image(2, 5, 9, 7)
    constants["w"] = make(1, 3, 3, 3)
    constants["b"] = make(1)
    model = prove(FuseConv(), graph(CONV + "y = Add(c, z)", feeds, constants), feeds)
    assert operators(model) == ["Conv", "Add"]


def test_weights_or_a_bias_that_are_computed_are_left_alone():
    _, feeds, constants = arrays(14)
    for name in ("w", "b"):
        computed = {name: constants[name]}
        kept = {key: value for key, value in constants.items() if key != name}
        untouched(FuseConv(), graph(CONV + "y = Relu(c)", feeds | computed, kept))


@pytest.mark.parametrize("spatial", [(9,), (4, 5, 6)])
def test_other_than_two_dimensions_are_left_alone(spatial):
    make = Arrays(15)
    kernel = [3] * len(spatial)
    feeds, constants = {"x": make.image(1, 2, *spatial)}, {"w": make(4, 2, *kernel)}
    untouched(FuseConv(), graph("y = Conv(x, w)", feeds, constants))


def test_a_residual_of_another_graph_is_read_and_its_sum_there_is_not_taken():
    """Inside a branch the sum reads the convolution from outside: it stays there."""
    make, feeds, constants = arrays(16)
    feeds |= {"z": make.image(2, 5, 9, 7), "yes": np.array(True)}
    branches = "then_branch=t () => (float[2,5,9,7] p) {p = Add(c, z)}, "
    branches += "else_branch=e () => (float[2,5,9,7] q) {q = Neg(z)}"
    body = CONV + f"y = If<{branches}>(yes)"
    model = prove(FuseConv(), graph(body, feeds, constants), feeds)
    assert operators(model) == ["Conv", "If"]


def test_a_convolution_in_a_branch_is_fused_there():
    _, feeds, constants = arrays(17)
    feeds["yes"] = np.array(True)
    branches = (
        "then_branch=t () => (float[2,5,9,7] p) {c = Conv<pads=[1,1,1,1]>(x, w, b) p = Relu(c)}, "
        "else_branch=e () => (float[2,5,9,7] q) {q = Conv<pads=[1,1,1,1]>(x, w, b)}"
    )
    model = prove(FuseConv(), graph(f"y = If<{branches}>(yes)", feeds, constants), feeds)
    then = the(model, "If").attributes["then_branch"].as_graph()
    assert [(node.domain, node.op_type) for node in then] == [("peregrine", "Conv")]


def test_sizes_that_are_not_known_allow_an_activation_but_no_residual():
    make, feeds, constants = arrays(18)
    feeds["z"] = make.image(2, 5, 9, 7)
    model = graph(CONV + "s = Add(c, z)\ny = Relu(s)", feeds, constants)
    for node in model.graph:
        node.outputs[0].shape = None
    FuseConv()(model)
    assert operators(model) == ["Conv", "Add", "Relu"]
    model = graph(CONV + "y = Relu(c)", feeds, constants)
    for node in model.graph:
        node.outputs[0].shape = None
    FuseConv()(model)
    assert operators(model) == ["Conv"]
