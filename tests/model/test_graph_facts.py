import numpy as np
import pytest
from onnx import TensorProto, helper

from peregrine.model import onnx_file
from peregrine.model.graph_facts import integer_ranges, is_classifier
from peregrine.types import TensorSpec

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741


def ranges(graph):
    return integer_ranges(graph, onnx_file.specs(graph)[0])


def test_a_table_bounds_its_index(make_graph):
    graph = make_graph(
        [
            helper.make_node("Cast", ["ids"], ["c"], to=TensorProto.INT32),
            helper.make_node("Gather", ["table", "c"], ["y"]),
        ],
        [("ids", I, ["N", 5])],
        [("y", F, ["N", 5, 2])],
        {"table": np.zeros((30, 2), np.float32)},
    )
    assert ranges(graph) == {"ids": (0, 30)}


def test_a_table_counts_along_its_axis_and_beats_a_comparison(make_graph):
    graph = make_graph(
        [
            helper.make_node("Equal", ["ids", "pad"], ["is_pad"]),
            helper.make_node("Gather", ["table", "ids"], ["y"], axis=1),
        ],
        [("ids", I, ["N"])],
        [("y", F, [2, "N"]), ("is_pad", TensorProto.BOOL, ["N"])],
        {"table": np.zeros((2, 9), np.float32), "pad": np.array(0)},
    )
    assert ranges(graph) == {"ids": (0, 9)}


def test_one_hot_by_its_depth_and_by_comparison(make_graph):
    depth = make_graph(
        [helper.make_node("OneHot", ["ids", "depth", "values"], ["y"])],
        [("ids", I, ["N"])],
        [("y", F, ["N", 11])],
        {"depth": np.array(11), "values": np.array([0, 1], np.float32)},
    )
    assert ranges(depth) == {"ids": (0, 11)}
    spelled = make_graph(
        [helper.make_node("Equal", ["ids", "classes"], ["y"])],
        [("ids", I, ["N", 1])],
        [("y", TensorProto.BOOL, ["N", 8])],
        {"classes": np.arange(8)[None]},
    )
    assert ranges(spelled) == {"ids": (0, 8)}


def test_a_compared_scalar_takes_the_value_and_a_mask_does_not(make_graph):
    graph = make_graph(
        [
            helper.make_node("Equal", ["sr", "rate"], ["a"]),
            helper.make_node("Equal", ["mask", "zero"], ["b"]),
        ],
        [("sr", I, []), ("mask", I, ["N", 4])],
        [("a", TensorProto.BOOL, []), ("b", TensorProto.BOOL, ["N", 4])],
        {"rate": np.array(16000), "zero": np.array(0)},
    )
    assert ranges(graph) == {"sr": (16000, 16000)}


def test_floats_and_unused_integers_are_unbounded(make_graph):
    graph = make_graph(
        [helper.make_node("Neg", ["ids"], ["y"])], [("ids", I, ["N"])], [("y", I, ["N"])]
    )
    assert ranges(graph) == {}


@pytest.mark.parametrize(
    ("operator", "output", "shape", "expected"),
    [
        ("Softmax", "y", ["N", 10], True),
        ("Tanh", "y", ["N", 10], False),
        ("Tanh", "logits", ["N", 10], True),
        ("Tanh", "class_scores", ["N", 1], False),
        ("Softmax", "y", ["N", "classes"], False),
        ("Softmax", "y", ["N", 4, 10], False),
    ],
)
def test_scores_over_classes(make_graph, operator, output, shape, expected):
    graph = make_graph(
        [
            helper.make_node(operator, ["x"], ["h"]),
            helper.make_node("Identity", ["h"], [output]),
        ],
        [("x", F, shape)],
        [(output, F, shape)],
    )
    spec = TensorSpec(output, "float32", tuple(shape))
    assert is_classifier(graph, (spec,)) is expected
