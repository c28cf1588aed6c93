"""`peregrine.Conv` by cuDNN as torch reaches it, where cuDNN's frontend is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from peregrine.compiler.cost import cost, roofline_s
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.compiler.tactics.epilogue import finish, packed
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_DTYPES = ("float16", "bfloat16", "float32")


class CudnnFused(Tactic):
    """Configurations:

    `epilogue`
        `fused`: bias, residual and ReLU in cuDNN's kernel, whose output torch allocates and which
        is then copied. `separate`: the bare convolution writes the output, then passes over it.
    """

    name: ClassVar[str] = "cudnn_fused"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.CONV:
            return Support.no(f"cudnn_fused has no {operation.operator}")
        if not device.is_cuda:
            return Support.no(f"cuDNN needs an NVIDIA GPU, this is {device.name}")
        x, weight, _, residual = (*operation.inputs, None, None)[:4]
        output = operation.outputs[0]
        present = {t.dtype for t in (x, weight, residual, output) if t is not None}
        if len(present) != 1 or not present <= set(_DTYPES):
            return Support.no("cudnn_fused takes X, W, Z and Y of one dtype, 16 or 32 bits wide")
        if not all(t.is_channels_last for t in (x, residual, output) if t is not None):
            return Support.no("cudnn_fused takes whole channels-last images only")
        top, left, bottom, right = Window.read(operation.attributes).pads
        if (top, left) != (bottom, right):
            return Support.no("torch's convolutions pad both sides alike")
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        relu = Activation.read(operation.attributes).kind is ActivationKind.RELU
        ways = ["fused"] if relu else []
        return [{"epilogue": epilogue} for epilogue in (*ways, "separate")]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        x, output = operation.inputs[0], operation.outputs[0]
        assert x is not None
        floor = roofline_s(cost(operation), device, dtype=x.dtype, tf32=operation.tf32)
        passes = 1
        if config["epilogue"] == "separate":
            present = [t for t in operation.inputs[2:] if t is not None]
            kind = Activation.read(operation.attributes).kind
            passes = len(present) + (kind is not ActivationKind.IDENTITY)
        return 1.5 * floor + 3e-6 + passes * (2 * output.bytes / device.bandwidth + 1.5e-6)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """W as (O, KH, KW, C / group), contiguous; B in W's dtype."""
        return packed(inputs, lambda weight: weight.permute(0, 2, 3, 1))

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """Z where the result is copied from a tensor of torch's."""
        return frozenset({3}) if config["epilogue"] == "fused" else frozenset()

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        import torch

        from peregrine.compiler.torch_ops.arithmetic import float32_products

        x, weight, bias, residual = (*inputs, None, None)[:4]
        assert x is not None
        assert weight is not None
        calls = _calls(
            operation,
            config,
            (x, weight.permute(0, 3, 1, 2), bias, residual),
            outputs[0],
        )
        tf32, cudnn = operation.tf32, torch.backends.cudnn

        def launch() -> None:
            before = cudnn.benchmark
            cudnn.benchmark = True
            try:
                with float32_products(x.device, tf32=tf32):
                    for call in calls:
                        call()
            finally:
                cudnn.benchmark = before

        return launch


def _calls(
    operation: Operation,
    config: Config,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    y: torch.Tensor,
) -> list[Callable[[], object]]:
    import torch

    x, weight, bias, residual = tensors
    aten = torch.ops.aten
    window = Window.read(operation.attributes)
    padding, stride, dilation = window.pads[:2], window.strides, window.dilations
    group, tf32 = int(operation.attributes.get("group", 1)), operation.tf32
    if config["epilogue"] == "separate":
        row = None if bias is None else bias.reshape(-1, 1, 1)
        return [
            lambda: aten.cudnn_convolution.out(
                x, weight, padding, stride, dilation, group, True, False, tf32, out=y
            ),
            *finish(y, row, residual, Activation.read(operation.attributes)),
        ]
    if residual is None:
        return [
            lambda: y.copy_(
                aten.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, group)
            )
        ]
    return [
        lambda: y.copy_(
            aten.cudnn_convolution_add_relu(
                x, weight, residual, 1.0, bias, stride, padding, dilation, group
            )
        )
    ]
