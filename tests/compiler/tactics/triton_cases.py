"""Running the Triton tactics of NHWC kernels in tests: on the GPU where there is one, otherwise in
Triton's interpreter, which has to be chosen before a kernel's module is imported."""

from __future__ import annotations

import os

from peregrine.backends._nvidia import nvidia_driver

_HAS_GPU = bool(nvidia_driver())
if not _HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from compiler.tactics.operations import empty, relative_error, tensors  # noqa: E402
from peregrine.compiler.operation import Operation, TensorType  # noqa: E402
from peregrine.compiler.tactics.base import Config, Device, Tactic  # noqa: E402

DEVICE = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12) if _HAS_GPU else Device("cpu")
H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)


def run(
    tactic: Tactic,
    operation: Operation,
    config: Config,
    inputs: list[torch.Tensor | None],
    times: int = 2,
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


def errors(tactic: Tactic, operation: Operation, expected, seed: int = 0) -> dict[str, float]:
    """The relative error of every configuration, the larger of two runs.

    Args:
        expected: a function of the inputs that gives the true output.
    """
    support = tactic.supports(operation, DEVICE)
    assert support, support.reason
    inputs = tensors(operation, DEVICE.name, seed)
    truth = expected(inputs)
    found = {}
    for config in tactic.configs(operation, DEVICE):
        outputs = run(tactic, operation, config, inputs)
        found[str(dict(config))] = max(relative_error(y, truth) for y in outputs)
        assert torch.equal(outputs[0], outputs[1]), "the same every time"
    assert found
    return found


def nchw(dtype: str, shape: tuple[int, int, int, int]) -> TensorType:
    return TensorType.contiguous(dtype, shape)
