"""Operations for the tests of tactics, with random tensors and what they should give."""

from __future__ import annotations

import random

import torch

from peregrine.compiler.attributes import torch_dtype
from peregrine.compiler.operation import Operation, TensorType, channels_last_strides
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.torch_ops.fused import reference

H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)
RELU = Activation(ActivationKind.RELU)
IDENTITY = Activation()
PARAMETERS = {
    ActivationKind.CLIP: (0.0, 1.5),
    ActivationKind.LEAKY_RELU: (0.1, 0.0),
    ActivationKind.HARD_SIGMOID: (0.3, 0.4),
}
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Relative error of one sum in float32, rounded once or twice to the dtype."""


def activation(kind: ActivationKind) -> Activation:
    return Activation(kind, *PARAMETERS.get(kind, (0.0, 0.0)))


def image(dtype: str, shape: tuple[int, int, int, int], channels: int = 0) -> TensorType:
    """Channels-last; a slice of a tensor with `channels` where that is given."""
    n, c, h, w = shape
    return TensorType(dtype, shape, channels_last_strides((n, channels or c, h, w)))


def conv(
    shape: tuple[int, int, int, int],
    channels: int,
    window: Window,
    *,
    dtype: str = "float32",
    group: int = 1,
    bias: bool = True,
    residual: bool = False,
    activation: Activation = RELU,
    tf32: bool = False,
    slice_of: int = 0,
    output_dtype: str = "",
) -> Operation:
    """A `peregrine.Conv` over an image of this shape; X and Y are slices of `slice_of` channels
    where that is given."""
    height, width = window.output(*shape[2:])
    written = (shape[0], channels, height, width)
    attributes = {**window.attributes(), "group": group, **activation.attributes()}
    if output_dtype:
        attributes["output_dtype"] = output_dtype
    weight = (channels, shape[1] // group, *window.kernel)
    return Operation(
        Fused.CONV,
        attributes,
        (
            image(dtype, shape, slice_of),
            TensorType.contiguous(dtype, weight),
            TensorType.contiguous(dtype, (channels,)) if bias else None,
            image(dtype, written) if residual else None,
        ),
        (image(output_dtype or dtype, written, slice_of),),
        frozenset({1, 2} if bias else {1}),
        opset=1,
        tf32=tf32,
    )


def linear(
    shape: tuple[int, ...],
    channels: int,
    *,
    dtype: str = "float32",
    bias: bool = True,
    residual: bool = False,
    activation: Activation = IDENTITY,
) -> Operation:
    """A `peregrine.Linear` over a tensor of this shape."""
    written = (*shape[:-1], channels)
    return Operation(
        Fused.LINEAR,
        activation.attributes(),
        (
            TensorType.contiguous(dtype, shape),
            TensorType.contiguous(dtype, (channels, shape[-1])),
            TensorType.contiguous(dtype, (channels,)) if bias else None,
            TensorType.contiguous(dtype, written) if residual else None,
        ),
        (TensorType.contiguous(dtype, written),),
        frozenset({1, 2} if bias else {1}),
        opset=1,
    )


def empty(kind: TensorType, device: str) -> torch.Tensor:
    """With the strides of the type, NaN in the gaps too."""
    flat = torch.full(
        (kind.extent // kind.itemsize,), float("nan"), dtype=torch_dtype(kind.dtype), device=device
    )
    return flat.as_strided(kind.shape, kind.strides)


def tensors(operation: Operation, device: str = "cpu", seed: int = 0) -> list[torch.Tensor | None]:
    """Random inputs; weights scaled so that sums keep the size of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    made: list[torch.Tensor | None] = []
    for index, kind in enumerate(operation.inputs):
        if kind is None:
            made.append(None)
            continue
        values = torch.randn(kind.shape, generator=generator, dtype=torch.float64)
        if index == 1:
            values /= (kind.elements / kind.shape[0]) ** 0.5
        made.append(empty(kind, device).copy_(values))
    return made


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected||; infinite where anything is not a number."""
    off = (actual.double() - expected.double()).norm() / expected.double().norm()
    return float(off) if off == off else float("inf")


def error_of(tactic, operation: Operation, config, device: str = "cpu", seed: int = 0) -> float:
    """The relative error of a tactic's output against float64, the larger of two runs."""
    inputs = tensors(operation, device, seed)
    (expected,) = reference(operation, inputs)
    given = [t if i in operation.constants else None for i, t in enumerate(inputs)]
    packed = tactic.pack(operation, config, given)
    bound = [
        p if i in operation.constants else t
        for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
    ]
    output = empty(operation.outputs[0], device)
    size = tactic.workspace(operation, config, Device(device))
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=device) if size else None
    bytes_ = tactic.state(operation, config, Device(device))
    state = torch.zeros(bytes_, dtype=torch.uint8, device=device) if bytes_ else None
    launch = tactic.bind(operation, config, bound, [output], workspace, state)
    worst = 0.0
    for _ in range(2):
        output.fill_(float("nan"))
        launch()
        worst = max(worst, relative_error(output, expected))
    return worst


def random_convs(seed: int, count: int, dtype: str, **options) -> list[Operation]:
    """Convolutions of odd sizes, some of one element, some with a residual or without a bias."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        kernel = chance.choice([(1, 1), (3, 3), (5, 3)])
        pads = tuple(chance.randint(0, size // 2) for size in kernel) * 2
        stride = chance.choice([1, 2])
        made.append(
            conv(
                (
                    chance.randint(1, 3),
                    8 * chance.randint(1, 9),
                    *chance.choices(range(5, 30), k=2),
                ),
                8 * chance.randint(1, 9),
                Window(kernel, (stride, stride), pads),
                dtype=dtype,
                bias=chance.random() < 0.8,
                residual=chance.random() < 0.5,
                activation=chance.choice([RELU, IDENTITY]),
                **options,
            )
        )
    return made
