"""`peregrine.Conv` by cuDNN's graph API: convolution, bias, residual and activation as one plan.

cuDNN knows many plans for a graph, each an engine with knobs (tile sizes, stages, clusters), and
its heuristics rank them without building any. A configuration names a plan as cuDNN does, by its
engine and knobs: an engine file that is loaded later asks the heuristics again, which takes some
milliseconds, and builds the plan of that name.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from peregrine.compiler.cost import cost, roofline_s
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused
from peregrine.compiler.tactics._cudnn import (
    ACTIVATIONS,
    DTYPES,
    B,
    W,
    X,
    Y,
    Z,
    adds_zeros,
    build_graph,
    keeps_float32,
    nhwc_strides,
)
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.errors import BackendUnavailable, Unsupported
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_OLDEST = (1, 32)
_INSTALL = 'pip install "nvidia-cudnn-frontend>=1.32"'
_ALIGNMENT = 16
"""Bytes; what cuDNN's kernels take for granted of a tensor's first element."""


class CudnnGraph(Tactic):
    """Configurations:

    `plan`
        cuDNN's name for it, engine and knobs: `eng10_k2=5_k13=1`.
    `mode`
        The heuristics that proposed it: `A`, or `FALLBACK`.
    `first`
        Which is added first, `bias` or `residual`: engines recognise one order or the other.
    `rank`
        Its place in that list, the best guess being 0.
    """

    name: ClassVar[str] = "cudnn_graph"

    def supports(self, operation: Operation, device: Device) -> Support:
        if refusal := _refusal(operation, device):
            return Support.no(refusal)
        if not (found := available()):
            return found
        try:
            graphs = [_graph(operation, *way, device.name) for way in _ways(operation)]
        except BackendUnavailable as error:
            return Support.no(error.reason, error.fix)
        if not any(graph.usable() for graph in graphs):
            return Support.no("cuDNN has no plan for this convolution")
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        found: dict[tuple[str, str], Config] = {}
        for first, mode in _ways(operation):
            for rank, plan in enumerate(_graph(operation, first, mode, device.name).usable()):
                config: Config = {"plan": plan, "mode": mode, "first": first, "rank": rank}
                found.setdefault((plan, first), config)
        return sorted(found.values(), key=_place)

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        x = operation.inputs[0]
        assert x is not None
        floor = roofline_s(cost(operation), device, dtype=x.dtype, tf32=operation.tf32)
        # Later plans of the heuristics are rarely better: enough to keep their order.
        return (1.5 * floor + 3e-6) * (1 + 0.01 * _place(config))

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """W as (O, KH, KW, C / group), contiguous; B in W's dtype, as engines want it."""
        packed = list(inputs)
        weight = packed[1]
        if weight is not None:
            packed[1] = weight.permute(0, 2, 3, 1).contiguous()
            if len(packed) > 2 and packed[2] is not None:
                packed[2] = packed[2].to(weight.dtype).contiguous()
        return packed

    def workspace(self, operation: Operation, config: Config, device: Device) -> int:
        """Builds the plan. Raises `Unsupported` where cuDNN cannot."""
        return _plan(operation, config, device.name)[1].workspace

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        """A bias of zeros where the operation has none and an engine wants one."""
        weight = operation.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        return weight.shape[0] * weight.itemsize if adds_zeros(operation) else 0

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        device = outputs[0].device
        graph, plan = _plan(operation, config, str(device))
        if plan.workspace > (0 if workspace is None else workspace.numel()):
            raise ValueError(f"The plan needs {plan.workspace} bytes of workspace.")
        tensors = {**dict(zip((X, W, B, Z), inputs, strict=False)), Y: outputs[0]}
        if adds_zeros(operation):
            tensors[B] = state
        addresses = {key: _address(t) for key, t in tensors.items() if t is not None}
        return _Bound(
            graph.graph, plan.index, addresses, device, workspace, tuple(tensors.values())
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """A plan on tensors, which it keeps: cuDNN is told addresses only."""

    graph: Any
    index: int
    addresses: dict[int, int]
    device: torch.device
    workspace: torch.Tensor | None
    tensors: tuple[torch.Tensor | None, ...]

    def __call__(self) -> None:
        import cudnn
        import torch

        scratch = 0 if self.workspace is None else self.workspace.data_ptr()
        handle, lock = _handle(_index(str(self.device)))
        with lock:
            cudnn.set_stream(handle, torch.cuda.current_stream(self.device).cuda_stream)
            self.graph.execute_plan_at_index(self.addresses, scratch, self.index, handle)


@cache
def available() -> Support:
    """Whether cuDNN's frontend and cuDNN itself are here."""
    try:
        import cudnn
    except ImportError as error:
        return Support.no(f"cuDNN's frontend cannot be imported: {error}", _INSTALL)
    if tuple(map(int, cudnn.__version__.split(".")[:2])) < _OLDEST:
        return Support.no(f"cuDNN's frontend {cudnn.__version__} is too old", _INSTALL)
    try:
        cudnn.backend_version()
    except (OSError, RuntimeError) as error:
        return Support.no(f"cuDNN cannot be loaded: {_first_line(error)}", "pip install torch")
    return Support.yes()


@dataclass(frozen=True, slots=True)
class _Plan:
    index: int
    """Where the graph has it."""
    workspace: int


@dataclass
class Graph:
    """cuDNN's graph of one operation with what one mode of the heuristics proposes for it."""

    graph: Any = None
    plans: dict[str, int] = field(default_factory=dict)
    """Where the graph has the plan of a name, best guess first; none where cuDNN takes no such
    graph."""
    built: dict[str, _Plan] = field(default_factory=dict)
    refusal: str = ""
    filtered: bool = False
    """Whether plans were excluded that the list still has: cuDNN tells when they are built."""

    @classmethod
    def ranked(cls, operation: Operation, first: str, mode: str, **where: Any) -> Graph:
        """Ask the heuristics; nothing is built."""
        import cudnn

        try:
            graph = build_graph(operation, first, **where)
            graph.create_execution_plans([getattr(cudnn.heur_mode, mode)])
        except _errors() as error:
            return cls(refusal=_first_line(error))
        names = map(graph.get_plan_name_at_index, range(graph.get_execution_plan_count()))
        plans = {name: index for index, name in enumerate(names)}
        return cls(graph, plans, filtered=keeps_float32(operation))

    def usable(self) -> list[str]:
        """The plans that are not excluded; nothing is built where none could be."""
        if not self.filtered:
            return list(self.plans)
        return [name for name in self.plans if self._builds(name)]

    def _builds(self, name: str) -> bool:
        try:
            self.build(name)
        except Unsupported:
            return False
        return True

    def build(self, name: str) -> _Plan:
        """A plan, ready to run; built once.

        Raises:
            Unsupported: cuDNN does not propose it here, or cannot build it.
        """
        if name not in self.built:
            index = self.plans.get(name)
            if index is None:
                raise Unsupported(
                    f"cuDNN has no plan {name} for this convolution.",
                    why=self.refusal or "Its heuristics proposed it on another machine or version.",
                    fix="Build the engine again here.",
                )
            try:
                self.graph.build_plan_at_index(index)
                size = int(self.graph.get_workspace_size_plan_at_index(index))
            except _errors() as error:
                raise Unsupported(
                    f"cuDNN cannot build its plan {name}.", why=_first_line(error)
                ) from error
            self.built[name] = _Plan(index, size)
        return self.built[name]


_GRAPHS: dict[tuple[str, str, str, int], Graph] = {}
_MODES = ("A", "FALLBACK")
"""Mode B proposes the plans of A at a higher price."""


def _graph(operation: Operation, first: str, mode: str, device: str) -> Graph:
    index = _index(device)
    key = (operation.key(), first, mode, index)
    if key not in _GRAPHS:
        handle, _ = _handle(index)
        _GRAPHS[key] = Graph.ranked(operation, first, mode, handle=handle)
    return _GRAPHS[key]


def _plan(operation: Operation, config: Config, device: str) -> tuple[Graph, _Plan]:
    if not (found := available()):
        raise BackendUnavailable(found.reason, fix=found.fix)
    graph = _graph(operation, str(config["first"]), str(config["mode"]), device)
    return graph, graph.build(str(config["plan"]))


def _ways(operation: Operation) -> list[tuple[str, str]]:
    """Orders of additions that differ, and modes."""
    residual = (*operation.inputs, None, None)[3]
    orders = ("residual",) if residual is None else ("residual", "bias")
    return [(first, mode) for mode in _MODES for first in orders]


def _place(config: Config) -> int:
    """The order of configurations: fallbacks last."""
    return int(config["rank"]) + (100 if config["mode"] == "FALLBACK" else 0)


def _index(device: str) -> int:
    """`cuda` is the current device."""
    import torch

    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@cache
def _handle(index: int) -> tuple[Any, threading.Lock]:
    """cuDNN's handle for a CUDA device, and the lock of whoever sets its stream.

    Raises:
        BackendUnavailable: torch or cuDNN finds no such device.
    """
    import cudnn
    import torch

    try:
        with torch.cuda.device(index):
            return cudnn.create_handle(), threading.Lock()
    except (AssertionError, RuntimeError) as error:
        raise BackendUnavailable(
            f"cuDNN cannot use cuda:{index}: {_first_line(error)}",
            fix="Check `nvidia-smi`, and that torch is a CUDA build: pip install torch",
        ) from error


def _refusal(operation: Operation, device: Device) -> str:
    """Why the tactic does not take an operation, from its types alone; empty where it does."""
    if operation.operator != Fused.CONV:
        return f"cudnn_graph has no {operation.operator}"
    if not device.is_cuda:
        return f"cuDNN needs an NVIDIA GPU, this is {device.name}"
    x, weight, _, residual = (*operation.inputs, None, None)[:4]
    assert x is not None
    assert weight is not None
    output = operation.outputs[0]
    present = [t for t in (x, weight, residual, output) if t is not None]
    if unknown := {t.dtype for t in present} - set(DTYPES):
        return f"cuDNN's convolutions do not take {', '.join(sorted(unknown))}"
    if x.dtype != weight.dtype:
        return "cuDNN's convolutions take X and W of one dtype"
    for what, tensor in (("X", x), ("Z", residual), ("Y", output)):
        if tensor is not None and nhwc_strides(tensor) is None:
            return f"cudnn_graph needs {what} with adjacent channels (NHWC)"
    kind = Activation.read(operation.attributes).kind
    if kind not in ACTIVATIONS:
        return f"cuDNN does not fuse {kind}"
    return ""


def _address(tensor: torch.Tensor) -> int:
    address = tensor.data_ptr()
    if address % _ALIGNMENT:
        raise Unsupported(
            "cuDNN takes tensors at multiples of 16 bytes only.",
            why=f"One of sizes {tuple(tensor.shape)} lies at {address:#x}, a slice of another.",
        )
    return address


def _errors() -> tuple[type[Exception], ...]:
    """What cuDNN raises of a graph or plan that it does not take. It tells a broken device by a
    `RuntimeError` too: what runs next will."""
    import cudnn

    return (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
