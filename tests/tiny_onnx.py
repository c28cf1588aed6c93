"""A small ONNX model made without torch, with its weights in an external file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peregrine.model.model import Model
from peregrine.types import Array, TensorSpec


def tiny_model(directory: Path, *, seed: int = 0) -> Model:
    """relu(x @ w + b) + offset as float, for x (batch, 8) float32 and offset (batch, 1) int64."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((8, 4)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["hidden"]),
            helper.make_node("Cast", ["offset"], ["shift"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["hidden", "shift"], ["y"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8]),
            helper.make_tensor_value_info("offset", TensorProto.INT64, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    directory.mkdir(parents=True)
    path = directory / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = Model(
        name="tiny",
        directory=directory,
        inputs=(
            TensorSpec("x", "float32", ("batch", 8)),
            TensorSpec("offset", "int64", ("batch", 1)),
        ),
        outputs=(TensorSpec("y", "float32", ("batch", 4)),),
        batch="batch",
        onnx="model.onnx",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        source="tiny",
    )
    model.save()
    return model


def tiny_feeds(batch: int, *, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.random((batch, 8), np.float32),
        "offset": rng.integers(-5, 5, (batch, 1)),
    }
