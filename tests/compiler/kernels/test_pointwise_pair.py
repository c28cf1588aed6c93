"""Two 1x1 convolutions in a row in one kernel, against float64."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import (
    H200,
    IDENTITY,
    RELU,
    TOLERANCE,
    activation,
    empty,
    image,
    relative_error,
    tensors,
)
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused
from peregrine.compiler.tactics.base import Config
from peregrine.compiler.tactics.triton_pointwise_pair import TritonPointwisePair
from peregrine.compiler.torch_ops.fused import reference

TACTIC = TritonPointwisePair()
SIGMOID = activation(ActivationKind.SIGMOID)
"""What it makes of the zeros that pad a tensor is not zero."""


def pair(
    shape: tuple[int, int, int, int],
    hidden: int,
    outputs: int,
    *,
    dtype: str = "float16",
    biases: tuple[bool, bool] = (True, True),
    residual: bool = True,
    first: Activation = RELU,
    second: Activation = RELU,
    gap: int = 0,
) -> Operation:
    """A `peregrine.PointwisePair`; each image is a slice of one with `gap` channels more."""
    n, channels, height, width = shape
    between, written = (n, hidden, height, width), (n, outputs, height, width)
    return Operation(
        Fused.POINTWISE_PAIR,
        {**first.attributes(), **second.attributes("second_")},
        (
            image(dtype, shape, channels + gap),
            TensorType.contiguous(dtype, (hidden, channels, 1, 1)),
            TensorType.contiguous(dtype, (hidden,)) if biases[0] else None,
            image(dtype, between, hidden + 2 * gap) if residual else None,
            TensorType.contiguous(dtype, (outputs, hidden, 1, 1)),
            TensorType.contiguous("float32", (outputs,)) if biases[1] else None,
        ),
        (image(dtype, between, hidden + 3 * gap), image(dtype, written, outputs + 4 * gap)),
        frozenset({1, 4} | ({2} if biases[0] else set()) | ({5} if biases[1] else set())),
        opset=1,
    )


def errors(operation: Operation, config: Config, seed: int = 0) -> list[float]:
    """The relative error of each output; they and their gaps are NaN before."""
    support = TACTIC.supports(operation, cases.DEVICE)
    assert support, support.reason
    inputs = tensors(operation, cases.DEVICE.name, seed)
    inputs[4] /= operation.outputs[0].shape[1] ** 0.5
    given = [t if i in operation.constants else None for i, t in enumerate(inputs)]
    packed = TACTIC.pack(operation, config, given)
    bound = [
        p if i in operation.constants else t
        for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
    ]
    outputs = [empty(kind, cases.DEVICE.name) for kind in operation.outputs]
    TACTIC.bind(operation, config, bound, outputs, None, None)()
    wanted = reference(operation, inputs)
    return [relative_error(y, truth) for y, truth in zip(outputs, wanted, strict=True)]


def tried(operation: Operation, most: int = 3) -> list[Config]:
    """Some of its configurations, the first among them."""
    configs = list(TACTIC.configs(operation, cases.DEVICE))
    return configs[:: -(-len(configs) // most)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "hidden", "outputs", "options"),
    [
        ((2, 16, 9, 7), 64, 16, {"gap": 8}),
        ((1, 24, 5, 11), 90, 20, {"first": SIGMOID, "second": IDENTITY}),
        ((3, 20, 7, 5), 33, 40, {"biases": (False, True), "first": SIGMOID, "gap": 3}),
        ((2, 33, 4, 6), 48, 7, {"biases": (True, False), "residual": False}),
        ((1, 7, 1, 1), 5, 3, {"biases": (False, False), "second": SIGMOID}),
    ],
)
def test_odd_sizes(shape, hidden, outputs, options, dtype):
    operation = pair(shape, hidden, outputs, dtype=dtype, **options)
    for config in tried(operation):
        first, second = errors(operation, config)
        assert first < TOLERANCE[dtype]
        # Of Y1, rounded at most one place off, the second product is made.
        assert second < 1.5 * TOLERANCE[dtype]


def test_a_gap_between_pixels_is_not_written():
    operation = pair((2, 16, 3, 5), 48, 24, gap=8)
    inputs = tensors(operation, cases.DEVICE.name)
    config = TACTIC.configs(operation, cases.DEVICE)[0]
    packed = TACTIC.pack(operation, config, inputs)
    outputs = [empty(kind, cases.DEVICE.name) for kind in operation.outputs]
    TACTIC.bind(operation, config, packed, outputs, None, None)()
    for y in outputs:
        channels, step = y.shape[1], y.stride(3)
        # Behind the last pixel there is no gap.
        pixels = y.as_strided((y.numel() // channels - 1, step), (step, 1))
        assert not y.isnan().any()
        assert pixels[:, channels:].isnan().all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_sizes(seed):
    chance = random.Random(seed)
    print(f"seed {seed}")
    operation = pair(
        (chance.randint(1, 3), chance.randint(1, 70), *chance.choices(range(1, 12), k=2)),
        chance.randint(1, 150),
        chance.randint(1, 70),
        residual=chance.random() < 0.7,
        biases=(chance.random() < 0.7, chance.random() < 0.7),
    )
    config = chance.choice(TACTIC.configs(operation, cases.DEVICE))
    assert max(errors(operation, config, seed)) < 1.5 * TOLERANCE["float16"]


def test_sums_overflow_no_half():
    """90000 is no float16 number; the residual brings it back before it is rounded."""
    operation = pair((1, 16, 2, 2), 16, 16, biases=(False, False), first=IDENTITY, second=IDENTITY)
    config = TACTIC.configs(operation, cases.DEVICE)[0]
    x, w1, _, z, w2, _ = tensors(operation, cases.DEVICE.name)
    x.fill_(100.0)
    w1.fill_(56.25)
    z.fill_(-60000.0)
    w2.copy_(torch.eye(16)[:, :, None, None])
    outputs = [empty(kind, cases.DEVICE.name) for kind in operation.outputs]
    packed = TACTIC.pack(operation, config, [x, w1, None, z, w2, None])
    TACTIC.bind(operation, config, packed, outputs, None, None)()
    for y in outputs:
        assert torch.equal(y, torch.full_like(y, 30000.0))


def test_what_it_refuses():
    good = pair((1, 16, 4, 4), 64, 16)

    def reason(operation: Operation) -> str:
        support = TACTIC.supports(operation, cases.DEVICE)
        assert not support
        return support.reason

    assert "float32" in reason(pair((1, 16, 4, 4), 64, 16, dtype="float32"))
    assert "no constant" in reason(replace(good, constants=frozenset({1, 2, 4})))
    assert "512" in reason(pair((1, 16, 4, 4), 64, 513))
    assert "512" in reason(pair((1, 513, 4, 4), 600, 16))
    y1, y2 = good.outputs
    assert "innermost" in reason(
        replace(good, outputs=(y1, TensorType.contiguous(y2.dtype, y2.shape)))
    )
    assert "dtypes" in reason(replace(good, outputs=(y1, replace(y2, dtype="bfloat16"))))
    assert "empty" in reason(pair((0, 16, 4, 4), 64, 16))
    assert "runs" in reason(Operation("ai.onnx.Conv"))


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize(
    ("channels", "side", "outputs"),
    [(64, 56, 64), (64, 56, 128), (128, 28, 128), (256, 14, 256), (256, 14, 512), (512, 7, 512)],
)
def test_configurations_of_resnet50(batch, channels, side, outputs):
    """None asks for more shared memory than there is; one image is no bargain."""
    operation = pair((batch, channels, side, side), 4 * channels, outputs)
    configs = TACTIC.configs(operation, H200)
    assert 1 <= len(configs) <= 8
    assert len({str(config) for config in configs}) == len(configs)
    predictions = [TACTIC.predict(operation, config, H200) for config in configs]
    assert predictions == sorted(predictions)
    moved = sum(kind.bytes for kind in (*operation.inputs, *operation.outputs) if kind)
    assert predictions[0] > moved / H200.bandwidth
    if batch == 1:
        assert predictions[0] > 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("batch", "channels", "side"), [(1, 64, 56), (5, 128, 28), (3, 512, 7)])
def test_a_gpu_agrees_in_every_configuration(batch, channels, side, dtype):
    operation = pair((batch, channels, side, side), 4 * channels, channels, dtype=dtype, gap=8)
    for config in TACTIC.configs(operation, cases.DEVICE):
        assert max(errors(operation, config)) < 1.5 * TOLERANCE[dtype]
