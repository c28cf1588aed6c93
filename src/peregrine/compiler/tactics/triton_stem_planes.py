"""Convolutions of an image with stride 2, alone or with a max pooling, by `kernels.stem_planes`."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _gluon, _nhwc, _triton
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_CHANNELS = 4
_OUTPUTS = 128
_STEPS = 16
"""Products a row whose weights a program's registers hold."""
_LANES = 128
"""Columns that a program computes at once, as the kernels have it."""
_CYCLE = 1 / 1.7e9
"""Seconds of the tensor cores' clock."""
_PRODUCT = 105
"""Cycles of a product of (64, 16) by (16, 128) with all that is around it, as measured on an H200;
alone it takes 64."""
_STARTED = 1.5e-6
"""Seconds until a program's first row of products starts."""


@dataclass(frozen=True, slots=True)
class Planes:
    """How a window of stride 2 is cut into products; see `kernels.stem_planes`."""

    window: Window
    channels: int

    @property
    def before(self) -> int:
        """Columns that a window starts earlier than it must, to have whole pairs."""
        return self.window.kernel[1] % 2

    @property
    def left(self) -> int:
        """Columns from a window's first to the output's column times the stride."""
        return self.window.pads[1] + self.before

    @property
    def taps(self) -> int:
        """Pairs of columns."""
        return (self.window.kernel[1] + 1) // 2

    @property
    def steps(self) -> int:
        """Products a row of outputs, each 16 elements deep."""
        pairs, single = divmod(self.window.kernel[0], 2)
        return pairs * self.taps + single * self.taps // 2

    @property
    def slots(self) -> int:
        """Pairs of rows in shared memory: those of a window and the next."""
        return (self.window.kernel[0] + 1) // 2 + 1

    @property
    def problem(self) -> str:
        """Why a window can't be cut so; empty where it can."""
        if self.window.strides != (2, 2) or self.window.dilations != (1, 1):
            return "its window does not move by 2"
        if self.window.kernel[0] % 2 and self.taps % 2:
            return "its window's last row is not of whole fours of columns"
        if not 0 < self.steps <= _STEPS:
            return f"its window has more than {16 * _STEPS} elements, padding included"
        return ""

    def arguments(self) -> dict[str, int]:
        """The kernels' constants."""
        return {
            "C": self.channels,
            "TOP": self.window.pads[0],
            "LEFT": self.left,
            "KH": self.window.kernel[0],
            "TAPS": self.taps,
            "BEFORE": self.before,
            "SLOTS": self.slots,
        }

    def pack(self, weights: torch.Tensor, outputs: int) -> torch.Tensor:
        """(O, C, KH, KW) as (outputs, steps * 16), zeros where there is padding: for each product
        two planes of eight elements, at a plane's position each channel's pair of columns."""
        import torch
        import torch.nn.functional as functional

        kh, kw = self.window.kernel
        behind = 2 * self.taps - kw - self.before
        more = outputs - weights.shape[0]
        padded = functional.pad(
            weights, (self.before, behind, 0, 0, 0, _CHANNELS - self.channels, 0, more)
        )
        # (row, tap): (outputs, 4 channels * 2 columns)
        cut = padded.reshape(outputs, _CHANNELS, kh, self.taps, 2).permute(2, 3, 0, 1, 4).flatten(3)
        found = []
        for row in range(0, kh - 1, 2):
            for tap in range(self.taps):
                pair = [cut[row, tap], cut[row + 1, tap]]
                found += pair[::-1] if self.before and tap == 0 else pair
        if kh % 2:
            for tap in range(0, self.taps, 2):
                pair = [cut[kh - 1, tap + 1], cut[kh - 1, tap]]
                found += pair[::-1] if self.before and tap == 0 else pair
        return torch.cat(found, 1).contiguous()


