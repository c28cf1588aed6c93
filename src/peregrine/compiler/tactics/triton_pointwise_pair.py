"""Two 1x1 convolutions in a row, both outputs written, in one launch of a Triton kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from peregrine.compiler.cost import cost
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _nhwc, _triton
from peregrine.compiler.tactics._layers import Layer, pack_bias, pack_weights, read_layer
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 8
"""Tilings of one operation that are compiled and timed."""
_WIDEST = 512
"""Channels of X and of Y2, each of which a program keeps on the chip for its pixels."""
_SHARED_MEMORY = 227 * 1024
"""Bytes that blocks on one multiprocessor of Hopper may use."""
_REGISTERS = 192
"""A thread's for sums: with more, of its 255, compiled kernels begin to spill."""
_LAUNCH = 2.0e-6
"""Seconds of a kernel that are no work."""
_LATENCY = 0.7e-6
"""Seconds from asking for a block until it is multiplied."""
_L2_BYTES = 42e9
"""Bytes a second that one multiprocessor reads from the L2 cache."""
_EFFICIENCY = 0.8
"""Of the memory's bandwidth that such a kernel comes to."""


class TritonPointwisePair(Tactic):
    """The last convolution of a residual block with the first of the next, by
    `kernels.pointwise_pair`: where many images make memory the limit."""

    name = "triton_pointwise_pair"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.POINTWISE_PAIR:
            return Support.no(f"it runs {Fused.POINTWISE_PAIR}, not {operation.operator}")
        x, w1, _, z, w2, _ = _inputs(operation)
        y1, y2 = operation.outputs
        problem = _triton.available(device) or _nhwc.first(
            *(_nhwc.size_problem(kind, "an image") for kind in (x, z, y1, y2)),
            _nhwc.dtype_problem(x, _nhwc.HALVES, "X"),
            _nhwc.constant_problem(operation, (1, 2, 4, 5)),
        )
        if problem:
            return Support.no(problem)
        if len({kind.dtype for kind in (x, w1, z, w2, y1, y2) if kind is not None}) != 1:
            return Support.no("its images and weights have different dtypes")
        for part in _parts(operation):
            layer = Layer.read(part)
            if isinstance(layer, str):
                return Support.no(layer)
        if max(_nhwc.shape(x)[1], _nhwc.shape(y2)[1]) > _WIDEST:
            return Support.no(f"X or Y2 has more than {_WIDEST} channels")
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        sizes = _Sizes.read(operation)
        # Of equal ones the deeper pipeline.
        found = sorted(
            _tilings(sizes), key=lambda tiling: (_predict(sizes, tiling, device), -tiling.stages)
        )
        # Different tiles are a better list than the depths of one.
        best: dict[tuple[int, int, int], _Tiling] = {}
        for tiling in found:
            best.setdefault((tiling.block_m, tiling.block_o, tiling.warps), tiling)
        kept = list(best.values())
        pdl = _nhwc.pdl(device)
        return [{**tiling.config(), "pdl": pdl} for tiling in kept[:_TRIED]]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        return _predict(_Sizes.read(operation), _Tiling.read(config), device)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        _triton.compile_ahead([self.kernel(operation, config) for config in configs], device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        sizes, tiling = _Sizes.read(operation), _Tiling.read(config)
        packed = list(inputs)
        w1, b1, w2, b2 = packed[1], packed[2], packed[4], packed[5] if len(packed) > 5 else None
        assert w1 is not None
        assert w2 is not None
        packed[1] = pack_weights(w1, tiling.block_o, sizes.block_c)
        packed[4] = pack_weights(w2, sizes.block_p, tiling.block_o)
        if b1 is not None:
            packed[2] = pack_bias(b1, tiling.block_o)
        if b2 is not None:
            packed[5] = pack_bias(b2, sizes.block_p)
        return packed

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """Z by Y1: a program reads and writes all channels of its pixels, block by block."""
        return frozenset({3})

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        tensors = [*[*inputs, None][:6], *outputs]
        return _triton.launches([self.kernel(operation, config, tensors)])

    def kernel(
        self,
        operation: Operation,
        config: Config,
        tensors: Sequence[torch.Tensor | None] | None = None,
    ) -> _triton.Kernel:
        """What a launch of this configuration launches.

        Args:
            tensors: X, W1 and B1 as packed, Z, W2 and B2 as packed, Y1, Y2; None to compile only.
        """
        from peregrine.compiler.kernels import pointwise_pair

        sizes, tiling = _Sizes.read(operation), _Tiling.read(config)
        first, second = (read_layer(part) for part in _parts(operation))
        x, w1, bias1, z, w2, bias2, y1, y2 = tensors or _nhwc.stand_ins(
            [*_inputs(operation), *operation.outputs], biases=(2, 5)
        )
        arguments: dict[str, Any] = {
            "x": x,
            "w1": w1,
            # Absent tensors are never touched: any pointer will do.
            "bias1": y1 if bias1 is None else bias1,
            "z": y1 if z is None else z,
            "w2": w2,
            "bias2": y1 if bias2 is None else bias2,
            "y1": y1,
            "y2": y2,
            "M": first.m,
            "C": first.channels,
            "O1": first.outputs,
            "O2": second.outputs,
            "X_STRIDE": first.x_stride,
            "Z_STRIDE": first.z_stride,
            "Y1_STRIDE": first.y_stride,
            "Y2_STRIDE": second.y_stride,
            "HAS_BIAS1": first.has_bias,
            "HAS_Z": first.has_z,
            "HAS_BIAS2": second.has_bias,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            **_nhwc.activation_arguments(
                Activation.read(operation.attributes, "second_"), "SECOND_"
            ),
            "BLOCK_M": tiling.block_m,
            "BLOCK_O": tiling.block_o,
            "BLOCK_C": sizes.block_c,
            "BLOCK_P": sizes.block_p,
            "UPCAST": _triton.interpreted(),
            "WIDE": first.wide or second.wide,
            "PDL": bool(config["pdl"]),
        }
        return _triton.Kernel(
            pointwise_pair.pointwise_pair,
            (tiling.tiles(sizes),),
            arguments,
            tiling.warps,
            tiling.stages,
            bool(config["pdl"]),
        )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of the two products, and what they must compute and move."""

    pixels: int
    channels: int
    hidden: int
    """Channels of Y1."""
    outputs: int
    """Channels of Y2."""
    has_z: bool
    flops: float
    bytes: float

    @classmethod
    def read(cls, operation: Operation) -> _Sizes:
        n, channels, height, width = _nhwc.shape(operation.inputs[0])
        y1, y2 = operation.outputs
        spent = cost(operation)
        return cls(
            n * height * width,
            channels,
            _nhwc.shape(y1)[1],
            _nhwc.shape(y2)[1],
            operation.inputs[3] is not None,
            spent.flops,
            spent.bytes,
        )

    @property
    def block_c(self) -> int:
        """C as the kernel pads it."""
        return _nhwc.power(self.channels, 16)

    @property
    def block_p(self) -> int:
        """The channels of Y2 as the kernel pads them."""
        return _nhwc.power(self.outputs, 16)


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How a pair is cut; `Config` holds the same as JSON."""

    block_m: int
    block_o: int
    warps: int
    stages: int

    @classmethod
    def read(cls, config: Config) -> _Tiling:
        return cls(*(int(config[field.name]) for field in fields(cls)))

    def config(self) -> dict[str, int]:
        return asdict(self)

    def tiles(self, sizes: _Sizes) -> int:
        return math.ceil(sizes.pixels / self.block_m)

    def steps(self, sizes: _Sizes) -> int:
        """Blocks of Y1's channels."""
        return math.ceil(sizes.hidden / self.block_o)

    def shared_memory(self, sizes: _Sizes) -> int:
        """Bytes: X, and in each stage a block of W1, of W2 and of Z. (As Triton 3.6 has it, seen in
        compiled kernels; some need less.)"""
        stage = self.block_o * (sizes.block_c + sizes.block_p + self.block_m * sizes.has_z)
        return 2 * (self.block_m * sizes.block_c + self.stages * stage)

    def registers(self, sizes: _Sizes) -> float:
        """A thread's for the sums of Y2, and for a block of Y1 and its residual."""
        return self.block_m * (sizes.block_p + 2 * self.block_o) / (32 * self.warps)

    def resident(self, sizes: _Sizes) -> int:
        """Programs on a multiprocessor at a time."""
        registers = min(255.0, 48 + self.registers(sizes))
        # Of the system's own, 1 KiB a program.
        memory = (_SHARED_MEMORY + 1024) // (self.shared_memory(sizes) + 1024)
        return max(1, min(memory, int(65536 / (registers * 32 * self.warps)), 16 // self.warps))


def _tilings(sizes: _Sizes) -> Iterator[_Tiling]:
    """Every tiling that makes sense, in no order."""
    for block_m, block_o, warps, stages in itertools.product(
        (16, 32, 64, 128), (32, 64, 128, 256), (4, 8), (2, 3, 4)
    ):
        tiling = _Tiling(block_m, block_o, warps, stages)
        if not _useful(block_m, 16, sizes.pixels) or not _useful(block_o, 32, sizes.hidden):
            continue
        # A product of tensor cores has 64 rows for four warps.
        if warps == 8 and block_m < 64:
            continue
        # A pipeline deeper than the loop is none.
        if stages > max(2, tiling.steps(sizes)):
            continue
        fits = tiling.shared_memory(sizes) <= _SHARED_MEMORY
        if fits and tiling.registers(sizes) <= _REGISTERS:
            yield tiling


def _useful(block: int, least: int, size: int) -> bool:
    """Whether no smaller block would do."""
    return block == least or block < 2 * size


def _predict(sizes: _Sizes, tiling: _Tiling, device: Device) -> float:
    """Seconds: each program reads both weights from the L2 cache, which is what counts where there
    are few pixels, and multiplies; all together move the tensors through memory."""
    tiles, steps = tiling.tiles(sizes), tiling.steps(sizes)
    together = min(tiling.resident(sizes), math.ceil(tiles / device.multiprocessors))
    waves = math.ceil(tiles / (device.multiprocessors * together))
    padded = steps * tiling.block_o
    weights = 2 * padded * (sizes.block_c + sizes.block_p)
    moved = 2 * tiling.block_m * (
        sizes.channels + sizes.outputs + sizes.hidden * (1 + sizes.has_z)
    )  # fmt: skip
    flops = 2 * tiling.block_m * padded * (sizes.block_c + sizes.block_p)
    efficiency = 0.6 * min(1.0, tiling.block_m / 64)
    compute = flops * device.multiprocessors / (device.flops * efficiency)
    step = max(together * compute, together * (weights + moved) / _L2_BYTES) / steps
    wave = _LATENCY + steps * max(step, _LATENCY / (tiling.stages - 1))
    # While a program waits for its X, only the others of its multiprocessor ask for more.
    memory = sizes.bytes / (device.bandwidth * _EFFICIENCY) + waves * _LATENCY / together
    # What is hidden behind the other still counts a little: it breaks ties.
    return _LAUNCH + max(waves * wave, memory) + 0.05 * min(waves * wave, memory)


def _inputs(operation: Operation) -> tuple[TensorType | None, ...]:
    """All six."""
    return (*operation.inputs, None)[:6]


def _parts(operation: Operation) -> tuple[Operation, Operation]:
    """The two as convolutions of their own."""
    x, w1, b1, z, w2, b2 = _inputs(operation)
    y1, y2 = operation.outputs

    def part(inputs: tuple[TensorType | None, ...], y: TensorType) -> Operation:
        attributes = {**Window((1, 1)).attributes(), "group": 1}
        return Operation(Fused.CONV, attributes, inputs, (y,), opset=operation.opset)

    return part((x, w1, b1, z), y1), part((y1, w2, b2), y2)
