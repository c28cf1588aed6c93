"""cuDNN's graph API: what is refused and how tensors are described anywhere, plans where cuDNN's
libraries are (it plans for a GPU that is not here), outputs on a GPU."""

from __future__ import annotations

import functools
import itertools
import json
import random
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.tactics.operations import (
    H200,
    IDENTITY,
    RELU,
    TOLERANCE,
    activation,
    conv,
    error_of,
    image,
    linear,
    random_convs,
)
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics import cudnn_graph
from peregrine.compiler.tactics._cudnn import nhwc_strides
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.tactics.cudnn_graph import CudnnGraph
from peregrine.errors import Unsupported

_TACTIC = CudnnGraph()
_SAME = Window((3, 3), pads=(1, 1, 1, 1))
_HALF = functools.partial(conv, dtype="float16")


# What it takes, by types alone


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (linear((4, 8), 8), "peregrine.Linear"),
        (_HALF((1, 8, 9, 9), 8, _SAME, activation=activation(ActivationKind.HARD_SWISH)), "fuse"),
        (conv((1, 8, 9, 9), 8, _SAME, dtype="float64"), "float64"),
        (conv((1, 8, 9, 9), 8, _SAME, dtype="int8"), "int8"),
    ],
)
def test_what_it_does_not_take_has_a_reason(operation, reason):
    support = _TACTIC.supports(operation, H200)
    assert not support
    assert reason in support.reason


def test_it_needs_a_gpu():
    support = _TACTIC.supports(_HALF((1, 8, 9, 9), 8, _SAME), Device("cpu"))
    assert "NVIDIA GPU" in support.reason


def test_it_needs_channels_that_lie_together():
    operation = _HALF((2, 8, 9, 9), 8, _SAME)
    x = TensorType.contiguous("float16", (2, 8, 9, 9))
    other = Operation(operation.operator, operation.attributes, (x, *operation.inputs[1:]),
                      operation.outputs)  # fmt: skip
    assert "X with adjacent channels" in _TACTIC.supports(other, H200).reason


def test_without_its_frontend_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    cudnn_graph.available.cache_clear()
    support = _TACTIC.supports(_HALF((1, 8, 9, 9), 8, _SAME), H200)
    cudnn_graph.available.cache_clear()
    assert not support
    assert "frontend" in support.reason
    assert "nvidia-cudnn-frontend" in support.fix


# Tensors


@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 5])] * 4),
    st.integers(0, 6),
    st.randoms(use_true_random=False),
)
def test_strides_tell_where_every_element_is(shape, gap, chance):
    """Of any image with adjacent channels, whatever the strides of dimensions of one element."""
    _, c, h, w = shape
    true = image("float16", shape, c + gap).strides
    assert true is not None
    told = tuple(s if size > 1 else chance.randint(0, 99)
                 for s, size in zip(true, shape, strict=True))  # fmt: skip
    found = nhwc_strides(TensorType("float16", shape, told))
    assert found is not None
    for index in itertools.product(*map(range, shape)):
        place = [sum(i * s for i, s in zip(index, strides, strict=True))
                 for strides in (true, found)]  # fmt: skip
        assert place[0] == place[1]
    # And cuDNN sees NHWC: a dimension's stride is at least the extent of all inside it.
    assert found[1] == 1
    assert found[3] >= c
    assert found[2] >= w * found[3]
    assert found[0] >= h * found[2]


def test_strides_of_other_images():
    assert nhwc_strides(TensorType.contiguous("float16", (2, 3, 4, 5))) is None
    assert nhwc_strides(TensorType("float16", (2, 3, 4, 5), None)) is None
    assert nhwc_strides(TensorType.contiguous("float16", (2, 3, 4))) is None
    # Rows that lie in one another.
    assert nhwc_strides(TensorType("float16", (2, 3, 4, 5), (60, 1, 3, 3))) is None


def test_weights_are_packed_as_cudnn_reads_them():
    weight = torch.randn(4, 3, 2, 5)
    operation = _HALF((1, 3, 9, 9), 4, Window((2, 5)))
    packed = _TACTIC.pack(operation, {}, [None, weight, None])
    assert packed[1].is_contiguous()
    assert packed[1].shape == (4, 2, 5, 3)
    assert torch.equal(packed[1].permute(0, 3, 1, 2), weight)


