"""Models of one node, right or wrong in one chosen way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peregrine.model.model import Model
from peregrine.types import TensorSpec

SHAPE = ("batch", 4)


def one_node(
    directory: Path,
    op: str,
    *,
    domain: str = "",
    opset: int = 17,
    dtype: str = "float32",
    initializers: Sequence[tuple[str, np.ndarray]] = (),
    inputs: Sequence[str] = ("x",),
) -> Model:
    """y = op(x, ...) over [batch, 4], node name "the_node"; never checked."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), ["y"], name="the_node", domain=domain)],
        "one_node",
        [helper.make_tensor_value_info("x", kind, SHAPE)],
        [helper.make_tensor_value_info("y", kind if op != "Gather" else TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return of_bytes(directory, proto.SerializeToString(), dtype)


def of_bytes(directory: Path, content: bytes, dtype: str = "float32") -> Model:
    """A model whose file holds `content`, whatever that is."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(content)
    return Model(
        name="one_node",
        directory=directory,
        inputs=(TensorSpec("x", dtype, SHAPE),),
        outputs=(TensorSpec("y", dtype, SHAPE),),
        batch="batch",
        onnx="model.onnx",
    )


def truncated(model: Model) -> Model:
    """The same with the second half of its file gone."""
    content = model.onnx_path.read_bytes()
    onnx.load_from_string(content)
    model.onnx_path.write_bytes(content[: len(content) // 2])
    return model
