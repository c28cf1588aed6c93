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
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.errors import Unsupported
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_OLDEST = (1, 32)
_INSTALL = 'pip install "nvidia-cudnn-frontend>=1.32"'
_DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT"}
_ALIGNMENT = 16
"""Bytes; what cuDNN's kernels take for granted of a tensor's first element."""
_FLOAT32_MAX = 3.4e38
_X, _W, _B, _Z, _Y = range(1, 6)
"""Identifiers of the tensors within a graph."""
_ACTIVATIONS = frozenset(ActivationKind) - {ActivationKind.HARD_SIGMOID, ActivationKind.HARD_SWISH}


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
        if not any(_graph(operation, *way, device.name).plans for way in _ways(operation)):
            return Support.no("cuDNN has no plan for this convolution")
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        found: dict[tuple[str, str], Config] = {}
        for first, mode in _ways(operation):
            names = _graph(operation, first, mode, device.name).plans
            for rank, plan in enumerate(names):
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
        return weight.shape[0] * weight.itemsize if _adds_zeros(operation) else 0

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
        tensors = {**dict(zip((_X, _W, _B, _Z), inputs, strict=False)), _Y: outputs[0]}
        if _adds_zeros(operation):
            tensors[_B] = state
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
        return cls(graph, {name: index for index, name in enumerate(names)})

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
    graph = _graph(operation, str(config["first"]), str(config["mode"]), device)
    return graph, graph.build(str(config["plan"]))


def _ways(operation: Operation) -> list[tuple[str, str]]:
    """Orders of additions that differ, and modes."""
    residual = (*operation.inputs, None, None)[3]
    orders = ("residual",) if residual is None else ("residual", "bias")
    return [(first, mode) for mode in _MODES for first in orders]


def _adds_zeros(operation: Operation) -> bool:
    """Whether the graph has a bias that the operation has not: cuDNN's compiled engines know an
    epilogue with a bias, or none at all."""
    bias, residual = (*operation.inputs, None, None)[2:4]
    plain = Activation.read(operation.attributes).kind is ActivationKind.IDENTITY
    return bias is None and not (residual is None and plain)


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
    """cuDNN's handle for a CUDA device, and the lock of whoever sets its stream."""
    import cudnn
    import torch

    with torch.cuda.device(index):
        return cudnn.create_handle(), threading.Lock()


def build_graph(operation: Operation, first: str, **where: Any) -> Any:
    """cuDNN's graph of a `peregrine.Conv`, checked by cuDNN; sums are float32.

    Args:
        first: `bias` or `residual`, whichever is added first.
        where: `handle` of the device, or `device_property` of one that need not be here.
    """
    import cudnn

    x, weight, bias, residual = (*operation.inputs, None, None)[:4]
    output = operation.outputs[0]
    assert x is not None
    assert weight is not None
    assert weight.shape is not None
    biased = bias is not None or _adds_zeros(operation)
    float32 = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=_data_type(x),
        intermediate_data_type=float32,
        compute_data_type=float32,
        **where,
    )
    channels, window = weight.shape[0], Window.read(operation.attributes)
    top, left, bottom, right = window.pads
    y = graph.conv_fprop(
        image=_tensor(graph, x, _X),
        weight=_tensor(graph, _packed(weight), _W),
        pre_padding=[top, left],
        post_padding=[bottom, right],
        stride=list(window.strides),
        dilation=list(window.dilations),
    )
    for addend in (first, "residual" if first == "bias" else "bias"):
        if addend == "bias" and biased:
            row = TensorType.channels_last(weight.dtype, (1, channels, 1, 1))
            y = graph.bias(input=y, bias=_tensor(graph, row, _B))
        elif addend == "residual" and residual is not None:
            y = graph.add(a=y, b=_tensor(graph, residual, _Z))
    y = _activate(graph, y, Activation.read(operation.attributes))
    y.set_output(True).set_uid(_Y).set_data_type(_data_type(output))
    y.set_dim(list(output.shape or ())).set_stride(list(nhwc_strides(output) or ()))
    if x.dtype == "float32" and not operation.tf32:
        notes = cudnn.numerical_note
        graph.deselect_numeric_notes([notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS])
    graph.validate()
    graph.build_operation_graph()
    return graph


def _activate(graph: Any, y: Any, activation: Activation) -> Any:
    """cuDNN's node for an activation of `_ACTIVATIONS`."""
    alpha, beta = activation.alpha, activation.beta
    match activation.kind:
        case ActivationKind.IDENTITY:
            return y
        case ActivationKind.RELU:
            return graph.relu(y)
        case ActivationKind.CLIP:
            upper = beta if beta < _FLOAT32_MAX else None
            return graph.relu(y, lower_clip=alpha, upper_clip=upper)
        case ActivationKind.LEAKY_RELU:
            return graph.leaky_relu(y, alpha)
        case ActivationKind.SILU:
            return graph.swish(y)
        case ActivationKind.GELU_TANH:
            return graph.gelu_approx_tanh(y)
        case kind:
            return getattr(graph, kind.value)(y)


def _tensor(graph: Any, tensor: TensorType, uid: int) -> Any:
    return graph.tensor(
        dim=list(tensor.shape or ()),
        stride=list(nhwc_strides(tensor) or ()),
        data_type=_data_type(tensor),
        uid=uid,
    )


def _packed(weight: TensorType) -> TensorType:
    """W as `pack` lays it out."""
    assert weight.shape is not None
    o, c, h, w = weight.shape
    return TensorType.channels_last(weight.dtype, (o, c, h, w))


def nhwc_strides(tensor: TensorType) -> tuple[int, int, int, int] | None:
    """The strides of an image with adjacent channels, with one rule for dimensions of one element,
    whose strides may be anything: those of a tensor where they had more. None for other images."""
    if tensor.shape is None or tensor.strides is None or len(tensor.shape) != 4:
        return None
    n, c, h, w = tensor.shape
    n_stride, c_stride, h_stride, w_stride = tensor.strides
    if c > 1 and c_stride != 1:
        return None
    if w == 1:  # the distance between neighbours of the innermost dimension that has any
        w_stride = h_stride if h > 1 else n_stride if n > 1 else c
    if h == 1:
        h_stride = w * w_stride
    if n == 1:
        n_stride = h * h_stride
    if not (w_stride >= c and h_stride >= w * w_stride and n_stride >= h * h_stride):
        return None
    return n_stride, 1, h_stride, w_stride


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
    if unknown := {t.dtype for t in present} - set(_DTYPES):
        return f"cuDNN's convolutions do not take {', '.join(sorted(unknown))}"
    if x.dtype != weight.dtype:
        return "cuDNN's convolutions take X and W of one dtype"
    for what, tensor in (("X", x), ("Z", residual), ("Y", output)):
        if tensor is not None and nhwc_strides(tensor) is None:
            return f"cudnn_graph needs {what} with adjacent channels (NHWC)"
    kind = Activation.read(operation.attributes).kind
    if kind not in _ACTIVATIONS:
        return f"cuDNN does not fuse {kind}"
    return ""


def _data_type(tensor: TensorType) -> Any:
    import cudnn

    return getattr(cudnn.data_type, _DTYPES[tensor.dtype])


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
