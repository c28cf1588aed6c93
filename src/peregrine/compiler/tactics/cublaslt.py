"""Matrix products by cuBLAS and cuBLASLt, as torch reaches them: `peregrine.Linear`, and
`peregrine.Conv` of one element at stride 1, whose channels-last images are matrices as they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from peregrine.compiler.cost import cost
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics._matrix import Matrix
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.compiler.tactics.epilogue import finish, packed
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_DTYPES = ("float16", "bfloat16", "float32")
# Not float64: ATen's hard activations have constants of float32 on a GPU.
_LT_ACTIVATIONS = (ActivationKind.RELU, ActivationKind.GELU_TANH)
"""What cuBLASLt computes in its epilogue after a bias; its GELU is the approximation by tanh."""


class CublasLt(Tactic):
    """Configurations say where bias, residual and activation go:

    `epilogue`
        `fused`: bias, and the activation where there is no residual, in cuBLASLt's epilogue.
        `accumulated`: the output starts as residual + bias and the product is added to it.
        `separate`: the bare product, then passes over the output.
    `library`
        Which of the two torch asks for the product: they pick kernels by different rules.
    """

    name: ClassVar[str] = "cublaslt"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator not in (Fused.LINEAR, Fused.CONV):
            return Support.no(f"cublaslt has no {operation.operator}")
        if not device.is_cuda:
            return Support.no(f"cublaslt needs an NVIDIA GPU, this is {device.name}")
        return _is_product(operation)

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        _, _, bias, residual = _operands(operation)
        activation = Activation.read(operation.attributes)
        found: list[Config] = []
        if bias is not None and (residual is not None or _fuses(activation)):
            found.append({"epilogue": "fused", "library": "cublaslt"})
        ways = ["accumulated"] if residual is not None else []
        return found + [
            {"epilogue": epilogue, "library": library}
            for epilogue in (*ways, "separate")
            for library in ("cublas", "cublaslt")
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        spent = cost(operation)
        seconds = 1.3 * max(spent.flops / device.flops, spent.bytes / device.bandwidth) + 4e-6
        return seconds + _passes(operation, config) * (
            2 * operation.outputs[0].bytes / device.bandwidth + 1.5e-6
        )

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """W as a contiguous (N, K), B in W's dtype."""
        return packed(inputs, lambda weight: weight.flatten(1))

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """Z where the output starts as that; elsewhere the product is written before it is read."""
        return frozenset({3}) if config["epilogue"] == "accumulated" else frozenset()

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        x, weight, bias, residual = (*inputs, None, None)[:4]
        assert x is not None
        assert weight is not None
        image = operation.operator == Fused.CONV

        def matrix(tensor: TensorType | None) -> Matrix:
            assert tensor is not None
            found = Matrix.of(tensor, image=image)
            assert found is not None
            return found

        steps = _steps(
            config,
            matrix(operation.inputs[0]).view(x),
            weight.t(),
            bias,
            None if residual is None else matrix(operation.inputs[3]).view(residual),
            matrix(operation.outputs[0]).view(outputs[0]),
            Activation.read(operation.attributes),
        )
        device, library, tf32 = x.device, str(config["library"]), operation.tf32

        def launch() -> None:
            with _settings(device, library, tf32=tf32):
                for step in steps:
                    step()

        return launch


def _steps(
    config: Config,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    activation: Activation,
) -> list[Callable[[], object]]:
    """The calls that make y (M, N) of x (M, K) and weight (K, N)."""
    import torch

    match config["epilogue"]:
        case "fused":
            assert bias is not None
            if residual is None and activation.kind in _LT_ACTIVATIONS:
                gelu = activation.kind is ActivationKind.GELU_TANH
                call = torch.ops.aten._addmm_activation.out
                return [lambda: call(bias, x, weight, use_gelu=gelu, out=y)]
            return [
                lambda: torch.addmm(bias, x, weight, out=y),
                *finish(y, None, residual, activation),
            ]
        case "accumulated":
            assert residual is not None
            start: Callable[[], object] = lambda: y.copy_(residual)  # noqa: E731
            if bias is not None:
                start = lambda: torch.add(residual, bias, out=y)  # noqa: E731
            product = lambda: torch.addmm(y, x, weight, out=y)  # noqa: E731
            return [start, product, *finish(y, None, None, activation)]
        case _:
            return [
                lambda: torch.mm(x, weight, out=y),
                *finish(y, bias, residual, activation),
            ]


@contextmanager
def _settings(device: torch.device, library: str, *, tf32: bool) -> Iterator[None]:
    """Sums in float32 whatever the library would prefer, and torch's choice of the library."""
    import torch

    from peregrine.compiler.torch_ops.arithmetic import float32_products

    if device.type != "cuda":
        yield
        return
    matmul, cuda = torch.backends.cuda.matmul, torch.backends.cuda
    before = (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cuda.preferred_blas_library(),
    )
    try:
        matmul.allow_fp16_reduced_precision_reduction = False
        matmul.allow_bf16_reduced_precision_reduction = False
        cuda.preferred_blas_library(library)
        with float32_products(device, tf32=tf32):
            yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before[0]
        matmul.allow_bf16_reduced_precision_reduction = before[1]
        cuda.preferred_blas_library(before[2])


def _is_product(operation: Operation) -> Support:
    """Whether the operation is one matrix product over tensors as they lie."""
    x, weight, _, residual = _operands(operation)
    assert x is not None
    assert weight is not None
    output = operation.outputs[0]
    if x.dtype not in _DTYPES:
        return Support.no(f"cublaslt does not multiply {x.dtype}")
    if {x.dtype, *(t.dtype for t in (weight, residual, output) if t is not None)} != {x.dtype}:
        return Support.no("cublaslt takes X, W, Z and Y of one dtype")
    image = operation.operator == Fused.CONV
    if image:
        window = Window.read(operation.attributes)
        if not (window.is_pointwise and window.strides == (1, 1)):
            return Support.no("cublaslt takes convolutions of one element at stride 1 only")
        if operation.attributes.get("group", 1) != 1:
            return Support.no("cublaslt takes convolutions of one group only")
    for what, tensor in (("X", x), ("Z", residual), ("Y", output)):
        if tensor is not None and Matrix.of(tensor, image=image) is None:
            return Support.no(f"cublaslt needs {what} as rows of adjacent channels")
    return Support.yes()


def _operands(
    operation: Operation,
) -> tuple[TensorType | None, TensorType | None, TensorType | None, TensorType | None]:
    """X, W, B and Z."""
    x, weight, bias, residual = (*operation.inputs, None, None)[:4]
    return x, weight, bias, residual


def _fuses(activation: Activation) -> bool:
    return activation.kind is ActivationKind.IDENTITY or activation.kind in _LT_ACTIVATIONS


def _passes(operation: Operation, config: Config) -> int:
    """How often the output is read and written again beside the product."""
    _, _, bias, residual = _operands(operation)
    activation = Activation.read(operation.attributes)
    activations = 3 if activation.kind is ActivationKind.HARD_SIGMOID else 1
    if activation.kind is ActivationKind.IDENTITY:
        activations = 0
    match config["epilogue"]:
        case "fused":
            return 0 if residual is None else 1 + activations
        case "accumulated":
            return 1 + activations
        case _:
            return (bias is not None) + (residual is not None) + activations
