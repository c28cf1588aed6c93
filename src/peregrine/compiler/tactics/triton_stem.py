"""Convolutions of at most four input channels, alone or with a max pooling, by `kernels.stem`."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _nhwc, _triton
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 10
"""Configurations of one operation that are compiled and timed."""
_CHANNELS = 4
_DEEPEST = 256
"""The inner dimension of the product, padding included, that still fits into registers."""
_GATHER = 1.2e13
"""Elements a second that all multiprocessors of an H200 load and round."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the inner dimension of the product is laid out; see `kernels.stem`."""

    window: Window
    channels: int
    groups: int
    left: int
    """Columns that a window starts before its output column times the stride."""
    width: int
    chunk: int
    rest: int

    @classmethod
    def of(cls, window: Window, channels: int) -> Geometry:
        stride_h, stride_w = window.strides
        kh, kw = window.kernel
        left = window.pads[1]
        # Windows that start at a multiple of the stride are loaded in wider vectors.
        aligned = math.ceil(left / stride_w) * stride_w
        if _nhwc.power(kw + aligned - left) == _nhwc.power(kw):
            left = aligned
        width = _nhwc.power(kw, 4)
        chunk, rest = _split(stride_h * channels, width)
        return cls(window, channels, math.ceil(kh / stride_h), left, width, chunk, rest)

    @property
    def depth(self) -> int:
        """The inner dimension of the product, padding included."""
        return self.groups * (self.chunk + self.rest) * self.width

    def arguments(self) -> dict[str, int]:
        """The kernel's constants."""
        return {
            "C": self.channels,
            "STRIDE_H": self.window.strides[0],
            "STRIDE_W": self.window.strides[1],
            "TOP": self.window.pads[0],
            "LEFT": self.left,
            "KH": self.window.kernel[0],
            "KW": self.window.kernel[1],
            "BEFORE": self.left - self.window.pads[1],
            "GROUPS": self.groups,
            "WIDTH": self.width,
            "CHUNK": self.chunk,
            "REST": self.rest,
        }

    def pack(self, weights: torch.Tensor, block_o: int) -> torch.Tensor:
        """(O, C, KH, KW) as (depth, O padded to block_o), zeros where there is padding."""
        import torch.nn.functional as functional

        outputs, channels, kh, kw = weights.shape
        rows = self.window.strides[0]
        before = self.left - self.window.pads[1]
        padded = functional.pad(
            weights, (before, self.width - kw - before, 0, self.groups * rows - kh)
        )
        pairs = (
            padded.reshape(outputs, channels, self.groups, rows, self.width)
            .permute(2, 3, 1, 4, 0)
            .reshape(self.groups, rows * channels, self.width, outputs)
        )
        missing = self.chunk + self.rest - rows * channels
        pairs = functional.pad(pairs, (0, -outputs % block_o, 0, 0, 0, missing))
        return pairs.reshape(self.depth, -1).contiguous()


