"""Depthwise convolutions of any window, by `kernels.depthwise`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
_INSTRUCTIONS = 2.9e13
"""A second that an H200 starts, counted by lanes."""


class TritonDepthwise(Tactic):
    """One filter a channel: each tap loaded anew from the L1 cache (`rows` 0), or rows walked down
    with the sums of three output rows in registers."""

    name = "triton_depthwise"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.CONV:
            return Support.no(f"it runs {Fused.CONV}, not {operation.operator}")
        problem = _triton.available(device)
        if not problem:
            problem = _nhwc.first(
                _nhwc.dtype_problem(operation.inputs[0], _nhwc.FLOATS, "X"),
                _nhwc.dtype_problem(operation.inputs[1], _nhwc.FLOATS, "W"),
                _nhwc.constant_problem(operation, (1, 2)),
                _depthwise.problem(operation, _nhwc.optional(operation, 3)),
            )
        return Support.no(problem) if problem else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        _, channels, _, _ = _nhwc.shape(operation.outputs[0])
        elements = math.prod(_nhwc.shape(operation.outputs[0]))
        least = 16 if channels <= 16 else 32
        if elements < 2048 * device.multiprocessors:
            tiles = [(8, 0, least, 1), (16, 0, least, 2), (16, 0, least, 4), (32, 0, least, 4)]
            tiles += [(4, 0, 2 * least, 1), (16, 4, least, 2)]
        else:
            tiles = [(64, 8, least, 4), (32, 0, least, 4), (64, 0, least, 4), (128, 16, least, 8)]
            tiles += [(32, 8, 2 * least, 4), (128, 16, least, 4)]
        pdl = _nhwc.pdl(device)
        found: list[Config] = [_config(*tile, 0, pdl) for tile in tiles]
        if _walks(operation):
            n, _, oh, ow = _nhwc.shape(operation.outputs[0])
            for block_m, block_c, warps in ((32, least, 4), (16, 2 * least, 4)):
                strips = math.ceil(n * ow / block_m) * math.ceil(channels / block_c)
                found += [
                    _config(block_m, 0, block_c, warps, rows, pdl)
                    for rows in _rows(oh, strips, device)
                ]
        return found[:_TRIED]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        n, channels, oh, ow = _nhwc.shape(operation.outputs[0])
        block_m, block_c, rows = (int(config[name]) for name in ("block_m", "block_c", "rows"))
        window = Window.read(operation.attributes)
        taps = math.prod(window.kernel)
        padded = math.ceil(channels / block_c) * block_c
        scale = device.multiprocessors / 132
        # Of 65 instructions an output of a 3x3 window 9 are products: the rest converts and finds
        # the taps.
        work = n * oh * ow * padded * (6.7 * taps + 5) / (_INSTRUCTIONS * scale)
        memory = _nhwc.moved(operation) / device.bandwidth
        steps = 1.0
        if rows:
            programs = math.ceil(n * ow / block_m) * math.ceil(oh / rows) * padded // block_c
            steps = rows + 1.0
        else:
            programs = (
                _depthwise.programs(operation, block_m, int(config["tile_w"])) * padded // block_c
            )
            reads = _depthwise.vertical_reads(operation, block_m, int(config["tile_w"]))
            x = operation.inputs[0]
            assert x is not None
            work = max(work, reads * x.bytes / (_depthwise.L2 * scale))
        resident = device.multiprocessors * max(1, 20 // int(config["warps"]))
        waves = math.ceil(programs / resident)
        return _nhwc.START + max(0.7e-6 * waves * steps, work, memory)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        stand_ins = _nhwc.stand_ins([*[*operation.inputs, None, None][:4], operation.outputs[0]])
        kernels = [self.kernel(operation, config, stand_ins) for config in configs]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        return _depthwise.pack(inputs)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        tensors = [*[*inputs, None, None][:4], outputs[0]]
        return _triton.launches([self.kernel(operation, config, tensors)])

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X, W and B as packed, Z, Y.
        """
        from peregrine.compiler.kernels import depthwise

        x, w, b, z, y = tensors
        block_m, tile_w, block_c, rows = (
            int(config[name]) for name in ("block_m", "tile_w", "block_c", "rows")
        )
        pdl = bool(config["pdl"])
        sizes = _depthwise.sizes(operation)
        blocks = math.ceil(sizes["C"] / block_c)
        arguments: dict[str, Any] = {
            "x": x,
            "w": w,
            "b": y if b is None else b,
            "y": y,
            **sizes,
            **_nhwc.nhw("x", operation.inputs[0]),
            **_nhwc.nhw("y", operation.outputs[0]),
            "HAS_BIAS": b is not None,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            "BLOCK_M": block_m,
            "BLOCK_C": block_c,
            "PDL": pdl,
        }
        if rows:
            window = Window.read(operation.attributes)
            arguments |= {
                "rows_of_program": rows,
                "STRIDE": window.strides[0],
                "TOP": window.pads[0],
                "LEFT": window.pads[1],
            }
            strips = math.ceil(sizes["N"] * sizes["OW"] / block_m)
            grid: tuple[int, ...] = (strips, math.ceil(sizes["OH"] / rows), blocks)
            function = depthwise.depthwise_rows_kernel
        else:
            arguments |= {
                "z": y if z is None else z,
                "HAS_Z": z is not None,
                **_nhwc.nhw("z", _nhwc.optional(operation, 3)),
                **_depthwise.window_arguments(operation),
                "TILE_W": tile_w,
            }
            grid = (_depthwise.programs(operation, block_m, tile_w), blocks)
            function = depthwise.depthwise_kernel
        return _triton.Kernel(function, grid, arguments, int(config["warps"]), 1, pdl)


def _config(block_m: int, tile_w: int, block_c: int, warps: int, rows: int, pdl: bool) -> Config:
    return {
        "block_m": block_m,
        "tile_w": tile_w,
        "block_c": block_c,
        "warps": warps,
        "rows": rows,
        "pdl": pdl,
    }


def _walks(operation: Operation) -> bool:
    """Whether the kernel that walks down rows takes it."""
    window = Window.read(operation.attributes)
    return (
        window.kernel == (3, 3)
        and window.dilations == (1, 1)
        and window.strides in ((1, 1), (2, 2))
        and _nhwc.optional(operation, 3) is None
    )


def _rows(rows: int, strips: int, device: Device) -> Iterator[int]:
    """Rows a program walks, evenly shared; 1 would load as often as no walk."""
    seen = set()
    for programs in (8, 24):
        each = max(1, math.ceil(rows * strips / (programs * device.multiprocessors)))
        each = math.ceil(rows / math.ceil(rows / min(rows, each)))
        if each > 1 and each not in seen:
            seen.add(each)
            yield each
