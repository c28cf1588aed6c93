"""Calls one operator with numpy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from compiler.node_evaluator import array_of
from peregrine.compiler.attributes import tensor_of
from peregrine.compiler.torch_ops.registry import Call, find

SEED = 20261121


def ours(
    op_type: str, opset: int, *inputs: Any, outputs: int = 1, **attributes: Any
) -> np.ndarray | tuple[np.ndarray, ...]:
    """What an operator of `ai.onnx` gives: an array, or a tuple of them where several are asked
    for. An input that is None is absent; lists are int64."""
    entry = find(f"ai.onnx.{op_type}", opset)
    assert entry is not None, f"no {op_type} of opset {opset}"
    tensors = [None if x is None else tensor_of(np.asarray(x)) for x in inputs]
    result = entry.function(Call(attributes, opset, outputs), *tensors)
    if isinstance(result, torch.Tensor):
        return array_of(result)
    arrays = tuple(array_of(x) for x in result)
    return arrays[0] if outputs == 1 else arrays


def integers(random: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    """Over the whole range of an integer dtype."""
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def runtime(
    op_type: str, opset: int, *inputs: np.ndarray, outputs: int = 1, **attributes: Any
) -> Any:
    """The same node in ONNX Runtime."""
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(op_type, names, results, **attributes)
    of = onnx.helper.np_dtype_to_tensor_dtype
    given = [
        onnx.helper.make_tensor_value_info(name, of(x.dtype), x.shape)
        for name, x in zip(names, inputs, strict=True)
    ]
    made = [onnx.helper.make_empty_tensor_value_info(name) for name in results]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", given, made),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, dict(zip(names, inputs, strict=True)))
    return found[0] if outputs == 1 else found