def _split(pairs: int, width: int) -> tuple[int, int]:
    """`pairs` (row, channel) pairs as one or two powers of two that hold them, each with at least
    16 elements, the depth of a tensor core's product."""
    least = max(1, 16 // width)
    whole = _nhwc.power(pairs, least)
    chunk = max(least, whole // 2)
    rest = _nhwc.power(pairs - chunk, least) if pairs > chunk else 0
    return (chunk, rest) if chunk + rest < whole else (whole, 0)


class _Stem(Tactic):
    """What the convolution has in common with and without a pooling."""

    operator: ClassVar[Fused]

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != self.operator:
            return Support.no(f"it runs {self.operator}, not {operation.operator}")
        problem = _triton.available(device) or self.problem(operation)
        return Support.no(problem) if problem else Support.yes()

    def problem(self, operation: Operation) -> str:
        """Why this operation can't be taken; empty where it can."""
        x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
        problem = _nhwc.first(
            _nhwc.dtype_problem(x, _nhwc.FLOATS, "X"),
            _nhwc.dtype_problem(w, _nhwc.HALVES, "W"),
            _nhwc.dtype_problem(y, _nhwc.FLOATS, "Y"),
            _nhwc.size_problem(x, "X", innermost=False),
            _nhwc.size_problem(y, "Y"),
            _nhwc.constant_problem(operation, (1, 2)),
        )
        if problem:
            return problem
        window = Window.read(operation.attributes)
        channels = _nhwc.shape(x)[1]
        if channels > _CHANNELS or int(operation.attributes.get("group", 1)) != 1:
            return f"it takes dense convolutions of at most {_CHANNELS} channels"
        if window.dilations != (1, 1):
            return "its window is dilated"
        if Geometry.of(window, channels).depth > _DEEPEST:
            return f"its window has more than {_DEEPEST} elements, padding included"
        if _nhwc.optional(operation, 3) is not None:
            return "it adds no Z"
        return ""

    def geometry(self, operation: Operation) -> Geometry:
        channels = _nhwc.shape(operation.inputs[0])[1]
        return Geometry.of(Window.read(operation.attributes), channels)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        stand_ins = _nhwc.stand_ins([*[*operation.inputs, None][:3], operation.outputs[0]])
        kernels = [self.kernel(operation, config, stand_ins) for config in configs]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        import torch.nn.functional as functional

        packed = list(inputs)
        block_o = int(config["block_o"])
        assert packed[1] is not None
        outputs = packed[1].shape[0]
        packed[1] = self.geometry(operation).pack(packed[1], block_o)
        if len(packed) > 2 and packed[2] is not None:
            packed[2] = functional.pad(packed[2].float(), (0, -outputs % block_o)).contiguous()
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
        return _triton.launches(
            [self.kernel(operation, config, [*[*inputs, None][:3], outputs[0]])]
        )

    @abc.abstractmethod
    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X, then W and B as packed, then Y.
        """

    def arguments(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> dict[str, Any]:
        """Those of both kernels."""
        x, y = operation.inputs[0], operation.outputs[0]
        data = dict(zip("xwby", tensors, strict=True))
        has_bias = data["b"] is not None
        if not has_bias:
            data["b"] = data["y"]
        n, _, h, w = _nhwc.shape(x)
        outputs = _nhwc.shape(operation.inputs[1])[0]
        block_o = int(config["block_o"])
        oh, ow = Window.read(operation.attributes).output(h, w)
        return {
            **data,
            "N": n,
            "H": h,
            "W": w,
            "OH": oh,
            "OW": ow,
            "OC": outputs,
            **_nhwc.nhw("x", x),
            "stride_xc": _nhwc.strides(x)[1],
            "stride_wk": math.ceil(outputs / block_o) * block_o,
            **_nhwc.nhw("y", y),
            "rows_of_program": int(config["rows"]),
            **self.geometry(operation).arguments(),
            "HAS_BIAS": has_bias,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            "BLOCK_M": int(config["block_m"]),
            "BLOCK_O": block_o,
            "HOLD": bool(config["hold"]),
            "UPCAST": _triton.interpreted(),
            "PDL": bool(config["pdl"]),
        }


def _whole(outputs: int) -> int:
    """The width of a block that holds all outputs, or as many as registers do."""
    return min(128, _nhwc.power(outputs, 16))


def _config(
    block_m: int, block_o: int, rows: int, warps: int, hold: bool, device: Device
) -> Config:
    return {
        "block_m": block_m,
        "block_o": block_o,
        "rows": rows,
        "warps": warps,
        "hold": hold,
        "pdl": _nhwc.pdl(device),
    }


def _rows(rows: int, strips: int, device: Device) -> Iterator[int]:
    """Rows a program walks: fewer fill the device evenly, more load less."""
    seen = set()
    for programs in (3, 12):
        each = max(1, math.ceil(rows * strips / (programs * device.multiprocessors)))
        # Evenly shared.
        each = math.ceil(rows / math.ceil(rows / min(rows, each)))
        if each not in seen:
            seen.add(each)
            yield each


class TritonStem(_Stem):
    """A convolution of an image: rows walked down, windows in registers, tensor cores."""

    name = "triton_stem"
    operator = Fused.CONV

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        n, outputs, oh, ow = _nhwc.shape(operation.outputs[0])
        whole = _whole(outputs)
        blocks = [(64, whole, 4, True), (128, whole, 8, True), (64, whole, 4, False)]
        if outputs % whole and whole > 32:
            blocks.insert(1, (64, 32, 4, True))
        return [
            _config(block_m, block_o, rows, warps, hold, device)
            for block_m, block_o, warps, hold in blocks
            for rows in _rows(
                oh, math.ceil(n * ow / block_m) * math.ceil(outputs / block_o), device
            )
        ][:_TRIED]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        n, outputs, oh, ow = _nhwc.shape(operation.outputs[0])
        rows, block_m = int(config["rows"]), int(config["block_m"])
        geometry = self.geometry(operation)
        strips = math.ceil(n * ow / block_m) * math.ceil(outputs / int(config["block_o"]))
        loaded = rows + geometry.groups - 1 if config["hold"] else rows * geometry.groups
        elements = loaded * block_m * geometry.depth / geometry.groups
        flops = 2 * rows * block_m * geometry.depth * int(config["block_o"])
        return _seconds(operation, device, strips * math.ceil(oh / rows), rows, elements, flops)

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        from peregrine.compiler.kernels import stem

        n, outputs, oh, ow = _nhwc.shape(operation.outputs[0])
        grid = (
            math.ceil(n * ow / int(config["block_m"])),
            math.ceil(oh / int(config["rows"])),
            math.ceil(outputs / int(config["block_o"])),
        )
        arguments = self.arguments(operation, config, tensors)
        pdl = bool(config["pdl"])
        return _triton.Kernel(stem.stem_kernel, grid, arguments, int(config["warps"]), 1, pdl)


class TritonConvMaxPool(_Stem):
    """The same with a 3x3 max pooling of stride 2 behind it: what lies between, the largest tensor
    of many networks, is never written."""

    name = "triton_conv_max_pool"
    operator = Fused.CONV_MAX_POOL

    def problem(self, operation: Operation) -> str:
        pool = Window.read(operation.attributes, "pool_")
        if (pool.kernel, pool.strides, pool.dilations) != ((3, 3), (2, 2), (1, 1)):
            return "its pooling is not 3x3 with stride 2"
        return super().problem(operation)

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        _, outputs, ph, _ = _nhwc.shape(operation.outputs[0])
        whole = _whole(outputs)
        # With more outputs a thread than these the windows in flight do not fit into registers.
        blocks = [(64, whole, 8, True), (64, whole, 8, False), (64, whole, 4, True)]
        if whole > 32:
            blocks += [(64, 32, 4, True), (128, 32, 8, True)]
        return [
            _config(block_m, block_o, rows, warps, hold, device)
            for block_m, block_o, warps, hold in blocks
            for rows in _rows(
                ph, _strips(operation, block_m) * math.ceil(outputs / block_o), device
            )
        ][:_TRIED]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        _, outputs, ph, _ = _nhwc.shape(operation.outputs[0])
        rows, block_m = int(config["rows"]), int(config["block_m"])
        geometry = self.geometry(operation)
        strips = _strips(operation, block_m) * math.ceil(outputs / int(config["block_o"]))
        walked = 2 * rows + 1
        loaded = walked + geometry.groups - 1 if config["hold"] else walked * geometry.groups
        elements = 2 * loaded * block_m * geometry.depth / geometry.groups
        flops = 4 * walked * block_m * geometry.depth * int(config["block_o"])
        programs = strips * math.ceil(ph / rows)
        return _seconds(operation, device, programs, 2 * walked, elements, flops)

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        from peregrine.compiler.kernels import stem

        _, outputs, ph, pw = _nhwc.shape(operation.outputs[0])
        pool = Window.read(operation.attributes, "pool_")
        grid = (
            _strips(operation, int(config["block_m"])),
            math.ceil(ph / int(config["rows"])),
            math.ceil(outputs / int(config["block_o"])),
        )
        arguments = {
            **self.arguments(operation, config, tensors),
            "PH": ph,
            "PW": pw,
            "POOL_TOP": pool.pads[0],
            "POOL_LEFT": pool.pads[1],
        }
        pdl = bool(config["pdl"])
        return _triton.Kernel(stem.stem_pool_kernel, grid, arguments, int(config["warps"]), 1, pdl)


def _strips(operation: Operation, block_m: int) -> int:
    """Programs side by side: an image has a column more, a strip holds a column less."""
    n, _, _, pw = _nhwc.shape(operation.outputs[0])
    return math.ceil(n * (pw + 1) / (block_m - 1))


def _seconds(
    operation: Operation,
    device: Device,
    programs: int,
    steps: int,
    elements: float,
    flops: float,
) -> float:
    """What a launch should take.

    Args:
        steps: of a program, one after the other.
        elements, flops: of a program: elements gathered, operations of its products.
    """
    waves = max(1.0, programs / (2 * device.multiprocessors))
    scale = device.multiprocessors / 132
    alone = 1e-6 + 0.5e-6 * steps
    work = programs * max(elements / (_GATHER * scale), flops / (0.5 * device.flops))
    memory = _nhwc.moved(operation) / device.bandwidth
    return _nhwc.START + max(math.ceil(waves) * alone / 2, work, memory)
