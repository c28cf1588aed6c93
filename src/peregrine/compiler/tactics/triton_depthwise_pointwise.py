"""A depthwise convolution with the 1x1 convolution behind it, by `kernels.depthwise`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _depthwise, _nhwc, _triton
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 10
"""Configurations of one operation that are compiled and timed."""
_OPERATIONS = 1.8e13
"""Multiplications with a conversion a second that an H200 does on its scalar units."""
_L1 = 2.0e13
"""Bytes a second that all multiprocessors of an H200 load from their L1 caches."""


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How a DepthwisePointwise is cut; `Config` holds the same as JSON."""

    block_m: int
    tile_w: int
    block_o: int
    block_c: int
    warps: int
    stages: int
    splits: int = 1

    @classmethod
    def read(cls, config: Config) -> _Tiling:
        return cls(*(int(config[name]) for name in cls.__slots__))

    def config(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in self.__slots__}

    def tiles(self, operation: Operation) -> int:
        """Of the output."""
        outputs = _nhwc.shape(operation.outputs[0])[1]
        return _depthwise.programs(operation, self.block_m, self.tile_w) * math.ceil(
            outputs / self.block_o
        )

    def channels_of_split(self, channels: int) -> int:
        blocks = math.ceil(channels / self.block_c)
        return math.ceil(blocks / self.splits) * self.block_c


