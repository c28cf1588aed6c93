import numpy as np
import pytest
from onnx import TensorProto, helper, save

from peregrine.errors import Unsupported
from peregrine.model.probe import Observation, OnnxRunner, name_outputs
from peregrine.types import TensorSpec


def named(declared, *observed):
    spec = TensorSpec("y", "float32", declared)
    (found,) = name_outputs([spec], [Observation(sizes, (shape,)) for sizes, shape in observed])
    return found.shape


def test_a_dimension_that_follows_a_symbol_is_that_symbol():
    seen = [({"batch": 2, "w": 8}, (2, 8, 4)), ({"batch": 3, "w": 16}, (3, 16, 8))]
    assert named(("a", "b", "half"), *seen) == ("batch", "w", "half")


def test_numbers_that_vary_otherwise_get_a_symbol_of_their_own():
    seen = [({"batch": 2}, (2, 10)), ({"batch": 3}, (3, 15))]
    assert named((2, 10), *seen) == ("batch", "y_dim1")


def test_what_stays_equal_keeps_its_name_unless_that_symbol_moved():
    seen = [({"batch": 2}, (7, 1)), ({"batch": 3}, (7, 1))]
    assert named(("time", "batch"), *seen) == ("time", 1)


def test_a_coincidence_at_one_size_names_nothing():
    assert named((2, "k"), ({"batch": 2}, (2, 2))) == (2, "k")


def test_an_undeclared_rank_is_filled_in():
    assert named((), ({"batch": 2}, (2, 5)), ({"batch": 3}, (3, 5))) == ("batch", "y_dim1")


def test_a_graph_that_onnx_runtime_lacks_is_unsupported(tmp_path, make_graph):
    F = TensorProto.FLOAT
    graph = make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.acme")],
        [("x", F, ["N"])],
        [("y", F, ["N"])],
        extra_domains=["com.acme"],
    )
    save(graph, tmp_path / "m.onnx")
    with pytest.raises(Unsupported) as caught:
        OnnxRunner(tmp_path / "m.onnx")
    assert "Frobnicate" in caught.value.why


def test_a_run_that_fails_is_unsupported(tmp_path, linear_graph):
    save(linear_graph, tmp_path / "m.onnx")
    runner = OnnxRunner(tmp_path / "m.onnx")
    with pytest.raises(Unsupported):
        runner.run({"x": np.zeros((1, 5), np.float32)})
