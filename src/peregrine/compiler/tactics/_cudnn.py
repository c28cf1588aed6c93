"""A `peregrine.Conv` as cuDNN's graph: how its tensors and its epilogue are described."""

from __future__ import annotations

from typing import Any

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Window

DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}
"""By cuDNN's names for them."""
ACTIVATIONS = frozenset(ActivationKind) - {ActivationKind.HARD_SIGMOID, ActivationKind.HARD_SWISH}
"""Those that cuDNN has a node for."""
X, W, B, Z, Y = range(1, 6)
"""Identifiers of the tensors within a graph."""
_FLOAT32_MAX = 3.4e38


def build_graph(operation: Operation, first: str, **where: Any) -> Any:
    """cuDNN's graph of a `peregrine.Conv`, checked by cuDNN; sums are float32.

    Args:
        first: `bias` or `residual`, whichever is added first.
        where: `handle` of the device, or `device_property` of one that need not be here.
    """
    import cudnn

    x, weight, bias, residual = (*operation.inputs, None, None)[:4]
    output = operation.outputs[0]
    assert x is not None
    assert weight is not None
    assert weight.shape is not None
    biased = bias is not None or adds_zeros(operation)
    float32 = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=_data_type(x),
        intermediate_data_type=float32,
        compute_data_type=float32,
        **where,
    )
    channels, window = weight.shape[0], Window.read(operation.attributes)
    top, left, bottom, right = window.pads
    y = graph.conv_fprop(
        image=_tensor(graph, x, X),
        weight=_tensor(graph, _packed(weight), W),
        pre_padding=[top, left],
        post_padding=[bottom, right],
        stride=list(window.strides),
        dilation=list(window.dilations),
    )
    for addend in (first, "residual" if first == "bias" else "bias"):
        if addend == "bias" and biased:
            row = TensorType.channels_last(weight.dtype, (1, channels, 1, 1))
            y = graph.bias(input=y, bias=_tensor(graph, row, B))
        elif addend == "residual" and residual is not None:
            y = graph.add(a=y, b=_tensor(graph, residual, Z))
    y = _activate(graph, y, Activation.read(operation.attributes))
    y.set_output(True).set_uid(Y).set_data_type(_data_type(output))
    y.set_dim(list(output.shape or ())).set_stride(list(nhwc_strides(output) or ()))
    if keeps_float32(operation):
        notes = cudnn.numerical_note
        graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
    graph.validate()
    graph.build_operation_graph()
    return graph


def _activate(graph: Any, y: Any, activation: Activation) -> Any:
    """cuDNN's node for an activation of `ACTIVATIONS`."""
    alpha, beta = activation.alpha, activation.beta
    match activation.kind:
        case ActivationKind.IDENTITY:
            return y
        case ActivationKind.RELU:
            return graph.relu(y)
        case ActivationKind.CLIP:
            upper = beta if beta < _FLOAT32_MAX else None
            return graph.relu(y, lower_clip=alpha, upper_clip=upper)
        case ActivationKind.LEAKY_RELU:
            return graph.leaky_relu(y, alpha)
        case ActivationKind.SILU:
            return graph.swish(y)
        case ActivationKind.GELU_TANH:
            return graph.gelu_approx_tanh(y)
        case kind:
            return getattr(graph, kind.value)(y)


def _tensor(graph: Any, tensor: TensorType, uid: int) -> Any:
    return graph.tensor(
        dim=list(tensor.shape or ()),
        stride=list(nhwc_strides(tensor) or ()),
        data_type=_data_type(tensor),
        uid=uid,
    )


def _packed(weight: TensorType) -> TensorType:
    """W as `pack` lays it out."""
    assert weight.shape is not None
    o, c, h, w = weight.shape
    return TensorType.channels_last(weight.dtype, (o, c, h, w))


def nhwc_strides(tensor: TensorType) -> tuple[int, int, int, int] | None:
    """The strides of an image with adjacent channels, with one rule for dimensions of one element,
    whose strides may be anything: those of a tensor where they had more. None for other images."""
    if tensor.shape is None or tensor.strides is None or len(tensor.shape) != 4:
        return None
    n, c, h, w = tensor.shape
    n_stride, c_stride, h_stride, w_stride = tensor.strides
    if c > 1 and c_stride != 1:
        return None
    if w == 1:  # the distance between neighbours of the innermost dimension that has any
        w_stride = h_stride if h > 1 else n_stride if n > 1 else c
    if h == 1:
        h_stride = w * w_stride
    if n == 1:
        n_stride = h * h_stride
    if not (w_stride >= c and h_stride >= w * w_stride and n_stride >= h * h_stride):
        return None
    return n_stride, 1, h_stride, w_stride


def keeps_float32(operation: Operation) -> bool:
    """Whether float32 inputs must not be rounded to TF32."""
    x = operation.inputs[0]
    return x is not None and x.dtype == "float32" and not operation.tf32


def adds_zeros(operation: Operation) -> bool:
    """Whether the graph has a bias that the operation has not: cuDNN's compiled engines know an
    epilogue with a bias, or none at all."""
    bias, residual = (*operation.inputs, None, None)[2:4]
    plain = Activation.read(operation.attributes).kind is ActivationKind.IDENTITY
    return bias is None and not (residual is None and plain)


def _data_type(tensor: TensorType) -> Any:
    import cudnn

    return getattr(cudnn.data_type, DTYPES[tensor.dtype])
