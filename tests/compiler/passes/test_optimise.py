"""All passes together: the paper's networks to the last operator, and what may be chosen."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest

from compiler.fused_reference import run
from compiler.passes.graphs import Arrays, counts, graph, operators, same
from peregrine.compiler.importing import specialise
from peregrine.compiler.operators import Fused
from peregrine.compiler.passes import OPTIONAL, optimise
from peregrine.compiler.passes.rewriting import SOURCES
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.types import Precision


def resnet(convolutions: int) -> dict[str, int]:
    """A stem that is pooled, the other convolutions with their sums, a head."""
    return {
        "peregrine.ConvMaxPool": 1,
        "peregrine.Conv": convolutions - 1,
        "peregrine.PoolLinear": 1,
    }


# A stem, a squeeze in each of 8 fire modules, the classifier; two pools between them are left.
# What follows the mean is a view.
SQUEEZENET = {
    "peregrine.ConvMaxPool": 1,
    "peregrine.Conv": 8 + 1,
    "peregrine.ConvBranches": 8,
    "MaxPool": 2,
    "GlobalAveragePool": 1,
    "Flatten": 1,
}
OPERATORS = {
    "resnet18": resnet(20),
    # The deeper ones repeat the same blocks.
    "resnet50": resnet(53),
    # A stem, 16 expansions (the first of 17 blocks has none), the last convolution.
    "mobilenet_v2": {
        "peregrine.Conv": 1 + 16 + 1,
        "peregrine.DepthwisePointwise": 17,
        "peregrine.PoolLinear": 1,
    },
    "squeezenet1_0": SQUEEZENET,
    "squeezenet1_1": SQUEEZENET,
    # A stem, 15 expansions in 16 blocks, the last convolution.
    "efficientnet_lite0": {
        "peregrine.Conv": 1 + 15 + 1,
        "peregrine.DepthwisePointwise": 16,
        "peregrine.PoolLinear": 1,
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> model, each exported once."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = load(name, tmp_path_factory.mktemp(name), weights="random")
        return kept[name]

    return get


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_a_network_of_the_paper_is_fused_whole(models, name):
    model = models(name)
    for precision in (Precision.FP32, Precision.FP16, Precision.BF16):
        made = optimise(specialise(model, model.sizes(3), precision))
        expected = dict(OPERATORS[name])
        if precision is not Precision.FP32 and name.startswith("squeezenet"):
            expected["Cast"] = 1  # after the mean, which is no fused operator
        if precision is not Precision.FP32 and name == "resnet50":
            # Across the ends of the 3 blocks of the first stage; others have too few pixels.
            expected["peregrine.Conv"] -= 2 * 3
            expected["peregrine.PointwisePair"] = 3
        assert counts(made) == expected
        known = [v for node in made.graph for v in node.outputs]
        assert all(v.dtype is not None and v.shape.is_static() for v in known)
        assert [v.dtype.numpy() for v in (*made.graph.inputs, *made.graph.outputs)] == [
            np.float32
        ] * 2
        assert all(v.uses() for v in made.graph.initializers.values())
    sources = Counter(
        s for node in made.graph for s in json.loads(node.metadata_props.get(SOURCES, "[]"))
    )
    assert max(sources.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "efficientnet_lite0"]
)
def test_a_network_computes_what_it_did(models, name):
    model = models(name)
    feeds = random_feeds(model, 2, seed=1)
    session = ort.InferenceSession(model.onnx_path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(feeds))
    for precision, tolerance in ((Precision.FP32, 1e-5), (Precision.FP16, 2e-2)):
        made = optimise(specialise(model, model.sizes(2), precision))
        same(run(made, feeds), wanted, tolerance)


PARTS = {
    Fused.DEPTHWISE_POINTWISE: ["Conv", "Conv"],
    Fused.CONV_MAX_POOL: ["Conv", "MaxPool"],
    Fused.CONV_BRANCHES: ["Conv", "Conv", "Concat"],
    Fused.POOL_LINEAR: ["GlobalAveragePool", "Flatten", "Linear"],
}


def everything():
    """A network in which each of the optional operators could be written once."""
    make = Arrays(1)
    feeds = {"x": make.image(2, 3, 16, 14)}
    constants = {"w": make(6, 3, 3, 3), "wd": make(6, 1, 3, 3), "wp": make(8, 6, 1, 1)}
    constants |= {"w1": make(4, 8, 1, 1), "w3": make(4, 8, 3, 3), "k": make(5, 8), "b": make(5)}
    body = (
        "c = Conv<pads=[1,1,1,1]>(x, w)\nr = Relu(c)\n"
        "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)\n"
        "d = Conv<group=6>(m, wd)\ne = Relu(d)\np = Conv(e, wp)\n"
        "s = Conv(p, w1)\nt = Relu(s)\nu = Conv<pads=[1,1,1,1]>(p, w3)\nv = Relu(u)\n"
        "j = Concat<axis=1>(t, v)\n"
        "g = GlobalAveragePool(j)\nf = Flatten(g)\ny = Gemm<transB=1>(f, k, b)"
    )
    return graph(body, feeds, constants), feeds


@pytest.mark.parametrize("wanted", [None, [], *([fused] for fused in OPTIONAL), list(OPTIONAL)])
def test_only_the_optional_operators_that_are_wanted_are_written(wanted):
    model, feeds = everything()
    before = run(model, feeds)
    assert optimise(model, fuse=wanted) is model
    expected: list[str] = []
    for fused in (
        Fused.CONV_MAX_POOL,
        Fused.DEPTHWISE_POINTWISE,
        Fused.CONV_BRANCHES,
        Fused.POOL_LINEAR,
    ):
        is_wanted = wanted is None or fused in wanted
        expected += [fused.op_type] if is_wanted else PARTS[fused]
    assert operators(model) == expected
    same(run(model, feeds), before, None)


def test_a_second_time_changes_nothing():
    model, _ = everything()
    optimise(model)
    once = [str(node) for node in model.graph]
    assert [str(node) for node in optimise(model).graph] == once


@pytest.mark.parametrize("wrong", ["peregrine.Conv", "peregrine.Softmax", "ConvMaxPool"])
def test_what_is_not_optional_is_refused(wrong):
    with pytest.raises(ValueError, match=wrong):
        optimise(everything()[0], fuse=[wrong])


def test_what_nothing_reads_goes():
    make = Arrays(2)
    feeds, constants = {"x": make.image(1, 3, 4, 4)}, {"w": make(2, 3, 1, 1), "v": make(9)}
    model = graph("c = Conv(x, w)\nd = Relu(c)\ny = Neg(x)", feeds, constants)
    optimise(model)
    assert operators(model) == ["Neg"]
    assert not model.graph.initializers
    assert set(model.opset_imports) == {""}
