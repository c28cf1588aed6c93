"""The convolutions whose windows slide over shared memory against float64, on a GPU that has
Hopper's tensor cores: Gluon has no interpreter."""

from __future__ import annotations

import random

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import (
    RELU,
    TOLERANCE,
    activation,
    conv,
    relative_error,
    tensors,
)
from peregrine.compiler.operation import TensorType
from peregrine.compiler.operators import ActivationKind, Fused, Window
from peregrine.compiler.tactics.triton_stem_planes import TritonConvMaxPoolPlanes, TritonStemPlanes

pytestmark = pytest.mark.gpu

_SEVEN = Window((7, 7), (2, 2), (3, 3, 3, 3))
_SAME = Window((3, 3), (2, 2), (1, 1, 1, 1))
_POOL = Window((3, 3), (2, 2))
_PADDED_POOL = Window((3, 3), (2, 2), (1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _there():
    support = TritonStemPlanes().supports(
        conv((1, 3, 9, 9), 8, _SEVEN, dtype="float16"), cases.DEVICE
    )
    if not support:
        pytest.skip(support.reason)


def _tactic(operation):
    pooled = operation.operator == Fused.CONV_MAX_POOL
    return TritonConvMaxPoolPlanes() if pooled else TritonStemPlanes()


def _worst(operation, seed=0) -> float:
    """The largest relative error of programs of one row, of some and of all, both ways of writing:
    so few images alone would be cut into rows."""
    tactic = _tactic(operation)
    assert tactic.supports(operation, cases.DEVICE)
    inputs = tensors(operation, cases.DEVICE.name, seed)
    truth = cases.reference(operation, inputs)[0]
    found = []
    for rows in (1, 3, operation.outputs[0].shape[2]):
        for behind in (True, False):
            outputs = cases.run(tactic, operation, {"rows": rows, "behind": behind}, inputs, 3)
            found += [relative_error(y, truth) for y in outputs]
    return max(found)


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("float32", (61, 75)),
        ("float16", (40, 600)),
        ("bfloat16", (9, 7)),
        ("channels last", (34, 46)),
    ],
)
def test_any_layout_dtype_and_size_of_the_image(source, size):
    operation = conv((2, 3, *size), 40, _SEVEN, dtype="float16", slice_of=64)
    operation = cases.with_input(operation, _image(operation, source))
    assert _worst(operation) < TOLERANCE["float16"]
    assert _worst(cases.conv_max_pool(operation, _PADDED_POOL)) < TOLERANCE["float16"]


@pytest.mark.parametrize(
    ("channels", "window"),
    [
        (3, Window((7, 7), (2, 2))),
        (3, _SAME),
        (1, _SEVEN),
        (4, Window((3, 3), (2, 2), (0, 0, 1, 1))),
        (2, Window((4, 6), (2, 2), (1, 2, 0, 1))),
        (3, Window((6, 5), (2, 2), (2, 2, 2, 2))),
    ],
)
def test_any_window_and_number_of_channels(channels, window):
    operation = conv((2, channels, 33, 47), 20, window, dtype="float16", bias=False)
    operation = cases.with_input(operation, _image(operation, "float32"))
    assert _worst(operation) < TOLERANCE["float16"]


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("pool", [_POOL, _PADDED_POOL])
@pytest.mark.parametrize(("outputs", "size"), [(64, (50, 63)), (96, (52, 66))])
def test_a_pooling_behind_it(outputs, size, pool, up):
    operation = cases.conv_max_pool(
        conv((2, 3, *size), outputs, _SAME, dtype="float16"), pool, up=up
    )
    operation = cases.with_input(operation, _image(operation, "float32"))
    assert _worst(operation) < TOLERANCE["float16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", [ActivationKind.LEAKY_RELU, ActivationKind.GELU])
def test_any_activation(kind, dtype):
    operation = conv((1, 3, 31, 33), 24, _SAME, dtype=dtype, activation=activation(kind))
    assert _worst(operation) < TOLERANCE[dtype]
    assert _worst(cases.conv_max_pool(operation, _PADDED_POOL)) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [_SAME, _SEVEN, Window((7, 7), (2, 2)), Window((4, 4), (2, 2))])
@pytest.mark.parametrize("pooled", [False, True])
def test_nan_goes_where_its_windows_are(pooled, window):
    operation = conv((1, 3, 40, 40), 8, window, dtype="float16", activation=RELU)
    if pooled:
        operation = cases.conv_max_pool(operation, _PADDED_POOL, up=True)
    inputs = tensors(operation, cases.DEVICE.name)
    inputs[0][0, 1, 16, 17] = float("nan")
    inputs[0][0, 2, 39, 39] = float("nan")
    expected = cases.reference(operation, inputs)[0].isnan()
    assert 0 < expected.sum() < expected.numel()
    for behind in (True, False):
        config = {"rows": 5, "behind": behind}
        assert cases.run(_tactic(operation), operation, config, inputs)[0].isnan().equal(expected)


@pytest.mark.parametrize("seed", range(4))
def test_odd_sizes(seed):
    print("seed", seed)
    chance = random.Random(seed)
    dtype = chance.choice(["float16", "bfloat16"])
    kernel = chance.choice([3, 4, 7])
    pads = tuple(chance.randint(0, kernel // 2) for _ in range(4))
    window = Window((kernel, kernel), (2, 2), pads)
    shape = cases.odd_shape(chance, channels=3)
    operation = conv(shape, chance.randint(1, 128), window, dtype=dtype)
    source = chance.choice(["float32", "float16", "channels last"])
    operation = cases.with_input(operation, _image(operation, source))
    assert _worst(operation, seed=seed) < TOLERANCE[dtype]
    pooled = cases.conv_max_pool(operation, chance.choice([_POOL, _PADDED_POOL]), up=seed % 2 == 0)
    assert _worst(pooled, seed=seed) < TOLERANCE[dtype]


def _image(operation, source) -> TensorType:
    kind = operation.inputs[0]
    if source == "channels last":
        return kind
    return TensorType.contiguous(source, kind.shape)
