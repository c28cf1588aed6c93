"""What an operation must compute and move, and the time below which no kernel can come.

The roofline (Williams, Waterman and Patterson, 2009): an operation takes at least as long as its
arithmetic at the device's peak, and at least as long as its bytes at the memory's bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics.base import Device


@dataclass(frozen=True, slots=True)
class Cost:
    """The least of both, for known sizes; what is not known counts as nothing."""

    flops: float
    """Operations: an addition, a multiplication and an element-wise function are one each."""
    bytes: float
    """Each input read once, each output written once; weights are inputs."""


def cost(operation: Operation) -> Cost:
    """What an operation must compute and move.

    Operators without a formula here count one operation an element of their largest tensor.
    """
    count = _FLOPS.get(operation.operator, _element_wise)
    return Cost(float(count(operation)), float(_bytes(operation)))


def roofline_s(cost: Cost, device: Device, *, dtype: str = "float16", tf32: bool = False) -> float:
    """The seconds that the device needs at the least.

    Args:
        dtype: of the matrix products, by which their peak differs.
        tf32: whether float32 products may round their inputs.
    """
    peak = device.flops * _rate(dtype, tf32, device)
    return max(cost.flops / peak, cost.bytes / device.bandwidth)


def _rate(dtype: str, tf32: bool, device: Device) -> float:
    """The peak of a dtype's matrix products against float16's. Of CUDA devices as NVIDIA's data
    sheets have it for tensor cores (H200 SXM: 989 TFLOPS in float16, 67 in float32)."""
    if not device.is_cuda:
        return 1.0
    if dtype == "float32":
        return 1 / 2 if tf32 else 1 / 15
    if dtype == "float64":
        return 1 / 15
    return 2.0 if dtype in ("int8", "uint8") or dtype.startswith("float8") else 1.0


# How many operations


def _epilogue(
    operation: Operation,
    bias: int | None,
    residual: int | None,
    elements: int,
    prefix: str = "",
) -> int:
    """Of a bias, a residual and an activation over this many elements."""
    kind = Activation.read(operation.attributes, prefix).kind
    parts = [_has(operation, bias), _has(operation, residual), kind is not ActivationKind.IDENTITY]
    return elements * sum(parts)


def _conv(operation: Operation) -> int:
    out = operation.outputs[0].elements
    return 2 * out * _taps(operation, 1) + _epilogue(operation, 2, 3, out)


def _conv_transpose(operation: Operation) -> int:
    out = operation.outputs[0].elements
    return 2 * _elements(operation, 0) * _taps(operation, 1) + _epilogue(operation, 2, None, out)


def _linear(operation: Operation) -> int:
    out = operation.outputs[0].elements
    return 2 * out * _taps(operation, 1) + _epilogue(operation, 2, 3, out)


def _depthwise_pointwise(operation: Operation) -> int:
    out = operation.outputs[0].elements
    written, channels = _shape(operation, 3, 4)[:2]
    # Both convolutions write the same rows and columns.
    inner = out // max(1, written) * channels
    kind = ActivationKind(operation.attributes.get("inner_activation", ActivationKind.IDENTITY))
    steps = 2 * _taps(operation, 1) + _has(operation, 2) + (kind is not ActivationKind.IDENTITY)
    return inner * steps + 2 * out * channels + _epilogue(operation, 4, 5, out)


def _conv_max_pool(operation: Operation) -> int:
    n, _, height, width = _shape(operation, 0, 4)
    channels = _shape(operation, 1, 4)[0]
    middle = n * channels * math.prod(Window.read(operation.attributes).output(height, width))
    pool = math.prod(Window.read(operation.attributes, "pool_").kernel)
    convolution = 2 * middle * _taps(operation, 1) + _epilogue(operation, 2, None, middle)
    return convolution + operation.outputs[0].elements * pool


def _conv_branches(operation: Operation) -> int:
    out = operation.outputs[0]
    channels = sum(_shape(operation, position, 4)[0] for position in (1, 3))
    pixels = out.elements // max(1, channels)
    weights = _elements(operation, 1) + _elements(operation, 3)
    biased = sum(
        pixels * _shape(operation, weight, 4)[0]
        for weight, bias in ((1, 2), (3, 4))
        if _has(operation, bias)
    )
    return 2 * pixels * weights + biased + _epilogue(operation, None, None, out.elements)


def _pool_linear(operation: Operation) -> int:
    out = operation.outputs[0].elements
    products = 2 * out * _taps(operation, 1)
    return _elements(operation, 0) + products + _epilogue(operation, 2, None, out)


def _pointwise_pair(operation: Operation) -> int:
    first, second = operation.outputs[0].elements, operation.outputs[-1].elements
    products = 2 * (first * _taps(operation, 1) + second * _taps(operation, 4))
    ends = _epilogue(operation, 2, 3, first), _epilogue(operation, 5, None, second, "second_")
    return products + sum(ends)


def _matmul(operation: Operation) -> int:
    shape = _shape(operation, 0, 1)
    return 2 * operation.outputs[0].elements * (shape[-1] if shape else 1)


def _gemm(operation: Operation) -> int:
    rows, columns = _shape(operation, 0, 2)
    inner = rows if operation.attributes.get("transA") else columns
    out = operation.outputs[0].elements
    return out * (2 * inner + _has(operation, 2))


def _pool(operation: Operation) -> int:
    kernel: tuple[int, ...] = tuple(operation.attributes.get("kernel_shape", ()))
    return operation.outputs[0].elements * math.prod(kernel)


def _recurrent(operation: Operation) -> int:
    sequence, batch, _ = _shape(operation, 0, 3)
    return 2 * sequence * batch * (_elements(operation, 1) + _elements(operation, 2))


def _nothing(operation: Operation) -> int:
    return 0


def _element_wise(operation: Operation) -> int:
    tensors = (*operation.inputs, *operation.outputs)
    return max((tensor.elements for tensor in tensors if tensor is not None), default=0)


_VIEWS = frozenset(
    f"ai.onnx.{name}"
    for name in ("Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze")
)
"""They need move nothing."""
_PARTIAL = frozenset(
    f"ai.onnx.{name}" for name in ("Gather", "GatherElements", "GatherND", "Slice", "Compress")
)
"""They read no more of their first input than they write."""
_MOVES = frozenset(
    f"ai.onnx.{name}"
    for name in ("Concat", "DepthToSpace", "Expand", "Pad", "SpaceToDepth", "Split", "Tile",
                 "Transpose", "Constant", "ConstantOfShape")
)  # fmt: skip
"""They compute nothing."""

_FLOPS: dict[str, Callable[[Operation], int]] = {
    Fused.CONV: _conv,
    Fused.LINEAR: _linear,
    Fused.DEPTHWISE_POINTWISE: _depthwise_pointwise,
    Fused.CONV_MAX_POOL: _conv_max_pool,
    Fused.CONV_BRANCHES: _conv_branches,
    Fused.POOL_LINEAR: _pool_linear,
    Fused.POINTWISE_PAIR: _pointwise_pair,
    "ai.onnx.Conv": _conv,
    "ai.onnx.ConvTranspose": _conv_transpose,
    "ai.onnx.Gemm": _gemm,
    **dict.fromkeys(("ai.onnx.MatMul", "ai.onnx.MatMulInteger"), _matmul),
    **dict.fromkeys(("ai.onnx.MaxPool", "ai.onnx.AveragePool", "ai.onnx.LpPool"), _pool),
    **dict.fromkeys(("ai.onnx.LSTM", "ai.onnx.GRU", "ai.onnx.RNN"), _recurrent),
    **dict.fromkeys(_VIEWS | _PARTIAL | _MOVES, _nothing),
}


# How many bytes


def _bytes(operation: Operation) -> int:
    if operation.operator in _VIEWS:
        return 0
    written = sum(tensor.bytes for tensor in operation.outputs)
    read = [0 if tensor is None else tensor.bytes for tensor in operation.inputs]
    if operation.operator in _PARTIAL and read:
        read[0] = min(read[0], written)
    if operation.operator in _STRIDED and read:
        read[0] = min(read[0], _touched(operation))
    return written + sum(read)


_STRIDED = frozenset({Fused.CONV, Fused.CONV_BRANCHES, Fused.DEPTHWISE_POINTWISE})


def _touched(operation: Operation) -> int:
    """Bytes of the input that a window reads: one that strides past itself leaves some out."""
    source, out = operation.inputs[0], operation.outputs[0]
    if source is None or source.shape is None or out.shape is None:
        return 0
    n, channels, *sides = source.shape
    kernel = Window.read(operation.attributes).kernel
    for side, size, taps in zip(sides, out.shape[2:], kernel, strict=True):
        n *= min(side, size * taps)
    return n * channels * source.itemsize


# Sizes


def _tensor(operation: Operation, position: int) -> TensorType | None:
    return operation.inputs[position] if position < len(operation.inputs) else None


def _has(operation: Operation, position: int | None) -> bool:
    return position is not None and _tensor(operation, position) is not None


def _elements(operation: Operation, position: int) -> int:
    tensor = _tensor(operation, position)
    return 0 if tensor is None else tensor.elements


def _shape(operation: Operation, position: int, rank: int) -> tuple[int, ...]:
    """The sizes of an input; zeros, `rank` of them, where they are not known."""
    tensor = _tensor(operation, position)
    return (0,) * rank if tensor is None or tensor.shape is None else tensor.shape


def _taps(operation: Operation, weight: int) -> int:
    """Multiplications an output element of a weight (O, ...)."""
    return math.prod(_shape(operation, weight, 1)[1:]) if _elements(operation, weight) else 0
