"""The fused operators against the standard ones, by ONNX's reference and by numpy."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Fused
from peregrine.compiler.torch_ops.fused import reference
from peregrine.compiler.torch_ops.registry import Call, find
from peregrine.errors import Unsupported

SEED = 20261121
RELU = {"activation": "relu"}


def onnx_node(op_type: str, inputs: list[np.ndarray], **attributes: Any) -> np.ndarray:
    names = [f"x{index}" for index in range(len(inputs))]
    node = onnx.helper.make_node(op_type, names, ["y"], **attributes)
    return ReferenceEvaluator(node).run(None, dict(zip(names, inputs, strict=True)))[0]


def normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.normal(size=shape)


def run(operator: Fused, attributes: dict[str, Any], inputs: list[np.ndarray | None]) -> Any:
    """(the operator in float64, the operator in float32 and float16, its reference)."""
    entry = find(operator, 1)
    assert entry is not None

    def call(dtype: torch.dtype) -> np.ndarray:
        tensors = [None if x is None else torch.from_numpy(x).to(dtype) for x in inputs]
        y = entry.function(Call(attributes, 1), *tensors)
        assert isinstance(y, torch.Tensor)
        assert y.dtype == dtype
        return y.double().numpy()

    exact = [None if x is None else torch.from_numpy(x) for x in inputs]
    (judge,) = reference(Operation(operator, attributes), exact)
    assert judge.dtype == torch.float64
    return call(torch.float64), call(torch.float32), call(torch.float16), judge.numpy()


def check(
    operator: Fused,
    attributes: dict[str, Any],
    inputs: list[np.ndarray | None],
    expected: np.ndarray,
) -> None:
    double, single, half, judge = run(operator, attributes, inputs)
    for result, tolerance in ((double, 1e-12), (single, 1e-5), (half, 4e-3), (judge, 1e-12)):
        assert result.shape == expected.shape
        error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        assert error < tolerance


@pytest.mark.parametrize(
    ("shape", "channels", "kernel", "strides", "pads", "dilations", "group"),
    [
        ((2, 3, 17, 19), 8, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
        ((1, 6, 9, 7), 6, (3, 3), (1, 1), (0, 1, 2, 1), (1, 1), 6),
        ((3, 4, 11, 5), 10, (3, 1), (2, 1), (1, 0, 0, 2), (2, 1), 2),
        ((4, 5, 3, 1), 7, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_conv(
    shape: tuple[int, ...],
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, ...],
    dilations: tuple[int, int],
    group: int,
    residual: bool,
) -> None:
    generator = np.random.default_rng(SEED)
    geometry: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
    }
    x = normal(generator, *shape)
    w = normal(generator, channels, shape[1] // group, *kernel)
    b = normal(generator, channels)
    expected = onnx_node("Conv", [x, w, b], **geometry)
    z = normal(generator, *expected.shape) if residual else None
    expected = np.maximum(expected if z is None else expected + z, 0)
    check(Fused.CONV, {**geometry, **RELU}, [x, w, b, z], expected)


@pytest.mark.parametrize("shape", [(13,), (5, 13), (2, 3, 13)])
def test_linear(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(SEED)
    x, w, b = normal(generator, *shape), normal(generator, 7, 13), normal(generator, 7)
    z = normal(generator, *shape[:-1], 7)
    attributes = {"activation": "clip", "activation_alpha": -1.0, "activation_beta": 2.0}
    check(Fused.LINEAR, attributes, [x, w, b, z], np.clip(x @ w.T + b + z, -1, 2))
    check(Fused.LINEAR, {}, [x, w], x @ w.T)


def test_depthwise_pointwise() -> None:
    generator = np.random.default_rng(SEED)
    geometry: dict[str, Any] = {
        "kernel_shape": (3, 3),
        "strides": (2, 2),
        "pads": (0, 1, 1, 0),
        "dilations": (1, 1),
    }
    x, wd, bd = normal(generator, 2, 6, 9, 11), normal(generator, 6, 1, 3, 3), normal(generator, 6)
    wp, bp = normal(generator, 5, 6, 1, 1), normal(generator, 5)
    inner = np.clip(onnx_node("Conv", [x, wd, bd], group=6, **geometry), 0, 6)
    outer = onnx_node("Conv", [inner, wp, bp])
    z = normal(generator, *outer.shape)
    attributes = {
        **geometry,
        "inner_activation": "clip",
        "inner_activation_alpha": 0.0,
        "inner_activation_beta": 6.0,
    }
    check(Fused.DEPTHWISE_POINTWISE, attributes, [x, wd, bd, wp, bp, z], outer + z)
    plain = onnx_node("Conv", [onnx_node("Conv", [x, wd], group=6, **geometry), wp])
    check(Fused.DEPTHWISE_POINTWISE, {**geometry, **RELU}, [x, wd, None, wp], np.maximum(plain, 0))


@pytest.mark.parametrize("pool_pads", [(1, 1, 1, 1), (0, 0, 1, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("bias", [-20.0, 0.0])
def test_conv_max_pool(pool_pads: tuple[int, ...], bias: float) -> None:
    """Pads count as minus infinity: with the bias below zero a pad of zeros would show."""
    generator = np.random.default_rng(SEED)
    geometry = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    x, w = normal(generator, 2, 3, 23, 21), normal(generator, 5, 3, 3, 3)
    b = np.full(5, bias)
    pool: dict[str, Any] = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": pool_pads}
    y = torch.from_numpy(onnx_node("Conv", [x, w, b], **geometry))
    top, left, bottom, right = pool_pads
    padded = torch.nn.functional.pad(y, (left, right, top, bottom), value=-np.inf)
    expected = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2)).numpy()
    attributes = {**geometry, **{f"pool_{name}": value for name, value in pool.items()}}
    check(Fused.CONV_MAX_POOL, attributes, [x, w, b], expected)


def test_conv_branches() -> None:
    generator = np.random.default_rng(SEED)
    x = normal(generator, 2, 6, 9, 7)
    w1, b1 = normal(generator, 4, 6, 1, 1), normal(generator, 4)
    w2 = normal(generator, 5, 6, 3, 3)
    geometry: dict[str, Any] = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)}
    first = onnx_node("Conv", [x, w1, b1], strides=(2, 2))
    second = onnx_node("Conv", [x, w2], **geometry)
    expected = np.maximum(np.concatenate([first, second], 1), 0)
    check(Fused.CONV_BRANCHES, {**geometry, **RELU}, [x, w1, b1, w2], expected)


def test_pool_linear() -> None:
    generator = np.random.default_rng(SEED)
    x, w, b = normal(generator, 3, 6, 7, 5), normal(generator, 9, 6), normal(generator, 9)
    attributes = {"activation": "sigmoid"}
    expected = 1 / (1 + np.exp(-(x.mean((2, 3)) @ w.T + b)))
    check(Fused.POOL_LINEAR, attributes, [x, w, b], expected)


def test_pointwise_pair() -> None:
    generator = np.random.default_rng(SEED)
    x, w1, b1 = normal(generator, 2, 6, 5, 7), normal(generator, 9, 6, 1, 1), normal(generator, 9)
    w2, b2 = normal(generator, 4, 9, 1, 1), normal(generator, 4)
    z = normal(generator, 2, 9, 5, 7)
    attributes = {**RELU, "second_activation": "tanh"}
    entry = find(Fused.POINTWISE_PAIR, 1)
    assert entry is not None
    for given in ([x, w1, b1, z, w2, b2], [x, w1, None, None, w2]):
        _, bias1, residual, _, bias2 = [*given, None][1:6]
        first = onnx_node("Conv", [x, w1] if bias1 is None else [x, w1, b1])
        first = np.maximum(first if residual is None else first + z, 0)
        second = np.tanh(onnx_node("Conv", [first, w2] if bias2 is None else [first, w2, b2]))
        exact = [None if array is None else torch.from_numpy(array) for array in given]
        judged = reference(Operation(Fused.POINTWISE_PAIR, attributes), exact)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float16, 4e-3)):
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in exact]
            run = entry.function(Call(attributes, 1), *tensors)
            assert isinstance(run, tuple)
            for made, judge, wanted in zip(run, judged, (first, second), strict=True):
                assert made.dtype == dtype
                for result, allowed in ((made, tolerance), (judge, 1e-12)):
                    error = np.linalg.norm(result.double().numpy() - wanted)
                    assert error < allowed * np.linalg.norm(wanted)


def test_the_second_of_a_pair_reads_the_first_as_it_is_written() -> None:
    """2049 is no float16 number: the second sum is of 2048."""
    one = torch.ones(1, 1, 1, 1).half()
    inputs = (one * 2048, one, one[0, :, 0, 0], None, one)
    first, second = reference(Operation(Fused.POINTWISE_PAIR), inputs)
    assert (first.item(), second.item()) == (2049, 2048)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_input_is_rounded_to_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(SEED)
    x, w = torch.randn(2, 8, 9, 9), torch.randn(4, 8, 3, 3).to(dtype)
    operation = Operation(Fused.CONV, {"kernel_shape": (3, 3)})
    (from_float,) = reference(operation, (x, w))
    (from_rounded,) = reference(operation, (x.to(dtype), w))
    (from_exact,) = reference(operation, (x, w.float()))
    torch.testing.assert_close(from_float, from_rounded, rtol=0, atol=0)
    assert not torch.equal(from_float, from_exact)


def test_the_caller_names_the_dtype_that_is_written() -> None:
    torch.manual_seed(SEED)
    entry = find(Fused.LINEAR, 1)
    assert entry is not None
    x, w = torch.randn(3, 100).half(), torch.randn(5, 100).half()
    y = entry.function(Call({"output_dtype": "float32"}, 1), x, w)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x.float() @ w.float().T, rtol=1e-5, atol=1e-4)


def test_sums_beyond_the_range_of_a_half_are_kept() -> None:
    """90000 overflows float16; the residual brings the sum back."""
    entry = find(Fused.LINEAR, 1)
    assert entry is not None
    x, w = torch.full((1, 9), 100.0).half(), torch.full((1, 9), 100.0).half()
    y = entry.function(Call({}, 1), x, w, None, torch.full((1, 1), -60000.0).half())
    assert isinstance(y, torch.Tensor)
    assert y.item() == 30000.0


def test_no_reference_of_a_standard_operator() -> None:
    with pytest.raises(Unsupported, match=r"ai\.onnx\.Softmax"):
        reference(Operation("ai.onnx.Softmax"), (torch.zeros(1),))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_agrees_with_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(SEED)
    x = torch.randn(2, 16, 15, 13, device="cuda", dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    w = torch.randn(24, 16, 3, 3, device="cuda", dtype=dtype) / 12
    b, z = torch.randn(24, device="cuda"), torch.randn(2, 24, 15, 13, device="cuda", dtype=dtype)
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), **RELU}
    entry = find(Fused.CONV, 1)
    assert entry is not None
    y = entry.function(Call(attributes, 1), x, w, b, z)
    assert isinstance(y, torch.Tensor)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (judge,) = reference(Operation(Fused.CONV, attributes), (x, w, b, z))
    error = (y.double() - judge).norm() / judge.norm()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert error < tolerance
