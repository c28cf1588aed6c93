"""Small networks that lose much in one precision, by one cause, in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peregrine.conversion.calibration import Calibration
from peregrine.model.model import Model
from peregrine.types import Array, TensorSpec

CHANNELS = 16


def convolutional(outlier: float = 1.0) -> onnx.ModelProto:
    """Four convolutions with ReLUs, then a classifier of 10. One channel that `conv_2` writes is
    `outlier` times as large, and the weights by which `conv_3` reads it are so much smaller: in
    exact arithmetic the same network for any `outlier`."""
    rng = np.random.default_rng(3)
    nodes, constants = [], dict[str, Array]()
    last, width = "x", 3
    for number in range(4):
        weight = rng.normal(0, np.sqrt(2 / (9 * width)), (CHANNELS, width, 3, 3))
        if number == 2:
            weight[5] *= outlier
        if number == 3:
            weight[:, 5] /= outlier
        constants[f"w{number}"] = weight
        constants[f"b{number}"] = rng.normal(0, 0.1, CHANNELS) * (
            np.where(np.arange(CHANNELS) == 5, outlier, 1) if number == 2 else 1
        )
        inputs = [last, f"w{number}", f"b{number}"]
        nodes.append(
            helper.make_node("Conv", inputs, [f"c{number}"], f"conv_{number}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu_{number}"))
        last, width = f"r{number}", CHANNELS
    constants["wf"] = rng.normal(0, 1, (CHANNELS, 10))
    constants["bf"] = rng.normal(0, 0.1, 10)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], "head"),
    ]
    return _proto(nodes, constants, ["batch", 3, 12, 12], ["batch", 10])


def overflowing(scale: float = 3e5) -> onnx.ModelProto:
    """Three products; what the second writes is beyond fp16 where `scale` is above 65504, and is
    scaled back before the third."""
    rng = np.random.default_rng(4)
    constants: dict[str, Array] = {
        name: rng.normal(0, 32**-0.5, (32, 32)) for name in ("w0", "w1", "w2")
    }
    constants["w1"] = constants["w1"] * scale
    constants["back"] = np.array(1 / scale)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w1"], ["large"], "large"),
        helper.make_node("Mul", ["large", "back"], ["small"], "back"),
        helper.make_node("MatMul", ["small", "w2"], ["logits"], "last"),
    ]
    return _proto(nodes, constants, ["batch", 32], ["batch", 32])


def as_model(proto: onnx.ModelProto, directory: Path) -> Model:
    """A model directory of a graph with the input `x` and the output `logits`."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, directory / "model.onnx")

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        dims = value.type.tensor_type.shape.dim
        return TensorSpec(value.name, "float32", tuple(d.dim_param or d.dim_value for d in dims))

    model = Model(
        name=proto.graph.name,
        directory=directory,
        inputs=(spec(proto.graph.input[0]),),
        outputs=(spec(proto.graph.output[0]),),
        batch="batch",
        onnx="model.onnx",
        sha256="0" * 64,
        source=proto.graph.name,
        weights="made for a test",
        classifier=True,
    )
    model.save()
    return model


def calibration(model: Model, directory: Path, items: int = 24, seed: int = 0) -> Calibration:
    """Random items for a model of one float32 input."""
    (spec,) = model.inputs
    rng = np.random.default_rng(seed)
    shape = spec.resolve({model.batch: items})
    feeds = [{spec.name: rng.normal(0, 1, shape).astype(np.float32)}]
    return Calibration.write(directory, model, feeds, f"{items} random items", random=True)


def _proto(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    x: list[str | int],
    y: list[str | int],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "fragile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
