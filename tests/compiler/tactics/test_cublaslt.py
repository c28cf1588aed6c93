"""Matrix products by torch's BLAS: the same calls on a CPU and on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch

from compiler.tactics.operations import (
    H200,
    IDENTITY,
    TOLERANCE,
    activation,
    conv,
    error_of,
    linear,
    tensors,
)
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.tactics.cublaslt import CublasLt

_POINT = Window((1, 1))
_TACTIC = CublasLt()
_OPERATIONS = {
    "linear": linear((5, 7), 9),
    "one row": linear((1, 33), 17),
    "three dimensions": linear((2, 3, 5), 4, residual=True),
    "four dimensions": linear((2, 3, 5, 6), 4, activation=activation(ActivationKind.RELU)),
    "no bias": linear((6, 8), 3, bias=False),
    "residual, no bias": linear((6, 8), 3, bias=False, residual=True),
    "image": conv((2, 6, 5, 7), 10, _POINT, residual=True),
    "image of one column": conv((3, 6, 5, 1), 10, _POINT),
    "one pixel": conv((3, 6, 1, 1), 10, _POINT, bias=False),
    "slices": conv((2, 6, 5, 7), 10, _POINT, slice_of=16, activation=IDENTITY),
    "slices with a residual": conv((2, 6, 5, 7), 10, _POINT, slice_of=16, residual=True),
}


def _close(operation: Operation, device: str) -> None:
    dtype = operation.outputs[0].dtype
    for config in _TACTIC.configs(operation, H200):
        error = error_of(_TACTIC, operation, config, device)
        # Sums of halves may be rounded once a pass.
        assert error <= 3 * TOLERANCE[dtype], (config, error)


@pytest.mark.parametrize("name", _OPERATIONS)
def test_every_way_gives_what_float64_gives(name):
    operation = _OPERATIONS[name]
    assert _TACTIC.supports(operation, H200), _TACTIC.supports(operation, H200).reason
    assert _TACTIC.configs(operation, H200)
    _close(operation, "cpu")


@pytest.mark.parametrize("kind", [k for k in ActivationKind if k is not ActivationKind.GELU_TANH])
@pytest.mark.parametrize("residual", [False, True])
def test_every_activation(kind, residual):
    """GELU's approximation is the exact function in torch's CPU epilogue: that is for a GPU."""
    _close(linear((5, 7), 9, residual=residual, activation=activation(kind)), "cpu")


def test_the_epilogue_of_cublaslt_is_the_first_guess_where_it_does_all():
    fused = [activation(ActivationKind.RELU), activation(ActivationKind.GELU_TANH), IDENTITY]
    for kind in fused:
        first, *others = _TACTIC.configs(linear((64, 64), 64, activation=kind), H200)
        assert first["epilogue"] == "fused"
        assert all(config["epilogue"] == "separate" for config in others)
    silu = linear((64, 64), 64, activation=activation(ActivationKind.SILU))
    assert {c["epilogue"] for c in _TACTIC.configs(silu, H200)} == {"separate"}
    bare = linear((64, 64), 64, bias=False)
    assert {c["epilogue"] for c in _TACTIC.configs(bare, H200)} == {"separate"}


def test_passes_over_the_output_cost_time():
    wide = linear((4096, 64), 4096, activation=activation(ActivationKind.RELU))
    predicted = [_TACTIC.predict(wide, c, H200) for c in _TACTIC.configs(wide, H200)]
    assert predicted[0] < min(predicted[1:])
    # The output is written once, and read and written once more for the bias and for the ReLU.
    assert predicted[1] > 2.5 * predicted[0]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (conv((1, 8, 9, 9), 8, Window((3, 3))), "one element"),
        (conv((1, 8, 9, 9), 8, Window((1, 1), (2, 2))), "stride 1"),
        (conv((1, 8, 9, 9), 8, _POINT, group=2), "one group"),
        (conv((1, 8, 9, 9), 8, Window((1, 1), pads=(1, 1, 1, 1))), "one element"),
        (conv((1, 8, 9, 9), 8, _POINT, output_dtype="float64"), "one dtype"),
        (linear((4, 8), 8, dtype="int8"), "does not multiply int8"),
        (Operation("ai.onnx.Relu"), "ai.onnx.Relu"),
    ],
)
def test_what_it_does_not_take_has_a_reason(operation, reason):
    support = _TACTIC.supports(operation, H200)
    assert not support
    assert reason in support.reason


def test_images_with_the_width_innermost_are_no_matrices():
    operation = conv((2, 8, 9, 9), 8, _POINT)
    x = TensorType.contiguous("float32", (2, 8, 9, 9))
    other = Operation(operation.operator, operation.attributes, (x, *operation.inputs[1:]),
                      operation.outputs)  # fmt: skip
    assert "X as rows" in _TACTIC.supports(other, H200).reason


def test_it_needs_a_gpu():
    assert "NVIDIA GPU" in _TACTIC.supports(linear((4, 8), 8), Device("cpu")).reason


def test_packed_weights_lie_in_rows_and_have_one_dtype():
    operation = conv((1, 8, 3, 3), 4, _POINT, dtype="float16")
    _, weight, bias, _ = tensors(operation)
    assert weight is not None
    assert bias is not None
    packed = _TACTIC.pack(operation, {}, [None, weight, bias.float(), None])
    assert packed[0] is None
    assert packed[1].shape == (4, 8)
    assert packed[1].is_contiguous()
    assert packed[2].dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_on_a_gpu(dtype):
    for rows, inner, channels in ((1, 64, 1000), (37, 129, 77), (256, 512, 512)):
        for residual in (False, True):
            for kind in ActivationKind:
                operation = linear((rows, inner), channels, dtype=dtype, residual=residual,
                                   activation=activation(kind))  # fmt: skip
                _close(operation, "cuda:0")
    for slice_of in (0, 96):
        _close(conv((3, 48, 13, 7), 64, _POINT, dtype=dtype, slice_of=slice_of), "cuda:0")


@pytest.mark.gpu
def test_settings_of_torch_are_what_they_were():
    matmul = torch.backends.cuda.matmul
    before = (matmul.fp32_precision, torch.backends.cuda.preferred_blas_library(),
              matmul.allow_fp16_reduced_precision_reduction)  # fmt: skip
    _close(linear((64, 64), 64, residual=True), "cuda:0")
    assert before == (matmul.fp32_precision, torch.backends.cuda.preferred_blas_library(),
                      matmul.allow_fp16_reduced_precision_reduction)  # fmt: skip
