"""A model directory made without torch: y = relu(x W + b), symbolic batch."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peregrine.model.model import Model
from peregrine.types import TensorSpec


def tiny_graph() -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((6, 4)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def make_tiny(directory: Path) -> Model:
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(tiny_graph(), directory / "model.onnx")
    model = Model(
        name="tiny",
        directory=directory,
        inputs=(TensorSpec("x", "float32", ("batch", 6)),),
        outputs=(TensorSpec("y", "float32", ("batch", 4)),),
        batch="batch",
        onnx="model.onnx",
        sha256="0" * 64,
        source="tiny",
        weights="made for a test",
    )
    model.save()
    return model
