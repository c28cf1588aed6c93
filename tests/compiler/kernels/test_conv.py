"""The implicit GEMM against float64: every way of fetching and splitting, on odd sizes. On the GPU
where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import (
    IDENTITY,
    RELU,
    TOLERANCE,
    activation,
    conv,
    linear,
    random_convs,
    relative_error,
    tensors,
)
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import ActivationKind, Fused, Window
from peregrine.compiler.tactics._layers import precisions
from peregrine.compiler.tactics._tiles import Tiling
from peregrine.compiler.tactics.triton_branches import TritonBranches
from peregrine.compiler.tactics.triton_conv import TritonConv
from peregrine.compiler.torch_ops.fused import reference

POINTERS = Tiling(16, 32, 16, 4, 3)
TMA = replace(POINTERS, fetch="tma")
SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
ONE = Window((1, 1))
WAYS = {
    "pointers": POINTERS,
    "tma": TMA,
    "persistent": replace(TMA, programs=3),
    "residual ahead": replace(POINTERS, ahead=True),
    "boxed end": replace(TMA, boxed_end=True),
    "boxed end, persistent": replace(TMA, boxed_end=True, programs=3),
    "split by pointers": replace(POINTERS, split_k=3),
    "split in two kernels": replace(POINTERS, split_k=3, reduce="kernel"),
    "split by tma": replace(TMA, split_k=3),
    "split by tma in two kernels": replace(TMA, split_k=3, reduce="kernel"),
}


def _error(operation: Operation, tiling: Tiling, seed: int = 0, tactic=None) -> float:
    """The larger relative error of two runs, which must be equal bit by bit."""
    tactic = tactic or TritonConv()
    support = tactic.supports(operation, cases.DEVICE)
    assert support, support.reason
    inputs = tensors(operation, cases.DEVICE.name, seed)
    (expected,) = reference(operation, inputs)
    config = {**tiling.config(), "precision": precisions(operation)[0], "pdl": False}
    first, second = cases.run(tactic, operation, config, inputs, times=2)
    assert first.equal(second)
    return relative_error(first, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("shape", "channels", "window"),
    [
        ((2, 24, 9, 7), 24, SAME),
        ((1, 40, 5, 6), 32, Window((3, 3), (2, 2), (1, 1, 0, 0))),
        ((3, 16, 6, 8), 48, Window((3, 3), (2, 2), (1, 1, 1, 1))),
        ((2, 32, 7, 5), 24, Window((1, 1), (2, 2))),
        ((2, 24, 5, 7), 40, ONE),
        ((1, 16, 8, 9), 8, Window((5, 3), (1, 1), (4, 2, 4, 2), (2, 2))),
        ((1, 8, 1, 1), 8, SAME),
    ],
)
def test_every_way_gives_the_convolution(way, shape, channels, window):
    operation = conv(shape, channels, window, dtype="float16", residual=True)
    assert _error(operation, WAYS[way]) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 2), (2, 1), (2, 0, 1, 1), (1, 2)),
        Window((2, 2), (3, 3), (0, 1, 1, 0)),
        Window((1, 1), (1, 2), (1, 0, 0, 1)),
        Window((7, 7), (2, 2), (3, 3, 3, 3)),
    ],
)
@pytest.mark.parametrize("channels", [3, 20])
def test_windows_and_channels_that_fit_no_block(window, channels):
    operation = conv((2, channels, 11, 9), 12, window, dtype="float16", bias=False)
    assert _error(operation, replace(POINTERS, split_k=2)) < TOLERANCE["float16"]


@pytest.mark.parametrize("split", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("fetch", ["pointers", "tma"])
def test_splits_that_divide_nothing(fetch, split):
    # 9 taps of 2 blocks: 18 steps.
    operation = conv((1, 32, 4, 5), 16, SAME, dtype="float16")
    assert _error(operation, replace(POINTERS, fetch=fetch, split_k=split)) < TOLERANCE["float16"]


@pytest.mark.parametrize("tiling", [POINTERS, TMA], ids=["pointers", "tma"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_slices_of_channels(tiling, dtype):
    operation = conv((2, 16, 6, 5), 24, SAME, dtype=dtype, slice_of=40)
    assert _error(operation, tiling) < TOLERANCE[dtype]


@pytest.mark.parametrize("tiling", [POINTERS, TMA], ids=["pointers", "tma"])
def test_nothing_is_written_beside_a_slice(tiling):
    operation = conv((2, 16, 6, 5), 24, SAME, dtype="float32", slice_of=40)
    inputs = tensors(operation, cases.DEVICE.name)
    config = {**tiling.config(), "precision": precisions(operation)[0], "pdl": False}
    packed = TritonConv().pack(operation, config, inputs)
    whole = torch.full((2, 40, 6, 5), torch.nan, device=cases.DEVICE.name)
    whole = whole.to(memory_format=torch.channels_last)
    TritonConv().bind(operation, config, packed, [whole[:, 8:32]], None, None)()
    assert whole[:, 8:32].isfinite().all()
    assert whole[:, :8].isnan().all()
    assert whole[:, 32:].isnan().all()


@pytest.mark.parametrize("way", ["pointers", "split by pointers"])
@pytest.mark.parametrize("tf32", [False, True])
def test_float32(way, tf32):
    operation = conv((2, 20, 6, 5), 24, SAME, dtype="float32", residual=True, tf32=tf32)
    assert _error(operation, WAYS[way]) < (3e-3 if tf32 else TOLERANCE["float32"])


def test_an_output_of_another_dtype():
    operation = conv((1, 16, 5, 6), 24, SAME, dtype="float16", output_dtype="float32")
    assert _error(operation, POINTERS) < 5e-7


@pytest.mark.parametrize("kind", ActivationKind)
def test_every_activation(kind):
    operation = conv((2, 16, 5, 6), 24, ONE, dtype="float32", activation=activation(kind))
    assert _error(operation, POINTERS) < TOLERANCE["float32"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(1, 72), (5, 48), (2, 3, 40)])
def test_matrix_products(way, shape):
    operation = linear(shape, 56, dtype="float16", residual=True, activation=RELU)
    assert _error(operation, WAYS[way]) < TOLERANCE["float16"]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, interpreting
@pytest.mark.parametrize("way", ["pointers", "split by pointers"])
def test_nan_and_infinity_reach_the_output(way):
    operation = conv((1, 16, 4, 4), 16, ONE, dtype="float16", activation=RELU)
    inputs = tensors(operation, cases.DEVICE.name)
    assert inputs[0] is not None
    inputs[0][0, 3, 1, 2] = float("nan")
    inputs[0][0, 3, 2, 1] = float("inf")
    config = {**WAYS[way].config(), "precision": precisions(operation)[0], "pdl": False}
    (output,) = cases.run(TritonConv(), operation, config, inputs)
    assert output[0, :, 1, 2].isnan().all()
    assert not output[0, :, 2, 1].isfinite().all()
    assert output[0, :, 3, :].isfinite().all()


def branches(
    shape: tuple[int, int, int, int],
    outputs: tuple[int, int],
    window: Window,
    *,
    biases: tuple[bool, bool] = (True, True),
    dtype: str = "float16",
) -> Operation:
    """A `peregrine.ConvBranches`."""
    n, c, *image = shape
    first, second = outputs
    height, width = window.output(*image)
    inputs = [
        TensorType.channels_last(dtype, shape),
        TensorType.contiguous(dtype, (first, c, 1, 1)),
        TensorType.contiguous(dtype, (first,)) if biases[0] else None,
        TensorType.contiguous(dtype, (second, c, *window.kernel)),
        TensorType.contiguous(dtype, (second,)) if biases[1] else None,
    ]
    return Operation(
        Fused.CONV_BRANCHES,
        {**window.attributes(), **RELU.attributes()},
        tuple(inputs),
        (TensorType.channels_last(dtype, (n, first + second, height, width)),),
        frozenset(i for i in range(1, 5) if inputs[i] is not None),
        opset=1,
    )


@pytest.mark.parametrize("fetch", ["pointers", "tma"])
@pytest.mark.parametrize("biases", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("outputs", [(20, 36), (32, 16)])
def test_branches(fetch, biases, outputs):
    operation = branches((2, 24, 9, 7), outputs, SAME, biases=biases)
    tiling = replace(POINTERS, fetch=fetch)
    assert _error(operation, tiling, tactic=TritonBranches()) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    "window", [Window((3, 3), (2, 2), (1, 1, 1, 1)), Window((5, 3), (1, 1), (2, 1, 2, 1)), ONE]
)
def test_branches_with_other_windows(window):
    operation = branches((2, 24, 9, 7), (16, 24), window)
    assert _error(operation, POINTERS, tactic=TritonBranches()) < TOLERANCE["float16"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_everything_that_is_tried_on_random_layers(dtype):
    """Each configuration that the tactic offers, with and without a slice, programmatic dependent
    launch included."""
    tactic = TritonConv()
    layers = random_convs(11, 6, dtype, slice_of=80) + random_convs(12, 6, dtype)
    layers.append(linear((1, 2048), 1000, dtype=dtype, activation=IDENTITY))
    layers.append(conv((1, 512, 7, 7), 512, SAME, dtype=dtype, residual=True))
    for operation in layers:
        configs = tactic.configs(operation, cases.H200)
        tactic.compile(operation, configs, cases.H200)
        inputs = tensors(operation, cases.DEVICE.name, 3)
        (expected,) = reference(operation, inputs)
        for config in configs:
            first, second = cases.run(tactic, operation, config, inputs, times=2)
            assert first.equal(second), (operation, config)
            error = relative_error(first, expected)
            assert error < (1e-5 if dtype == "float32" else TOLERANCE[dtype]), (operation, config)
