"""Blame finds the node that was made fragile, and says why with numbers."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fragile_networks import as_model, calibration, convolutional, overflowing
from peregrine.conversion.blame import rank
from peregrine.conversion.job import Job
from peregrine.conversion.prepare import prepare
from peregrine.conversion.probe_tensors import CONVERTED, Runner, float_pairs, side_by_side
from peregrine.conversion.quantize import collect_ranges, quantize
from peregrine.conversion.reasons import Facts, Scale, Seen, find
from peregrine.conversion.typed import emulate
from peregrine.discrepancy import measure
from peregrine.model.graphs import Graph
from peregrine.types import Precision

INT8 = [Graph.U8S8, Graph.S8S8]


def ranked_int8(proto, graph, tmp_path, share=1.0):
    """Ranges are `share` of the smallest and largest value."""
    model = as_model(proto, tmp_path / "model")
    data = calibration(model, tmp_path / "calibration")
    prepared = prepare(model)
    job = Job(model, prepared, graph, tmp_path / "out", data)
    minmax = collect_ranges(job, ("minmax",))["minmax"]
    bounds = {name: (low * share, high * share) for name, (low, high) in minmax.items()}
    return rank(prepared, graph, data, lambda keep: quantize(prepared, bounds, graph, keep))


def ranked_fp16(proto, tmp_path):
    model = as_model(proto, tmp_path / "model")
    data = calibration(model, tmp_path / "calibration")
    prepared = prepare(model)
    return rank(prepared, Graph.FP16, data, lambda keep: emulate(prepared, Precision.FP16, keep))


@pytest.mark.parametrize("graph", INT8)
def test_the_reader_of_an_outlier_channel_is_the_worst_and_the_reason_is_said(graph, tmp_path):
    worst, second, *_ = ranked_int8(convolutional(outlier=1000), graph, tmp_path)
    assert worst.node == "conv_3"
    assert worst.operator == "Conv"
    assert worst.effect > 0.5 > 10 * second.effect
    assert worst.error > 0.5
    assert str(worst.reason).startswith("outliers: one channel of its input reaches 1")
    assert worst.reason.words.endswith("int8 has 0 steps left for them")
    assert worst.kept().reason == str(worst.reason)


def test_where_integers_share_a_scale_the_writer_of_the_channel_is_a_partner(tmp_path):
    worst, *_ = ranked_int8(convolutional(outlier=1000), Graph.U8S8, tmp_path)
    assert worst.partners == ("conv_2",)


def test_a_range_that_was_cut_is_said(tmp_path):
    ranking = ranked_int8(convolutional(outlier=1000), Graph.U8S8, tmp_path, share=0.25)
    blamed = next(b for b in ranking if b.node == "conv_3")
    assert blamed.reason.cause == "outliers"
    assert "the range was cut at 829, which loses them" in blamed.reason.words


@pytest.mark.parametrize("graph", INT8)
def test_a_sound_network_has_no_node_that_stands_out(graph, tmp_path):
    ranking = ranked_int8(convolutional(), graph, tmp_path)
    assert {"conv_0", "conv_1", "conv_2", "conv_3", "head"} <= {b.node for b in ranking}
    assert all(b.reason.cause == "coarse" and b.error < 0.05 for b in ranking)


def test_the_effect_is_what_converting_one_node_alone_does(tmp_path):
    """Against graphs in which really all other nodes were kept."""
    model = as_model(convolutional(outlier=30), tmp_path / "model")
    data = calibration(model, tmp_path / "calibration", items=2)
    prepared = prepare(model)
    bounds = collect_ranges(Job(model, prepared, Graph.S8S8, tmp_path, data), ("minmax",))

    def convert_with(keep):
        return quantize(prepared, bounds["minmax"], Graph.S8S8, keep)

    names = frozenset(node.name for node in prepared.graph.node)
    ranking = rank(prepared, Graph.S8S8, data, convert_with)
    assert {b.node for b in ranking} == {"conv_0", "conv_1", "conv_2", "conv_3", "head"}
    exact = Runner(prepared, optimised=False)
    for blamed in ranking:
        alone = Runner(convert_with(names - {blamed.node}), optimised=False)
        errors = [
            measure(exact.run(item)["logits"], alone.run(item)["logits"]).scaled_error
            for item in data.items()
        ]
        assert blamed.effect == pytest.approx(np.mean(errors), rel=1e-2)


def test_values_beyond_fp16_are_a_range(tmp_path):
    worst, second, *_ = ranked_fp16(overflowing(scale=3e5), tmp_path)
    assert {worst.node, second.node} >= {"large"}
    large = next(b for b in (worst, second) if b.node == "large")
    assert large.reason.cause == "range"
    assert "65504" in large.reason.words
    assert math.isinf(large.error)
    assert math.isinf(large.effect)
    assert "back" in large.partners


def test_no_range_is_blamed_where_all_fits(tmp_path):
    ranking = ranked_fp16(overflowing(scale=100), tmp_path)
    assert all(b.reason.cause == "coarse" and b.error < 2e-3 for b in ranking)


def test_effects_out_of_time_are_ranked_last_by_local_error(tmp_path):
    model = as_model(convolutional(outlier=1000), tmp_path / "model")
    data = calibration(model, tmp_path / "calibration")
    prepared = prepare(model)
    bounds = collect_ranges(Job(model, prepared, Graph.S8S8, tmp_path, data), ("minmax",))
    ranking = rank(
        prepared,
        Graph.S8S8,
        data,
        lambda keep: quantize(prepared, bounds["minmax"], Graph.S8S8, keep),
        seconds=-1,
    )
    assert all(math.isnan(b.effect) for b in ranking)
    assert [b.error for b in ranking] == sorted((b.error for b in ranking), reverse=True)
    assert ranking[0].node == "conv_3"


@pytest.mark.parametrize("graph", INT8)
def test_side_by_side_is_both_graphs(graph, tmp_path):
    """Tensors of the fp32 graph as it has them, also where a ReLU became part of a range."""
    model = as_model(convolutional(), tmp_path / "model")
    data = calibration(model, tmp_path / "calibration", items=2)
    prepared = prepare(model)
    bounds = collect_ranges(Job(model, prepared, graph, tmp_path, data), ("minmax",))["minmax"]
    both = Runner(side_by_side(prepared, quantize(prepared, bounds, graph)), optimised=False)
    item = next(data.items(1))
    values = both.run(item)
    want = Runner(prepared, optimised=False).run(item)["logits"]
    np.testing.assert_allclose(values["logits"], want, rtol=1e-5, atol=1e-6)
    pairs = {name: (exact, twin) for name, exact, twin in float_pairs(values)}
    assert {"r0", "r1", "r2", "r3", "logits"} <= pairs.keys()
    for name, (exact, twin) in pairs.items():
        assert 0 <= measure(exact, twin).scaled_error < 0.05, name
        assert f"{CONVERTED}{name}" in values


def seen(values, *, words="its input", scale=None, axis=1):
    facts = Facts(axis)
    facts.add(np.asarray(values, np.float32))
    return Seen("t", words, facts, scale)


def test_underflow_says_how_many_values_are_lost():
    values = np.full((1, 4, 50, 50), 1e-3)
    values[:, 0] = 1e-9
    values[:, 1] = 1e-6
    reason = find(Graph.FP16, [seen(values)], 0.5)
    assert reason.cause == "underflow"
    assert "25% of the values of its input become zero" in reason.words
    assert "50% are below its smallest normal number" in reason.words
    assert reason.tensor == "t"


def test_values_that_lose_digits_underflow_too():
    reason = find(Graph.FP16, [seen(np.full((1, 4, 8, 8), 2e-6))], 0.01)
    assert str(reason).startswith("underflow: 100% of the values of its input are below fp16's")


def test_zeros_do_not_underflow_and_small_values_that_cost_nothing_are_not_blamed():
    assert find(Graph.FP16, [seen(np.zeros((1, 4, 8, 8)))], 0.5).cause == "coarse"
    assert find(Graph.FP16, [seen(np.full((1, 4, 8, 8), 1e-9))], 1e-4).cause == "coarse"


def test_bf16_has_the_range_of_fp32():
    values = np.full((1, 4, 8, 8), 1e30)
    assert find(Graph.BF16, [seen(values)], 0.01).cause == "coarse"
    assert find(Graph.FP16, [seen(values)], math.inf).cause == "range"


def test_a_few_large_values_are_outliers():
    values = np.random.default_rng(0).uniform(0, 1, (1, 1, 100, 100))
    values[0, 0, 3, 4] = 100
    reason = find(Graph.U8S8, [seen(values, scale=Scale(0, 100))], 0.5)
    assert str(reason).startswith("outliers: a few values of its input reach 100 times")
    assert "int8 has 2 steps left" in reason.words


def test_what_is_not_quantised_is_not_blamed_for_its_range():
    values = np.ones((1, 4, 50, 50))
    values[:, 2] = 1000
    assert find(Graph.S8S8, [seen(values)], 0.5).cause == "coarse"
    assert find(Graph.S8S8, [seen(values, scale=Scale(-1000, 1000))], 0.5).cause == "outliers"
    assert find(Graph.DYNAMIC, [seen(values)], 0.5).cause == "outliers"


def test_facts_gather_over_items():
    facts = Facts(channel_axis=1)
    facts.add(np.array([[1.0, -2.0, 0.0]], np.float32))
    facts.add(np.array([[-4.0, 1.0, 1e-9]], np.float32))
    assert (facts.largest, facts.low, facts.high) == (4.0, -4.0, 1.0)
    assert (facts.values, facts.nonzero, facts.zeroed, facts.subnormal) == (6, 5, 1, 1)
    np.testing.assert_allclose(facts.channels, [4.0, 2.0, 1e-9])
    assert facts.channel_ratio == 2.0


def branching():
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 0.3, "w")

    def branch(name, op):
        return helper.make_graph(
            [helper.make_node(op, ["h"], [f"{name}_out"], name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
            helper.make_node("ReduceMax", ["h"], ["m"], "largest", keepdims=0),
            helper.make_node("Greater", ["m", "zero"], ["c"], "positive"),
            helper.make_node(
                "If",
                ["c"],
                ["logits"],
                "choice",
                then_branch=branch("then", "Relu"),
                else_branch=branch("else", "Neg"),
            ),
        ],
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [weight, numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def test_branches_of_if_that_stay_in_fp32_are_left_alone(tmp_path):
    ranking = ranked_fp16(branching(), tmp_path)
    assert ranking[0].node == "product"
    assert not {"then", "else"} & {b.node for b in ranking}


def test_nodes_inside_a_branch_are_ranked_by_what_leaving_them_out_brings(tmp_path):
    """Only the branch that the data takes matters."""
    model = as_model(branching(), tmp_path / "model")
    data = calibration(model, tmp_path / "calibration", items=4)
    proto = prepare(model)

    def convert_with(keep):
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        choice = next(node for node in made.graph.node if node.op_type == "If")
        for attribute in choice.attribute:
            for node in attribute.g.node:
                if node.name not in keep:
                    node.op_type = {"Relu": "Softplus", "Neg": "Abs"}[node.op_type]
        return made

    worst, other = rank(proto, Graph.DYNAMIC, data, convert_with)
    assert (worst.node, other.node) == ("then", "else")
    assert worst.effect > 0.1 > other.effect == 0
    assert "it is inside choice" in worst.reason.words
