"""Running the Triton tactics of NHWC kernels in tests: on the GPU where there is one, otherwise in
Triton's interpreter, which has to be chosen before a kernel's module is imported."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace

from peregrine.backends._nvidia import nvidia_driver

_HAS_GPU = bool(nvidia_driver())
if not _HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
import torch.nn.functional as functional  # noqa: E402

from compiler.tactics.operations import (  # noqa: E402
    IDENTITY,
    RELU,
    empty,
    image,
    relative_error,
    tensors,
)
from peregrine.compiler.operation import Operation, TensorType  # noqa: E402
from peregrine.compiler.operators import Activation, Fused, Window  # noqa: E402
from peregrine.compiler.tactics.base import Config, Device, Tactic  # noqa: E402
from peregrine.compiler.torch_ops.fused import reference  # noqa: E402

DEVICE = (
    Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)
    if _HAS_GPU
    else Device("cpu", multiprocessors=132)
)
H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)


def run(
    tactic: Tactic,
    operation: Operation,
    config: Config,
    inputs: list[torch.Tensor | None],
    times: int = 1,
) -> list[torch.Tensor]:
    """The tactic's outputs, run `times` times on one state and a workspace full of garbage; the
    output and its gaps are NaN before."""
    constants = [t if i in operation.constants else None for i, t in enumerate(inputs)]
    packed = tactic.pack(operation, config, constants)
    bound = [
        p if i in operation.constants else t
        for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
    ]
    device = DEVICE.name
    size = tactic.workspace(operation, config, DEVICE)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=device) if size else None
    size = tactic.state(operation, config, DEVICE)
    state = torch.zeros(size, dtype=torch.uint8, device=device) if size else None
    output = empty(operation.outputs[0], device)
    launch = tactic.bind(operation, config, bound, [output], workspace, state)
    outputs = []
    for _ in range(times):
        output.fill_(float("nan"))
        launch()
        outputs.append(output.clone())
        if state is not None:
            assert not state.any(), "the state is left as it was found"
    return outputs


def errors(
    tactic: Tactic,
    operation: Operation,
    expected: Callable[[list[torch.Tensor | None]], torch.Tensor] | None = None,
    *,
    most: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """The relative error of each configuration, the larger of two runs where it keeps a state.

    Args:
        expected: gives the true output of the inputs; None for a fused operator.
        most: configurations to run, evenly picked.
    """
    support = tactic.supports(operation, DEVICE)
    assert support, support.reason
    inputs = tensors(operation, DEVICE.name, seed)
    truth = expected(inputs) if expected else reference(operation, inputs)[0]
    configs = list(tactic.configs(operation, DEVICE))
    found = {}
    for config in configs[:: -(-len(configs) // most)]:
        times = 2 if tactic.state(operation, config, DEVICE) else 1
        outputs = run(tactic, operation, config, inputs, times)
        found[str(dict(config))] = max(relative_error(y, truth) for y in outputs)
        assert torch.equal(outputs[0], outputs[-1])
    assert found
    return found


def worst(*arguments, **options) -> float:
    """The largest of `errors`."""
    return max(errors(*arguments, **options).values())


def with_input(operation: Operation, kind: TensorType) -> Operation:
    """The operation reading an X of another type."""
    return replace(operation, inputs=(kind, *operation.inputs[1:]))


def conv_max_pool(convolution: Operation, pool: Window, *, up: bool = False) -> Operation:
    """A convolution with a max pooling behind it.

    Args:
        up: sizes are rounded up (ceil_mode), so that windows may stick out.
    """
    y = convolution.outputs[0]
    n, channels, *size = y.shape
    top, left, bottom, right = pool.pads
    if up:
        bottom, right = bottom + 1, right + 1
    pooled = replace(pool, pads=(top, left, bottom, right)).output(*size)
    return replace(
        convolution,
        operator=Fused.CONV_MAX_POOL,
        attributes={
            **convolution.attributes,
            **replace(pool, pads=(top, left, bottom, right)).attributes("pool_"),
        },
        inputs=convolution.inputs[:3],
        outputs=(image(y.dtype, (n, channels, *pooled)),),
    )


def depthwise_pointwise(
    shape: tuple[int, int, int, int],
    outputs: int,
    window: Window,
    *,
    dtype: str = "float16",
    bias: bool = True,
    residual: bool = False,
    inner: Activation = RELU,
    activation: Activation = IDENTITY,
    slice_of: int = 0,
) -> Operation:
    """A `peregrine.DepthwisePointwise` over an image of this shape; X and Y are slices of
    `slice_of` channels where that is given."""
    n, channels, height, width = shape
    written = (n, outputs, *window.output(height, width))
    return Operation(
        Fused.DEPTHWISE_POINTWISE,
        {**window.attributes(), **inner.attributes("inner_"), **activation.attributes()},
        (
            image(dtype, shape, slice_of),
            TensorType.contiguous(dtype, (channels, 1, *window.kernel)),
            TensorType.contiguous("float32", (channels,)) if bias else None,
            TensorType.contiguous(dtype, (outputs, channels, 1, 1)),
            TensorType.contiguous(dtype, (outputs,)) if bias else None,
            image(dtype, written) if residual else None,
        ),
        (image(dtype, written, slice_of),),
        frozenset({1, 2, 3, 4} if bias else {1, 3}),
        opset=1,
    )


def pool_linear(
    shape: tuple[int, int, int, int],
    outputs: int,
    *,
    dtype: str = "float16",
    bias: bool = True,
    activation: Activation = IDENTITY,
) -> Operation:
    """A `peregrine.PoolLinear` over an image of this shape."""
    return Operation(
        Fused.POOL_LINEAR,
        activation.attributes(),
        (
            image(dtype, shape),
            TensorType.contiguous(dtype, (outputs, shape[1])),
            TensorType.contiguous(dtype, (outputs,)) if bias else None,
        ),
        (TensorType.contiguous(dtype, (shape[0], outputs)),),
        frozenset({1, 2} if bias else {1}),
        opset=1,
    )


def max_pool(
    shape: tuple[int, int, int, int],
    window: Window,
    *,
    dtype: str = "float16",
    up: bool = False,
    slice_of: int = 0,
) -> Operation:
    """An `ai.onnx.MaxPool`; `up` as in `conv_max_pool`."""
    top, left, bottom, right = window.pads
    padded = replace(window, pads=(top, left, bottom + up, right + up))
    written = (*shape[:2], *padded.output(*shape[2:]))
    return Operation(
        "ai.onnx.MaxPool",
        {**window.attributes(), "ceil_mode": int(up)},
        (image(dtype, shape, slice_of),),
        (image(dtype, written, slice_of),),
        opset=12,
    )


def max_pooled(operation: Operation) -> Callable[[list[torch.Tensor | None]], torch.Tensor]:
    """What a max pooling gives, by plain PyTorch."""

    def expected(inputs: list[torch.Tensor | None]) -> torch.Tensor:
        window = Window.read(operation.attributes)
        top, left, *_ = window.pads
        height, width = operation.outputs[0].shape[2:]
        # Far enough to the right and below for any window that sticks out.
        x = functional.pad(inputs[0].double(), (left, 9, top, 9), value=float("-inf"))
        pooled = functional.max_pool2d(x, window.kernel, window.strides, 0, window.dilations)
        return pooled[:, :, :height, :width]

    return expected


def odd_shape(chance: random.Random, channels: int = 0) -> tuple[int, int, int, int]:
    """(N, C, H, W) of no round numbers."""
    size = chance.choices(range(9, 60), k=2)
    return (chance.randint(1, 5), channels or chance.randint(1, 300), size[0], size[1])


def check_configs(tactic: Tactic, operation: Operation) -> None:
    """Configurations for an H200 are at most 11, distinct and plain, each with a prediction no
    faster than memory allows and with sizes of memory."""
    configs = [dict(config) for config in tactic.configs(operation, H200)]
    assert 1 <= len(configs) <= 11
    assert len({json.dumps(config) for config in configs}) == len(configs)
    kinds = [kind for kind in (*operation.inputs, *operation.outputs) if kind is not None]
    floor = sum(kind.bytes for kind in kinds) / H200.bandwidth
    for config in configs:
        assert floor <= tactic.predict(operation, config, H200) < 0.1
        assert 0 <= tactic.workspace(operation, config, H200) < 2**28
        assert 0 <= tactic.state(operation, config, H200) < 2**20