class TritonDepthwisePointwise(Tactic):
    """A depthwise convolution computed tile by tile while a 1x1 convolution sums over its channels:
    the hidden tensor, the largest of an inverted residual block, is never written."""

    name = "triton_depthwise_pointwise"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.DEPTHWISE_POINTWISE:
            return Support.no(f"it runs {Fused.DEPTHWISE_POINTWISE}, not {operation.operator}")
        problem = _triton.available(device) or _nhwc.first(
            _nhwc.dtype_problem(operation.inputs[0], _nhwc.HALVES, "X"),
            _nhwc.dtype_problem(operation.inputs[1], _nhwc.HALVES, "WD"),
            _nhwc.dtype_problem(operation.inputs[3], _nhwc.HALVES, "WP"),
            _nhwc.constant_problem(operation, (1, 2, 3, 4)),
            _depthwise.problem(operation, _nhwc.optional(operation, 5)),
        )
        return Support.no(problem) if problem else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        found = sorted(
            _tilings(operation, device), key=lambda tiling: _predict(operation, tiling, device)
        )
        pdl = _nhwc.pdl(device)
        return [{**tiling.config(), "pdl": pdl} for tiling in found[:_TRIED]]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        return _predict(operation, _Tiling.read(config), device)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        y = operation.outputs[0]
        stand_ins = _nhwc.stand_ins([*[*operation.inputs, None, None][:6], y], biases=(2, 4))
        partial, counter = _nhwc.stand_in(y, "float32"), _nhwc.stand_in(y, "int32")
        kernels = [
            self.kernel(operation, config, [*stand_ins, partial, counter])
            if _Tiling.read(config).splits > 1
            else self.kernel(operation, config, [*stand_ins, None, None])
            for config in configs
        ]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        import torch.nn.functional as functional

        packed = list(inputs)
        wd, bd, wp, bp = packed[1], packed[2], packed[3], packed[4] if len(packed) > 4 else None
        assert wd is not None
        assert wp is not None
        packed[1] = _depthwise.pack_taps(wd)
        columns = wp.reshape(wp.shape[:2]).t()
        packed[3] = functional.pad(columns, (0, -wp.shape[0] % int(config["block_o"]))).contiguous()
        for position, bias in ((2, bd), (4, bp)):
            if bias is not None:
                packed[position] = bias.float().contiguous()
        return packed

    def workspace(self, operation: Operation, config: Config, device: Device) -> int:
        tiling = _Tiling.read(config)
        if tiling.splits == 1:
            return 0
        return 4 * tiling.tiles(operation) * tiling.splits * tiling.block_m * tiling.block_o

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        tiling = _Tiling.read(config)
        return 0 if tiling.splits == 1 else 4 * tiling.tiles(operation)

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

        partial = None if workspace is None else workspace.view(torch.float32)
        counter = None if state is None else state.view(torch.int32)
        tensors = [*[*inputs, None, None][:6], outputs[0], partial, counter]
        return _triton.launches([self.kernel(operation, config, tensors)])

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X; WD, BD, WP, BP as packed; Z, Y, partial sums, counters.
        """
        from peregrine.compiler.kernels import depthwise

        x, wd, bd, wp, bp, z, y, partial, counter = tensors
        tiling = _Tiling.read(config)
        pdl = bool(config["pdl"])
        sizes = _depthwise.sizes(operation)
        outputs = _nhwc.shape(operation.outputs[0])[1]
        blocks = math.ceil(outputs / tiling.block_o)
        attributes = operation.attributes
        # Absent tensors are never touched: any pointer will do.
        arguments: dict[str, Any] = {
            "x": x,
            "wd": wd,
            "wp": wp,
            "y": y,
            "bd": y if bd is None else bd,
            "bp": y if bp is None else bp,
            "z": y if z is None else z,
            "partial": y if partial is None else partial,
            "counter": y if counter is None else counter,
            **sizes,
            "OC": outputs,
            **_nhwc.nhw("x", operation.inputs[0]),
            **_nhwc.nhw("z", _nhwc.optional(operation, 5)),
            **_nhwc.nhw("y", operation.outputs[0]),
            "stride_wp": blocks * tiling.block_o,
            "channels_of_split": tiling.channels_of_split(sizes["C"]),
            **_depthwise.window_arguments(operation),
            "HAS_INNER_BIAS": bd is not None,
            "HAS_BIAS": bp is not None,
            "HAS_Z": z is not None,
            **_nhwc.activation_arguments(Activation.read(attributes, "inner_"), "INNER_"),
            **_nhwc.activation_arguments(Activation.read(attributes)),
            "BLOCK_M": tiling.block_m,
            "TILE_W": tiling.tile_w,
            "BLOCK_O": tiling.block_o,
            "BLOCK_C": tiling.block_c,
            "SPLITS": tiling.splits,
            "UPCAST": _triton.interpreted(),
            "PDL": pdl,
        }
        grid = (
            _depthwise.programs(operation, tiling.block_m, tiling.tile_w),
            blocks,
            tiling.splits,
        )
        return _triton.Kernel(
            depthwise.depthwise_pointwise_kernel,
            grid,
            arguments,
            tiling.warps,
            tiling.stages,
            pdl,
        )


def _tilings(operation: Operation, device: Device) -> Iterator[_Tiling]:
    """Every tiling that makes sense, in no order."""
    sizes = _depthwise.sizes(operation)
    outputs = _nhwc.shape(operation.outputs[0])[1]
    whole = _nhwc.power(outputs, 16)
    for block_m, tile_w in ((16, 0), (32, 0), (64, 0), (64, 8), (128, 0), (128, 16)):
        if tile_w > sizes["OW"]:
            continue
        for block_o in {min(whole, 256), min(whole, 128), min(whole, 64), min(whole, 32)}:
            for block_c in (32, 64):
                if (block_c > 32 and block_c >= 2 * sizes["C"]) or block_m * block_c > 4096:
                    continue
                warps = 8 if block_m * block_o > 8192 or block_m * block_c > 2048 else 4
                for stages in (1, 2):
                    one = _Tiling(block_m, tile_w, block_o, block_c, warps, stages)
                    yield one
                    blocks = math.ceil(sizes["C"] / block_c)
                    for splits in (2, 3, 4, 6, 8, 12):
                        full = math.ceil(blocks / math.ceil(blocks / splits)) == splits
                        if full and one.tiles(operation) * splits <= 2 * device.multiprocessors:
                            yield _Tiling(block_m, tile_w, block_o, block_c, warps, stages, splits)


def _predict(operation: Operation, tiling: _Tiling, device: Device) -> float:
    sizes = _depthwise.sizes(operation)
    window = Window.read(operation.attributes)
    taps = math.prod(window.kernel)
    outputs = _nhwc.shape(operation.outputs[0])[1]
    programs = tiling.tiles(operation) * tiling.splits
    steps = math.ceil(tiling.channels_of_split(sizes["C"]) / tiling.block_c)
    scale = device.multiprocessors / 132

    hidden = programs * steps * tiling.block_m * tiling.block_c
    scalar = hidden * taps / (_OPERATIONS * scale)
    products = 2 * hidden * tiling.block_o / (0.4 * device.flops)
    if tiling.stages > 1:
        # Copied asynchronously past the L1 cache: each tap comes from the L2 cache.
        loads = hidden * taps * 2 / (_depthwise.L2 * scale)
    else:
        x = operation.inputs[0]
        assert x is not None
        reads = _depthwise.vertical_reads(operation, tiling.block_m, tiling.tile_w)
        blocks = math.ceil(outputs / tiling.block_o)
        loads = max(
            hidden * taps * 2 / (_L1 * scale), reads * blocks * x.bytes / (_depthwise.L2 * scale)
        )
    resident = device.multiprocessors * max(1, 12 // tiling.warps)
    waves = math.ceil(programs / resident)
    alone = waves * (1e-6 + steps * (1.0e-6 if tiling.stages == 1 else 0.6e-6))
    memory = _nhwc.moved(operation) / device.bandwidth
    seconds = _nhwc.START + max(alone, scalar + products, loads, memory)
    if tiling.splits > 1:
        partial = 4 * programs * tiling.block_m * tiling.block_o
        seconds += _nhwc.SPLIT + 2 * partial / (_depthwise.L2 * scale)
    return seconds
