"""Any operator that `compiler.torch_ops` has, by plain PyTorch: what runs where no tactic is
faster, and the only one that takes tensors whose sizes depend on computed values."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from peregrine.compiler.attributes import torch_dtype
from peregrine.compiler.cost import cost, roofline_s
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import DOMAIN
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.compiler.torch_ops import registry
from peregrine.errors import Unsupported
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_KERNELS = 4
"""About how often an operator of several kernels reads and writes what one kernel would once."""
_LAUNCH_S = {True: 1e-5, False: 2e-5}
"""On a GPU, where launches are part of a CUDA graph, and on a CPU."""


class TorchOps(Tactic):
    """One configuration, without settings.

    A launch allocates what it computes with by torch's caching allocator, which `torch.cuda.graph`
    captures. It cannot be captured where an input that the operator reads as Python numbers
    (`registry.Entry.host`) lies on the GPU, or a subgraph is chosen by what was computed.
    """

    name: ClassVar[str] = "torch_ops"

    def supports(self, operation: Operation, device: Device) -> Support:
        if _entry(operation.operator, operation.opset) is None:
            return Support.no(_missing(operation))
        for tensor in (*operation.inputs, *operation.outputs):
            if tensor is not None and tensor.dtype:
                try:
                    torch_dtype(tensor.dtype)
                except Unsupported as error:
                    return Support.no(error.reason)
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        return [{}]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        dtype = next((t.dtype for t in operation.outputs if t.dtype), "float32")
        floor = roofline_s(cost(operation), device, dtype=dtype, tf32=operation.tf32)
        return _KERNELS * floor + _LAUNCH_S[device.is_cuda]

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """All inputs of a fused operator: it computes tensors of its own, and copies them to the
        outputs when it needs its inputs no more. A standard one may answer with a view."""
        if operation.operator.startswith(DOMAIN):
            return frozenset(range(len(operation.inputs)))
        return frozenset()

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        """Raises `Unsupported` where the operator is missing; the launch does where the operator
        gives other sizes than the operation says."""
        _known(operation)
        tables: dict[Hashable, Any] = {}

        def launch() -> None:
            results = self.evaluate(operation, inputs, outputs[0].device, tables)
            for output, result in zip(outputs, results, strict=True):
                if result is None or result.shape != output.shape:
                    given = "nothing" if result is None else f"sizes {tuple(result.shape)}"
                    raise Unsupported(
                        f"{operation.operator} gives {given} where the plan has "
                        f"{tuple(output.shape)}.",
                        fix="Report the model: its inferred sizes are wrong.",
                    )
                output.copy_(result)

        return launch

    def evaluate(
        self,
        operation: Operation,
        inputs: Sequence[torch.Tensor | None],
        device: torch.device | str = "cpu",
        tables: MutableMapping[Hashable, Any] | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """The operation's outputs, allocated here; one may be a view of an input.

        Args:
            operation: with attributes as `registry.Call` has them, subgraphs as functions.
            inputs: None where an optional one is absent.
            device: where outputs are made that come from no tensor.
            tables: of this operation, kept from one call to the next (`registry.Call.table`).

        Returns:
            As many as the operation has outputs; None where an optional one is not computed.

        Raises:
            Unsupported: the operator is missing, or does not do what its attributes ask.
        """
        count = len(operation.outputs)
        call = registry.Call(
            operation.attributes,
            operation.opset,
            count,
            operation.tf32,
            device,
            {} if tables is None else tables,
        )
        result = _known(operation).function(call, *inputs)
        results = result if isinstance(result, tuple) else (result,)
        return (*results, *[None] * (count - len(results)))[:count]


def _known(operation: Operation) -> registry.Entry:
    entry = _entry(operation.operator, operation.opset)
    if entry is None:
        raise Unsupported(_missing(operation), fix="Race another backend for this model.")
    return entry


def _missing(operation: Operation) -> str:
    name = operation.operator.removeprefix("ai.onnx.")
    return f"operator {name} (opset {operation.opset}) is not implemented in torch_ops"


@cache
def _entry(operator: str, opset: int) -> registry.Entry | None:
    return registry.find(operator, opset)
