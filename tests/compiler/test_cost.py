"""What an operation costs, against PyTorch's own counter of operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from peregrine.compiler.cost import Cost, cost, roofline_s
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics.base import Device

_RELU = Activation(ActivationKind.RELU).attributes()


def _type(*shape: int, dtype: str = "float16") -> TensorType:
    return TensorType.contiguous(dtype, shape)


def _counted(function) -> int:
    """Multiplications and additions of the products in it, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _conv(x, w, window: Window, groups: int = 1) -> torch.Tensor:
    top, left, bottom, right = window.pads
    padded = torch.nn.functional.pad(torch.zeros(x), (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        padded, torch.zeros(w), None, window.strides, 0, window.dilations, groups
    )


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    "window",
    [Window((3, 3), pads=(1, 1, 1, 1)), Window((1, 1), (2, 2)), Window((5, 3), (2, 1), (2, 0, 1, 1),
     (1, 2))],
)  # fmt: skip
def test_a_convolution_with_its_bias_residual_and_activation(window, groups):
    x, w = (2, 6, 13, 11), (12, 6 // groups, *window.kernel)
    made = _conv(x, w, window, groups)
    products = _counted(lambda: _conv(x, w, window, groups))
    y = _type(*made.shape)
    plain = {"group": groups, **window.attributes()}
    inputs = (_type(*x), _type(*w), _type(12), y)
    alone = Operation(Fused.CONV, plain, inputs[:2], (y,))
    assert cost(alone).flops == products
    full = Operation(Fused.CONV, {**plain, **_RELU}, inputs, (y,))
    assert cost(full).flops == products + 3 * made.numel()
    no_bias = Operation(Fused.CONV, plain, (*inputs[:2], None, y), (y,))
    assert cost(no_bias).flops == products + made.numel()
    standard = Operation("ai.onnx.Conv", plain, inputs[:3], (y,), opset=22)
    assert cost(standard).flops == products + made.numel()


def test_a_convolution_moves_each_tensor_once():
    x, w, b, y = _type(2, 8, 9, 9), _type(4, 8, 3, 3), _type(4), _type(2, 4, 9, 9)
    attributes = Window((3, 3), pads=(1, 1, 1, 1)).attributes()
    operation = Operation(Fused.CONV, attributes, (x, w, b, y), (y,))
    assert cost(operation).bytes == 2 * (2 * 8 * 81 + 4 * 8 * 9 + 4 + 2 * (2 * 4 * 81))


def test_a_stride_past_the_window_reads_only_what_it_needs():
    x, w, y = _type(1, 8, 8, 8), _type(4, 8, 1, 1), _type(1, 4, 4, 4)
    operation = Operation(Fused.CONV, Window((1, 1), (2, 2)).attributes(), (x, w), (y,))
    assert cost(operation).bytes == 2 * (8 * 16 + 32 + 64)


def test_linear_matmul_and_gemm():
    x, w = torch.zeros(5, 7, 16), torch.zeros(9, 16)
    products = _counted(lambda: torch.nn.functional.linear(x, w))
    y = _type(5, 7, 9)
    linear = Operation(Fused.LINEAR, _RELU, (_type(5, 7, 16), _type(9, 16), _type(9)), (y,))
    assert cost(linear).flops == products + 2 * y.elements
    matmul = Operation("ai.onnx.MatMul", {}, (_type(5, 7, 16), _type(5, 16, 9)), (y,))
    assert cost(matmul).flops == _counted(lambda: x @ torch.zeros(5, 16, 9))
    gemm = _counted(lambda: torch.zeros(7, 16).T @ torch.zeros(7, 9))
    inputs = (_type(7, 16), _type(7, 9), _type(9))
    transposed = Operation("ai.onnx.Gemm", {"transA": 1}, inputs, (_type(16, 9),))
    assert cost(transposed).flops == gemm + 16 * 9


def test_a_depthwise_and_a_pointwise_convolution():
    window = Window((3, 3), (2, 2), (1, 1, 1, 1))
    middle = _conv((2, 6, 10, 10), (6, 1, 3, 3), window, 6)
    products = _counted(lambda: _conv((2, 6, 10, 10), (6, 1, 3, 3), window, 6))
    products += _counted(lambda: _conv(middle.shape, (4, 6, 1, 1), Window((1, 1))))
    y = _type(2, 4, 5, 5)
    inputs = (_type(2, 6, 10, 10), _type(6, 1, 3, 3), _type(6), _type(4, 6, 1, 1), _type(4), y)
    inner = Activation(ActivationKind.RELU).attributes("inner_")
    operation = Operation(Fused.DEPTHWISE_POINTWISE, {**window.attributes(), **inner}, inputs, (y,))
    assert cost(operation).flops == products + 2 * middle.numel() + 2 * y.elements


def test_a_convolution_and_a_pooling():
    window = Window((7, 7), (2, 2), (3, 3, 3, 3))
    pool = Window((3, 3), (2, 2), (1, 1, 1, 1))
    middle = _conv((2, 3, 20, 24), (8, 3, 7, 7), window)
    products = _counted(lambda: _conv((2, 3, 20, 24), (8, 3, 7, 7), window))
    y = _type(2, 8, *pool.output(*middle.shape[2:]))
    attributes = {**window.attributes(), **pool.attributes("pool_"), **_RELU}
    inputs = (_type(2, 3, 20, 24), _type(8, 3, 7, 7), _type(8))
    operation = Operation(Fused.CONV_MAX_POOL, attributes, inputs, (y,))
    assert cost(operation).flops == products + 2 * middle.numel() + 9 * y.elements


def test_a_pair_of_pointwise_convolutions():
    x, hidden = (2, 5, 7, 7), (2, 9, 7, 7)
    products = _counted(lambda: _conv(x, (9, 5, 1, 1), Window((1, 1))))
    products += _counted(lambda: _conv(hidden, (4, 9, 1, 1), Window((1, 1))))
    y1, y2 = _type(*hidden), _type(2, 4, 7, 7)
    inputs = (_type(*x), _type(9, 5, 1, 1), _type(9), y1, _type(4, 9, 1, 1), None)
    second = Activation(ActivationKind.TANH).attributes("second_")
    operation = Operation(Fused.POINTWISE_PAIR, {**_RELU, **second}, inputs, (y1, y2))
    assert cost(operation).flops == products + 3 * y1.elements + y2.elements
    moved = 2 * 49 * (5 + 9 + 9 + 4) + 9 * 5 + 9 + 4 * 9
    assert cost(operation).bytes == 2 * moved


def test_two_branches_of_one_input():
    window = Window((3, 3), pads=(1, 1, 1, 1))
    x = (2, 5, 7, 7)
    products = _counted(lambda: _conv(x, (3, 5, 1, 1), Window((1, 1))))
    products += _counted(lambda: _conv(x, (4, 5, 3, 3), window))
    y = _type(2, 7, 7, 7)
    inputs = (_type(*x), _type(3, 5, 1, 1), _type(3), _type(4, 5, 3, 3), None)
    operation = Operation(Fused.CONV_BRANCHES, {**window.attributes(), **_RELU}, inputs, (y,))
    assert cost(operation).flops == products + 2 * 3 * 49 + y.elements


def test_a_mean_and_a_product():
    inputs, y = (_type(2, 6, 5, 5), _type(10, 6), _type(10)), _type(2, 10)
    operation = Operation(Fused.POOL_LINEAR, {}, inputs, (y,))
    products = _counted(lambda: torch.zeros(2, 6) @ torch.zeros(6, 10))
    assert cost(operation).flops == 2 * 6 * 25 + products + y.elements


def test_what_moves_and_what_does_not():
    x, y = _type(4, 6), _type(24)
    assert cost(Operation("ai.onnx.Reshape", {}, (x, _type(1, dtype="int64")), (y,))) == Cost(0, 0)
    assert cost(Operation("ai.onnx.Relu", {}, (x,), (x,))) == Cost(24, 96)
    assert cost(Operation("ai.onnx.Transpose", {}, (x,), (_type(6, 4),))) == Cost(0, 96)
    table, index, rows = _type(1000, 8), _type(3, dtype="int64"), _type(3, 8)
    found = cost(Operation("ai.onnx.Gather", {"axis": 0}, (table, index), (rows,)))
    assert found == Cost(0, 48 + 24 + 48)
    pooled = Operation("ai.onnx.MaxPool", {"kernel_shape": (3, 3)}, (_type(1, 2, 8, 8),),
                       (_type(1, 2, 6, 6),))  # fmt: skip
    assert cost(pooled).flops == 9 * 72


def test_sizes_that_are_not_known_count_as_nothing():
    unknown = TensorType("float16", None, None)
    for operator in (*Fused, "ai.onnx.MatMul", "ai.onnx.Gemm", "ai.onnx.LSTM", "ai.onnx.Add"):
        attributes = {**Window((3, 3)).attributes(), **Window((2, 2)).attributes("pool_")}
        found = cost(Operation(operator, attributes, (unknown,) * 4, (unknown,)))
        assert found == Cost(0, 0), operator


def test_the_roofline_is_the_larger_of_arithmetic_and_memory():
    gpu = Device("cuda:0", (9, 0), 132, flops=8e14, bandwidth=4e12)
    assert roofline_s(Cost(8e14, 1), gpu) == 1
    assert roofline_s(Cost(1, 8e12), gpu) == 2
    assert roofline_s(Cost(8e14, 1), gpu, dtype="float32", tf32=True) == 2
    assert roofline_s(Cost(8e14, 1), gpu, dtype="float32") == pytest.approx(15)
    assert roofline_s(Cost(8e14, 1), gpu, dtype="float8_e4m3fn") == 0.5
    assert roofline_s(Cost(1e11, 1), Device("cpu"), dtype="float32") == 1