def test_a_bias_that_is_missing_is_a_step_s_own_zeros():
    plain = _HALF((1, 8, 9, 9), 6, _SAME, bias=False, activation=IDENTITY)
    assert _TACTIC.state(plain, {}, H200) == 0
    assert _TACTIC.state(_HALF((1, 8, 9, 9), 6, _SAME), {}, H200) == 0
    assert _TACTIC.state(_HALF((1, 8, 9, 9), 6, _SAME, bias=False), {}, H200) == 12
    float32 = conv((1, 8, 9, 9), 6, _SAME, bias=False, residual=True, activation=IDENTITY)
    assert _TACTIC.state(float32, {}, H200) == 24


def test_a_bias_takes_the_dtype_of_the_weights():
    weight, bias = torch.randn(4, 3, 3, 3).half(), torch.randn(4)
    packed = _TACTIC.pack(_HALF((1, 3, 9, 9), 4, _SAME), {}, [None, weight, bias])
    assert packed[2].dtype == torch.float16


def test_fallbacks_and_later_guesses_are_predicted_slower():
    operation = _HALF((8, 64, 56, 56), 64, _SAME)
    configs = [{"plan": "a", "mode": mode, "first": "residual", "rank": rank}
               for mode in ("A", "FALLBACK") for rank in (0, 1, 20)]  # fmt: skip
    predicted = [_TACTIC.predict(operation, config, H200) for config in configs]
    assert predicted == sorted(predicted)
    assert predicted[0] > 2 * 8 * 64 * 56 * 56 * 2 / H200.bandwidth


# Plans, for an H200 that need not be here

_PROPERTIES = {
    "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
    "pciDeviceId": 0, "multiProcessorCount": 132, "warpSize": 32, "isTccDriver": 0,
    "supportCoopLaunch": 1, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "l2CacheSize": 62914560,
    "totalGlobalMem": 150_000_000_000, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000,
    "schemaVersion": 1,
}  # fmt: skip
"""As cuDNN serialises a device."""


@pytest.fixture(scope="module")
def h200() -> Any:
    """cuDNN's description of an H200."""
    cudnn = pytest.importorskip("cudnn")
    if not cudnn_graph.available():
        pytest.skip(cudnn_graph.available().reason)
    facts = {**_PROPERTIES, "cudnnVersion": cudnn.backend_version()}
    return cudnn.create_device_properties(json.dumps(facts))


def _ranked(operation: Operation, h200: Any, first: str = "residual", mode: str = "A") -> Any:
    return cudnn_graph.Graph.ranked(operation, first, mode, device_property=h200)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", [IDENTITY, RELU])
def test_cudnn_fuses_bias_residual_and_relu(h200, bias, residual, kind):
    operation = _HALF((1, 64, 56, 56), 64, _SAME, bias=bias, residual=residual, activation=kind)
    graph = _ranked(operation, h200)
    assert len(graph.plans) > 10, graph.refusal
    assert all(graph.build(name).workspace >= 0 for name in graph.plans)


@pytest.mark.parametrize(
    "operation",
    [
        _HALF((2, 64, 13, 11), 64, _SAME, slice_of=128),
        _HALF((2, 64, 13, 11), 64, Window((3, 3), (2, 2), (0, 0, 1, 1))),
        _HALF((2, 64, 13, 11), 64, _SAME, group=4),
        _HALF((2, 64, 13, 11), 64, _SAME, group=64),
        conv((2, 64, 13, 11), 64, _SAME, dtype="bfloat16", residual=True),
        conv((2, 64, 13, 11), 64, _SAME, dtype="float32", tf32=True),
        _HALF((1, 64, 1, 1), 64, Window((1, 1))),
        _HALF((3, 3, 224, 224), 64, Window((7, 7), (2, 2), (3, 3, 3, 3))),
    ],
)
def test_cudnn_takes(h200, operation):
    graph = _ranked(operation, h200)
    assert graph.plans, graph.refusal
    graph.build(next(iter(graph.plans)))


