from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import real_networks


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real networks and photos; a checkout without them skips what needs them."""
    return real_networks.shared_data()


@pytest.fixture(scope="session")
def make_graph():
    """Build a small ONNX model: nodes, then inputs and outputs as (name, type, dims)."""

    def make(nodes, inputs, outputs, constants=None, opset=17, extra_domains=()):
        values = [
            [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in specs]
            for specs in (inputs, outputs)
        ]
        tensors = [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()]
        graph = helper.make_graph(nodes, "g", *values, tensors)
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in extra_domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    return make


@pytest.fixture
def linear_graph(make_graph) -> onnx.ModelProto:
    """y = x @ w for x [?, 4] with an anonymous batch, y [?, 3]."""
    return make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [None, 4])],
        [("y", TensorProto.FLOAT, [None, 3])],
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3)},
    )
