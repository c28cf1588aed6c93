"""1x1 convolutions of many pixels by `kernels.pointwise`, whose weights stay on the chip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Fused
from peregrine.compiler.tactics import _gluon, _nhwc, _triton
from peregrine.compiler.tactics._layers import Layer, pack_bias, pack_weights, read_layer
from peregrine.compiler.tactics._tiles import Tiling
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.compiler.tactics.triton_conv import TritonConv
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 3
"""Tilings of one operation that are compiled and timed."""
_CHANNELS = 256
"""Of the input: of more, weights of too few outputs fit the shared memory."""
_FEWEST = 16384
"""Pixels: with fewer there is no time to make good for fetching the weights first."""
_WASTE = 1.4
"""How many times its outputs may be computed for a wide block to be worth a try."""
_BUFFERS = 2
"""Blocks of each group of warps on their way to memory."""
_LAUNCH = 2.0e-6
"""Seconds of a kernel that are no work: its start, the weights, the first tile."""
_EFFICIENCY = 0.77
"""Of the memory's bandwidth that it came to on an H200 (0.71 to 0.85)."""


class GluonPointwise(Tactic):
    """Expanding and residual 1x1 convolutions, where memory is the limit."""

    name = "gluon_pointwise"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator not in (Fused.CONV, Fused.LINEAR):
            return Support.no(f"it runs convolutions and matrix products, not {operation.operator}")
        reason = _gluon.missing(device) or _refusal(operation, device)
        return Support.no(reason) if reason else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        return [slab.config() for slab in _slabs(read_layer(operation), device)[:_TRIED]]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        product, slab = read_layer(operation).product, Slab.read(config)
        # Of equal ones that of fewer slices, each of which reads the input.
        slices = math.ceil(product.n / slab.outputs)
        memory = product.bytes / (device.bandwidth * _EFFICIENCY)
        return _LAUNCH + memory * (1 + 0.003 * slices)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        _triton.compile_ahead([self.kernel(operation, config) for config in configs], device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        layer, slab = read_layer(operation), Slab.read(config)
        packed = list(inputs)
        assert packed[1] is not None
        packed[1] = pack_weights(packed[1], slab.block_n, _depth(layer))
        if len(packed) > 2 and packed[2] is not None:
            packed[2] = pack_bias(packed[2], slab.outputs)
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
        x, w, bias, z = [*inputs, None, None][:4]
        if not _gluon.aligned(x, z, outputs[0]):
            return _by_pointers(operation, config, inputs, outputs)
        return _triton.launches([self.kernel(operation, config, [x, w, bias, z, outputs[0]])])

    def kernel(
        self,
        operation: Operation,
        config: Config,
        tensors: Sequence[torch.Tensor | None] | None = None,
    ) -> _triton.Kernel:
        """What a launch of this configuration launches.

        Args:
            tensors: X, W and B as packed, Z, Y; None to compile only.
        """
        from peregrine.compiler.kernels import pointwise

        layer, slab = read_layer(operation), Slab.read(config)
        x, w, bias, z, y = tensors or _nhwc.stand_ins(
            [*[*operation.inputs, None, None][:4], operation.outputs[0]]
        )
        assert x is not None
        assert w is not None
        assert y is not None
        depth = _depth(layer)
        chunks = math.ceil(layer.channels / depth)
        ends = layer.epilogue()
        padded = math.ceil(layer.outputs / slab.block_n) * slab.block_n

        def rows(tensor: torch.Tensor, channels: int, stride: int, block: int) -> Any:
            return _gluon.view(tensor, [layer.m, channels], [stride, 1], [slab.block_m, block])

        arguments: dict[str, Any] = {
            "x": rows(x, layer.channels, layer.x_stride, depth),
            "w": _gluon.view(
                w, [padded, chunks * depth], [chunks * depth, 1], [slab.block_n, depth]
            ),
            # Absent tensors are never touched: any will do.
            "bias": w if bias is None else bias,
            "z": rows(
                y if z is None else z,
                layer.outputs,
                layer.z_stride or layer.y_stride,
                slab.block_n,
            ),
            "y": rows(y, layer.outputs, layer.y_stride, slab.block_n),
            "M": layer.m,
            "O": layer.outputs,
            "HAS_BIAS": bias is not None,
            "HAS_Z": z is not None,
            **{name: ends[name] for name in ("KIND", "ALPHA", "BETA")},
            "BLOCK_M": slab.block_m,
            "BLOCK_N": slab.block_n,
            "BLOCK_K": depth,
            "BLOCKS": slab.blocks,
            "CHUNKS": chunks,
            "SLOTS": slab.slots,
            "BUFFERS": _BUFFERS,
        }
        return _triton.Kernel(pointwise.pointwise, (slab.programs,), arguments, 4, 1)


@dataclass(frozen=True, slots=True)
class Slab:
    """How an output is cut; `Config` holds the same as JSON."""

    block_m: int
    block_n: int
    blocks: int
    """Of outputs whose weights a program keeps."""
    slots: int
    """Tiles of the input in the ring, an even number."""
    programs: int

    @classmethod
    def read(cls, config: Config) -> Slab:
        return cls(*(int(config[field.name]) for field in fields(cls)))

    def config(self) -> dict[str, int]:
        return asdict(self)

    @property
    def outputs(self) -> int:
        """Of a program."""
        return self.block_n * self.blocks

    def shared_memory(self, layer: Layer) -> int:
        """Bytes."""
        depth = _depth(layer)
        chunks = math.ceil(layer.channels / depth)
        ring = self.slots * chunks * self.block_m * depth
        weights = self.blocks * chunks * self.block_n * depth
        stages = 2 * _BUFFERS * self.block_m * self.block_n
        return 2 * (ring + weights + stages) + _gluon.BARRIERS


def _depth(layer: Layer) -> int:
    """Channels of a block."""
    return min(64, _gluon.power(layer.channels, 16))


def _slabs(layer: Layer, device: Device) -> list[Slab]:
    """Of each shape of a block the one with the most outputs to a program that fits; wide blocks
    first, which were faster even with columns too many."""
    found: list[Slab] = []
    for block_n, block_m in itertools.product((128, 64, 32, 16), (128, 64)):
        every = math.ceil(layer.outputs / block_n)
        if every * block_n > _WASTE * layer.outputs:
            continue
        cuts = (
            _slab(block_m, block_n, blocks, slots, every // blocks, device)
            for blocks, slots in itertools.product((4, 3, 2, 1), (4, 2))
            if every % blocks == 0
        )
        fitting = (cut for cut in cuts if cut.shared_memory(layer) <= _gluon.SHARED_MEMORY)
        slab = next(fitting, None)
        if slab is not None:
            found.append(slab)
    return found


def _slab(block_m: int, block_n: int, blocks: int, slots: int, slices: int, device: Device) -> Slab:
    programs = max(1, device.multiprocessors // slices) * slices
    return Slab(block_m, block_n, blocks, slots, programs)


def _refusal(operation: Operation, device: Device) -> str:
    """Why the kernel can't run an operation; empty where it can."""
    problem = _gluon.dtype_problem(operation, {2})
    if problem:
        return problem
    present = {i for i, kind in enumerate(operation.inputs) if kind is not None}
    if not present - {0, 3} <= operation.constants:
        return "its weights are no constants"
    layer = Layer.read(operation)
    if isinstance(layer, str):
        return layer
    if not layer.window.is_pointwise or layer.window.strides != (1, 1):
        return "it is no 1x1 convolution of stride 1"
    if layer.channels > _CHANNELS:
        return f"it has over {_CHANNELS} channels"
    if any(step % 8 for step in (layer.x_stride, layer.y_stride, layer.z_stride)):
        return "its pixels are not multiples of 16 bytes apart"
    if layer.m < _FEWEST:
        return f"it has under {_FEWEST} pixels"
    return "" if _slabs(layer, device) else "its weights don't fit the shared memory"


def _by_pointers(
    operation: Operation,
    config: Config,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor],
) -> Launch:
    """For an address that the accelerator can't be told of: a kernel of the same weights."""
    tiling = Tiling(128, Slab.read(config).block_n, _depth(read_layer(operation)), 4, 3)
    other = {**tiling.config(), "precision": "ieee", "pdl": False}
    return TritonConv().bind(operation, other, inputs, outputs, None, None)