def test_a_plan_has_the_same_name_in_another_graph(h200):
    operation = _HALF((1, 64, 28, 28), 128, _SAME, residual=True)
    first, second = _ranked(operation, h200), _ranked(operation, h200)
    assert list(first.plans) == list(second.plans)
    for name in first.plans:
        assert first.build(name).workspace == second.build(name).workspace


def test_float32_plans_round_to_tf32_only_where_that_is_asked_for(h200):
    def built(*, tf32: bool) -> set[str]:
        graph = _ranked(conv((2, 64, 27, 27), 64, _SAME, dtype="float32", tf32=tf32), h200)
        return {name for name in graph.usable() if graph.build(name).workspace >= 0}

    exact, rounding = built(tf32=False), built(tf32=True)
    assert exact
    assert exact < rounding


def test_a_plan_that_is_not_proposed_here_says_what_to_do(h200):
    graph = _ranked(_HALF((1, 64, 28, 28), 64, _SAME), h200)
    with pytest.raises(Unsupported, match="eng999") as caught:
        graph.build("eng999_k2=5")
    assert "Build the engine again" in caught.value.fix


def test_an_activation_that_no_engine_has_is_a_refusal_not_a_crash(h200):
    graph = _ranked(_HALF((1, 64, 28, 28), 64, _SAME, group=64,
                          activation=activation(ActivationKind.GELU)), h200)  # fmt: skip
    assert graph.plans or graph.refusal


# Outputs


def _compare(operation: Operation, most: int = 8) -> int:
    """Check up to so many plans; how many ran."""
    support = _TACTIC.supports(operation, H200)
    assert support, support.reason
    configs = list(_TACTIC.configs(operation, H200))
    ran = 0
    for config in random.Random(0).sample(configs, min(most, len(configs))):
        try:
            _TACTIC.workspace(operation, config, H200)
        except Unsupported:
            continue
        dtype = operation.inputs[0].dtype
        error = error_of(_TACTIC, operation, config, "cuda:0")
        assert error <= (3e-3 if operation.tf32 else 2 * TOLERANCE[dtype]), (config, error)
        ran += 1
    return ran


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_random_convolutions_against_float64(dtype):
    for operation in random_convs(20, 8, dtype):
        assert _compare(operation), operation


@pytest.mark.gpu
@pytest.mark.parametrize(
    "kind", [ActivationKind.CLIP, ActivationKind.LEAKY_RELU, ActivationKind.SILU]
)
def test_activations_on_a_gpu(kind):
    operation = _HALF((2, 64, 13, 11), 64, _SAME, activation=activation(kind))
    if not (support := _TACTIC.supports(operation, H200)):
        pytest.skip(support.reason)  # this cuDNN has no engine for it
    assert _compare(operation)


@pytest.mark.gpu
def test_slices_groups_and_uneven_pads_on_a_gpu():
    for operation in (
        _HALF((2, 64, 13, 11), 64, _SAME, slice_of=128),
        _HALF((2, 64, 13, 11), 64, Window((3, 3), (2, 2), (0, 0, 1, 1))),
        _HALF((2, 64, 13, 11), 64, _SAME, group=4),
        _HALF((2, 64, 13, 11), 64, _SAME, group=64),
        conv((2, 64, 13, 11), 64, _SAME, tf32=True),
    ):
        assert _compare(operation), operation


@pytest.mark.gpu
def test_a_slice_at_an_odd_address_is_an_error_before_cudnn_reads_it():
    operation = _HALF((1, 64, 8, 8), 64, _SAME)
    config = _TACTIC.configs(operation, H200)[0]
    flat = torch.zeros(64 * 64 + 1, dtype=torch.float16, device="cuda")
    x = flat[1:].as_strided((1, 64, 8, 8), operation.inputs[0].strides)
    y = torch.empty_like(x)
    weight, bias = torch.zeros(64, 3, 3, 64, device="cuda").half(), flat[:64]
    with pytest.raises(Unsupported, match="16 bytes"):
        _TACTIC.bind(operation, config, [x, weight, bias, None], [y], None, None)
