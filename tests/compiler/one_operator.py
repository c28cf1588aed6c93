"""One standard operator by the native engine and by another implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

from peregrine.compiler.torch_ops.registry import Call, find

Arrays = Sequence[np.ndarray | None]


def generator() -> np.random.Generator:
    """Random numbers of a fixed seed, which pytest shows where a test fails."""
    seed = 20261121
    print("seed", seed)
    return np.random.default_rng(seed)


def engine(
    op_type: str, inputs: Arrays, *, opset: int = 22, outputs: int = 1, **attributes: Any
) -> list[np.ndarray]:
    entry = find(f"ai.onnx.{op_type}", opset)
    assert entry is not None
    tensors = [None if x is None else torch.from_numpy(x) for x in inputs]
    before = [None if t is None else t.clone() for t in tensors]
    result = entry.function(Call(attributes, opset, outputs), *tensors)
    for tensor, original in zip(tensors, before, strict=True):
        assert tensor is None or torch.equal(tensor, original), "an input was written to"
    results = result if isinstance(result, tuple) else (result,)
    assert len(results) == outputs
    return [r.numpy() for r in results if r is not None]


def model_of(
    op_type: str, inputs: Arrays, *, opset: int, outputs: int, **attributes: Any
) -> onnx.ModelProto:
    given = {f"x{index}": x for index, x in enumerate(inputs) if x is not None}
    names = [f"x{index}" if x is not None else "" for index, x in enumerate(inputs)]
    written = [f"y{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op_type, names, written, **attributes)
    kinds = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in given.items()
    ]
    undefined = [onnx.helper.make_empty_tensor_value_info(name) for name in written]
    graph = onnx.helper.make_graph([node], "one", kinds, undefined)
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_onnxruntime(
    op_type: str, inputs: Arrays, *, opset: int = 22, outputs: int = 1, **attributes: Any
) -> list[np.ndarray]:
    model = model_of(op_type, inputs, opset=opset, outputs=outputs, **attributes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {f"x{index}": x for index, x in enumerate(inputs) if x is not None}
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def by_onnx(
    op_type: str, inputs: Arrays, *, opset: int = 22, outputs: int = 1, **attributes: Any
) -> list[np.ndarray]:
    """By ONNX's reference evaluator."""
    model = model_of(op_type, inputs, opset=opset, outputs=outputs, **attributes)
    feeds = {f"x{index}": x for index, x in enumerate(inputs) if x is not None}
    return list(ReferenceEvaluator(model).run(None, feeds))


def assert_same(
    results: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-5
) -> None:
    """Relative to the largest value expected; whole numbers must be equal."""
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype
        assert result.shape == wanted.shape
        if wanted.dtype.kind in "biu":
            np.testing.assert_array_equal(result, wanted)
            continue
        finite = np.abs(wanted[np.isfinite(wanted)])
        scale = finite.max(initial=0.0)
        np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=tolerance * scale)