class _StemPlanes(Tactic):
    """What the convolution has in common with and without a pooling."""

    operator: ClassVar[Fused]

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != self.operator:
            return Support.no(f"it runs {self.operator}, not {operation.operator}")
        problem = self.problem(operation) or _gluon.missing(device, overlapping=True)
        return Support.no(problem) if problem else Support.yes()

    def problem(self, operation: Operation) -> str:
        """Why this operation can't be taken by any device; empty where it can."""
        x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
        problem = _nhwc.first(
            _nhwc.dtype_problem(x, _nhwc.FLOATS, "X"),
            _nhwc.dtype_problem(w, _nhwc.HALVES, "W"),
            _nhwc.dtype_problem(y, _nhwc.HALVES, "Y"),
            _nhwc.size_problem(x, "X", innermost=False),
            _nhwc.size_problem(y, "Y"),
            _nhwc.constant_problem(operation, (1, 2)),
        )
        if problem:
            return problem
        images, channels, _, _ = _nhwc.shape(x)
        if channels > _CHANNELS or int(operation.attributes.get("group", 1)) != 1:
            return f"it takes dense convolutions of at most {_CHANNELS} channels"
        if _nhwc.shape(w)[0] > _OUTPUTS:
            return f"it takes at most {_OUTPUTS} outputs"
        if images >= 2**16:
            return "it takes fewer than 65536 images"
        if _nhwc.optional(operation, 3) is not None:
            return "it adds no Z"
        return planes(operation).problem

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        return [
            {"rows": rows, "behind": behind}
            for rows in self._rows(operation, device)
            for behind in (True, False)
        ]

    def _rows(self, operation: Operation, device: Device) -> Iterator[int]:
        """Output rows of a program, so that programs fill the device some whole times."""
        images, _, height, width = _nhwc.shape(operation.outputs[0])
        columns = images * math.ceil(width / self.strip(operation))
        at_once = _resident(operation) * device.multiprocessors
        seen = set()
        for times in (2, 3, 4, 8):
            rows = math.ceil(height / min(height, max(1, times * at_once // columns)))
            if rows not in seen:
                seen.add(rows)
                yield rows

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        images, _, height, width = _nhwc.shape(operation.outputs[0])
        rows = int(config["rows"])
        programs = images * math.ceil(width / self.strip(operation)) * math.ceil(height / rows)
        resident = _resident(operation)
        waves = math.ceil(programs / (resident * device.multiprocessors))
        products = planes(operation).steps * _block_o(operation) // 64
        row = max(0.5e-6, resident * products * _PRODUCT * _CYCLE)
        work = waves * (_STARTED + self.walked(rows) * row)
        return _nhwc.START + max(work, _nhwc.moved(operation) / device.bandwidth)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        # The number of rows is no constant of the kernel.
        different = {config["behind"]: config for config in configs}.values()
        stand_ins = _nhwc.stand_ins([*[*operation.inputs, None][:3], operation.outputs[0]])
        kernels = [self.kernel(operation, config, stand_ins) for config in different]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        import torch.nn.functional as functional

        packed = list(inputs)
        assert packed[1] is not None
        missing = _block_o(operation) - packed[1].shape[0]
        packed[1] = planes(operation).pack(packed[1], _block_o(operation))
        if len(packed) > 2 and packed[2] is not None:
            packed[2] = functional.pad(packed[2].float(), (0, missing)).contiguous()
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
        kernel = self.kernel(operation, config, [*[*inputs, None][:3], outputs[0]])
        return _triton.launches([kernel])

    @abc.abstractmethod
    def strip(self, operation: Operation) -> int:
        """Columns of the output that a program writes."""

    @abc.abstractmethod
    def walked(self, rows: int) -> int:
        """Rows of the convolution that a program computes for that many rows of the output."""

    @abc.abstractmethod
    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X, then W and B as packed, then Y.
        """

    def grid(self, operation: Operation, config: Config) -> tuple[int, int, int]:
        images, _, height, width = _nhwc.shape(operation.outputs[0])
        return (
            math.ceil(width / self.strip(operation)),
            math.ceil(height / int(config["rows"])),
            images,
        )

    def arguments(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> dict[str, Any]:
        """Those of both kernels."""
        x, y = operation.inputs[0], operation.outputs[0]
        data = dict(zip("xwby", tensors, strict=True))
        has_bias = data["b"] is not None
        if not has_bias:
            data["b"] = data["y"]
        _, _, height, width = _nhwc.shape(x)
        rows, columns = Window.read(operation.attributes).output(height, width)
        return {
            **data,
            "H": height,
            "W": width,
            "OH": rows,
            "OW": columns,
            "OC": _nhwc.shape(y)[1],
            **_nhwc.nhw("x", x),
            "stride_xc": _nhwc.strides(x)[1],
            **_nhwc.nhw("y", y),
            "strip": self.strip(operation),
            "rows_of_program": int(config["rows"]),
            **planes(operation).arguments(),
            "HAS_BIAS": has_bias,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            "BLOCK_O": _block_o(operation),
            "BEHIND": bool(config["behind"]),
        }


def planes(operation: Operation) -> Planes:
    return Planes(Window.read(operation.attributes), _nhwc.shape(operation.inputs[0])[1])


def _block_o(operation: Operation) -> int:
    """Outputs with padding: whole warp groups of four warps have 64 each."""
    return 64 if _nhwc.shape(operation.inputs[1])[0] <= 64 else 128


def _warps(operation: Operation) -> int:
    return _block_o(operation) // 16


def _resident(operation: Operation) -> int:
    """Programs that a multiprocessor holds: its registers decide."""
    return 128 // _block_o(operation)


def _evenly(size: int, most: int) -> int:
    """`size` in as few equal parts as need be."""
    return math.ceil(size / math.ceil(size / most))


class TritonStemPlanes(_StemPlanes):
    """A convolution of an image whose windows slide over shared memory."""

    name = "triton_stem_planes"
    operator = Fused.CONV

    def strip(self, operation: Operation) -> int:
        width = _nhwc.shape(operation.outputs[0])[3]
        return _evenly(width, _LANES - planes(operation).taps)

    def walked(self, rows: int) -> int:
        return rows

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        from peregrine.compiler.kernels import stem_planes

        arguments = self.arguments(operation, config, tensors)
        return _triton.Kernel(
            stem_planes.stem_planes_kernel,
            self.grid(operation, config),
            arguments,
            _warps(operation),
            1,
        )


class TritonConvMaxPoolPlanes(_StemPlanes):
    """The same with a 3x3 max pooling of stride 2 behind it; what lies between is never written."""

    name = "triton_conv_max_pool_planes"
    operator = Fused.CONV_MAX_POOL

    def problem(self, operation: Operation) -> str:
        pool = Window.read(operation.attributes, "pool_")
        if (pool.kernel, pool.strides, pool.dilations) != ((3, 3), (2, 2), (1, 1)):
            return "its pooling is not 3x3 with stride 2"
        return super().problem(operation)

    def strip(self, operation: Operation) -> int:
        width = _nhwc.shape(operation.outputs[0])[3]
        return _evenly(width, (_LANES - 1 - planes(operation).taps) // 2)

    def walked(self, rows: int) -> int:
        return 2 * rows + 1

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        from peregrine.compiler.kernels import stem_planes

        pool = Window.read(operation.attributes, "pool_")
        arguments = self.arguments(operation, config, tensors)
        _, _, height, width = _nhwc.shape(operation.outputs[0])
        arguments |= {
            "PH": height,
            "PW": width,
            "POOL_TOP": pool.pads[0],
            "POOL_LEFT": pool.pads[1],
            "RIGHT": 2 * width + 1 - pool.pads[1] > arguments["OW"],
            "BOTTOM": 2 * height + 1 - pool.pads[0] > arguments["OH"],
        }
        return _triton.Kernel(
            stem_planes.stem_planes_pool_kernel,
            self.grid(operation, config),
            arguments,
            _warps(operation),
            1,
        )
