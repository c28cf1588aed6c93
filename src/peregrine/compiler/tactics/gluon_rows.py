"""3x3 windows over few channels by `kernels.conv_rows`, alone or beside a pointwise branch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Fused
from peregrine.compiler.tactics import _gluon, _nhwc, _triton
from peregrine.compiler.tactics._layers import Layer, pack_bias, pack_weights, read_layer
from peregrine.compiler.tactics._tiles import Tiling
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.compiler.tactics.triton_branches import TritonBranches, branches
from peregrine.compiler.tactics.triton_conv import TritonConv
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 3
"""Tilings of one operation that are compiled and timed."""
_CHANNELS = 64
"""Of the input: of more, the weights of 64 outputs and three rows don't fit the shared memory."""
_OUTPUTS = 64
"""Channels that a program writes."""
_WASTE = 1.6
"""How many more pixels than the output has may be computed for it to be worth a try."""
_LAUNCH = 2.0e-6
"""Seconds of a kernel that are no work: its start, the weights, the first rows."""
_EFFICIENCY = 0.75
"""Of the memory's bandwidth that it comes to (on an H200; of the tensor cores' peak, all)."""


class GluonRows(Tactic):
    """Convolutions that would otherwise ask the L2 cache for their input nine times."""

    name = "gluon_rows"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator not in (Fused.CONV, Fused.CONV_BRANCHES):
            return Support.no(f"it runs convolutions, not {operation.operator}")
        reason = _gluon.missing(device, overlapping=True) or _refusal(operation, device)
        return Support.no(reason) if reason else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        return [strip.config() for strip in _Sizes.read(operation).strips(device)[:_TRIED]]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        return _Sizes.read(operation).predict(Strip.read(config), device)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        _triton.compile_ahead([self.kernel(operation, config) for config in configs], device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        channels = _Sizes.read(operation).padded
        packed = list(inputs)
        for weights, bias in _weights(operation):
            given = packed[weights]
            assert given is not None
            packed[weights] = pack_weights(given, _OUTPUTS, channels)
            shift = packed[bias] if bias < len(packed) else None
            if shift is not None:
                packed[bias] = pack_bias(shift, _OUTPUTS)
        return packed

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        residual = inputs[3] if operation.operator == Fused.CONV and len(inputs) > 3 else None
        if not _gluon.aligned(inputs[0], residual, outputs[0]):
            return _by_pointers(operation, inputs, outputs)
        return _triton.launches([self.kernel(operation, config, [*inputs, *outputs])])

    def kernel(
        self,
        operation: Operation,
        config: Config,
        tensors: Sequence[torch.Tensor | None] | None = None,
    ) -> _triton.Kernel:
        """What a launch of this configuration launches.

        Args:
            tensors: the inputs, constants as packed, and Y; None to compile only.
        """
        from peregrine.compiler.kernels import conv_rows

        sizes, strip = _Sizes.read(operation), Strip.read(config)
        layer, channels = sizes.window, sizes.padded
        *inputs, y = tensors or _nhwc.stand_ins(
            [*operation.inputs, operation.outputs[0]],
            biases={bias for _, bias in _weights(operation)},
        )
        assert y is not None
        x, (w, bias), (w1, bias1), z = _inputs(operation, inputs)
        assert x is not None
        assert w is not None
        depth = 9 * channels
        box = [1, strip.columns, strip.images, _OUTPUTS]
        ends = layer.epilogue()
        written = sizes.branch + layer.outputs
        arguments: dict[str, Any] = {
            "x": _image(layer, x, layer.image, layer.channels, layer.x_stride,
                        [1, strip.columns, strip.images, channels]),
            "x_edge": _image(layer, x, layer.image, layer.channels, layer.x_stride,
                             [1, 2, strip.images, channels]),
            "w": _gluon.view(w, [layer.outputs, depth], [depth, 1], [_OUTPUTS, channels]),
            # Absent tensors are never touched: any will do.
            "w1": _gluon.view(
                w if w1 is None else w1,
                [layer.outputs, channels],
                [channels, 1],
                [_OUTPUTS, channels],
            ),
            "bias": w if bias is None else bias,
            "bias1": w if bias1 is None else bias1,
            "y": _image(layer, y, layer.grid, written, layer.y_stride, box),
            "z": _image(layer, y if z is None else z, layer.grid, written,
                        layer.z_stride or layer.y_stride, box),
            "N": layer.images,
            "C": channels,
            "O1": sizes.branch,
            "O": layer.outputs,
            "OH": layer.grid[0],
            "OW": layer.grid[1],
            "PAD_H": layer.window.pads[0],
            "PAD_W": layer.window.pads[1],
            "HAS_BIAS": bias is not None,
            "HAS_BIAS1": bias1 is not None,
            "HAS_Z": z is not None,
            **{name: ends[name] for name in ("KIND", "ALPHA", "BETA")},
            "NI": strip.images,
            "BW": strip.columns,
            "SLOTS": strip.slots,
            "BUFFERS": strip.buffers,
        }  # fmt: skip
        return _triton.Kernel(conv_rows.conv_rows, (strip.programs,), arguments, 4, 1)


@dataclass(frozen=True, slots=True)
class Strip:
    """How an output is cut; `Config` holds the same as JSON."""

    images: int
    columns: int
    slots: int
    """Rows in the ring."""
    buffers: int
    """Rows of each group of warps on their way to memory."""
    programs: int

    @classmethod
    def read(cls, config: Config) -> Strip:
        return cls(*(int(config[field.name]) for field in fields(cls)))

    def config(self) -> dict[str, int]:
        return asdict(self)

    @property
    def pixels(self) -> int:
        return self.images * self.columns

    def shared_memory(self, channels: int, branch: bool) -> int:
        """Bytes: the ring, the weights, and what is on its way to memory."""
        ring = self.slots * (self.columns + 2) * self.images * channels
        weights = (10 if branch else 9) * _OUTPUTS * channels
        leaving = 2 * self.buffers * self.pixels * _OUTPUTS
        return 2 * (ring + weights + leaving) + _gluon.BARRIERS


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a convolution, and of the pointwise branch beside it."""

    window: Layer
    branch: int
    """Channels of the pointwise branch; 0 without one."""
    flops: float
    bytes: float

    @classmethod
    def read(cls, operation: Operation) -> _Sizes:
        if operation.operator == Fused.CONV:
            layer = read_layer(operation)
            return cls(layer, 0, layer.product.flops, layer.product.bytes)
        pointwise, layer = (read_layer(branch) for branch in branches(operation))
        kinds = [kind for kind in (*operation.inputs, *operation.outputs) if kind is not None]
        flops = layer.product.flops + pointwise.product.flops
        return cls(layer, pointwise.outputs, flops, sum(kind.bytes for kind in kinds))

    @property
    def padded(self) -> int:
        """Channels of the input as the kernel pads them."""
        return _gluon.power(self.window.channels, 16)

    def strips(self, device: Device) -> list[Strip]:
        """Every way to cut it that makes sense and fits, the least waste first."""
        groups = self.window.outputs // _OUTPUTS
        programs = max(1, device.multiprocessors // groups) * groups
        found = _strips(
            self.window.images,
            self.window.grid[1],
            self.padded,
            self.branch > 0,
            self.window.has_z,
        )
        return [replace(strip, programs=programs) for strip in found]

    def predict(self, strip: Strip, device: Device) -> float:
        """Seconds: the slower of tensor cores and memory, of what is computed in vain too."""
        channels = self.padded / self.window.channels
        waste = _waste(strip, self.window.images, self.window.grid[1])
        used = min(1.0, strip.programs / device.multiprocessors)
        compute = self.flops * channels * waste / (device.flops * used)
        memory = self.bytes / (device.bandwidth * _EFFICIENCY)
        # What is hidden behind the other still counts a little.
        return _LAUNCH + max(compute, memory) + 0.2 * min(compute, memory)


def _waste(strip: Strip, images: int, width: int) -> float:
    """Pixels computed for each of the output."""
    return (
        math.ceil(images / strip.images) * strip.images / images
        * math.ceil(width / strip.columns) * strip.columns / width
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _strips(images: int, width: int, channels: int, branch: bool, residual: bool) -> list[Strip]:
    found = []
    for strip in _every_strip():
        if strip.pixels == 256 and residual:
            continue  # the sums take the registers that the residual would come to
        waste = _waste(strip, images, width)
        fits = strip.shared_memory(channels, branch) <= _gluon.SHARED_MEMORY
        if fits and waste <= _WASTE:
            # What a strip reads beside its own columns counts a little.
            cost = waste * (1 + 0.08 * (strip.columns + 2) / strip.columns)
            depth = (min(strip.buffers, 2), min(strip.slots, 4), strip.buffers, strip.slots)
            found.append(((cost, -strip.pixels, *(-part for part in depth)), strip))
    best: dict[tuple[int, int], Strip] = {}
    for _, strip in sorted(found, key=lambda entry: entry[0]):
        best.setdefault((strip.images, strip.columns), strip)
    return list(best.values())


def _every_strip() -> Iterator[Strip]:
    for pixels, columns, slots, buffers in itertools.product(
        (128, 256), (2, 4, 8, 16), (3, 4, 5, 6), (1, 2, 3, 4)
    ):
        yield Strip(pixels // columns, columns, slots, buffers, 0)


def _refusal(operation: Operation, device: Device) -> str:
    """Why the kernel can't run an operation; empty where it can."""
    problem = _gluon.dtype_problem(operation, {bias for _, bias in _weights(operation)})
    if problem:
        return problem
    present = {i for i, kind in enumerate(operation.inputs) if kind is not None}
    residual = {3} if operation.operator == Fused.CONV else set()
    if not present - {0} - residual <= operation.constants:
        return "its weights are no constants"
    parts = [operation] if operation.operator == Fused.CONV else list(branches(operation))
    layers = [Layer.read(part) for part in parts]
    for layer in layers:
        if isinstance(layer, str):
            return layer
    layer = layers[-1]
    assert isinstance(layer, Layer)
    window = layer.window
    if (window.kernel, window.strides, window.dilations) != ((3, 3), (1, 1), (1, 1)):
        return "its window is not 3x3 with strides and dilations of 1"
    if layer.channels > _CHANNELS or layer.outputs % _OUTPUTS:
        return f"it has over {_CHANNELS} channels, or outputs that are no multiple of {_OUTPUTS}"
    if {part.outputs for part in layers if isinstance(part, Layer)} != {layer.outputs}:
        return "its branches have different numbers of outputs"
    if any(stride % 8 for stride in (layer.x_stride, layer.y_stride, layer.z_stride)):
        return "its pixels are not multiples of 16 bytes apart"
    return "" if _Sizes.read(operation).strips(device) else "it has too few images for its strips"


def _weights(operation: Operation) -> tuple[tuple[int, int], ...]:
    """Positions of weights and biases."""
    return ((1, 2),) if operation.operator == Fused.CONV else ((1, 2), (3, 4))


def _inputs(
    operation: Operation, inputs: Sequence[torch.Tensor | None]
) -> tuple[Any, Any, Any, Any]:
    """X, the window's W and B, the pointwise branch's, and Z."""
    if operation.operator == Fused.CONV:
        x, w, bias, z = [*inputs, None, None][:4]
        return x, (w, bias), (None, None), z
    x, w1, bias1, w2, bias2 = [*inputs, None][:5]
    return x, (w2, bias2), (w1, bias1), None


def _image(
    layer: Layer,
    tensor: torch.Tensor,
    size: tuple[int, int],
    channels: int,
    pixel: int,
    block: list[int],
) -> Any:
    """A descriptor with the dimensions in the order (H, W, N, C)."""
    height, width = size
    sizes = [height, width, layer.images, channels]
    return _gluon.view(tensor, sizes, [width * pixel, pixel, height * width * pixel, 1], block)


def _by_pointers(
    operation: Operation,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor],
) -> Launch:
    """For an address that the accelerator can't be told of: a kernel of the same weights."""
    depth = _Sizes.read(operation).padded
    tiling = Tiling(128, _OUTPUTS, depth, 4, 3)
    config = {**tiling.config(), "precision": "ieee", "pdl": False}
    other = TritonConv() if operation.operator == Fused.CONV else TritonBranches()
    return other.bind(operation, config, inputs, outputs, None, None)
