"""Max pooling, global mean pooling, and the latter with a classifier, by `kernels.pooling`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _nhwc, _triton
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TAPS = 49
"""Windows are unrolled."""
_MANY = 16
"""Images from which on a classifier is a matrix product for the tensor cores."""
_MULTIPROCESSOR = 42e9
"""Bytes a second that one multiprocessor reads from the L2 cache."""


class TritonMaxPool(Tactic):
    """Each window loaded from the L1 cache, vectors along the channels."""

    name = "triton_max_pool"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != "ai.onnx.MaxPool":
            return Support.no(f"it runs ai.onnx.MaxPool, not {operation.operator}")
        problem = _triton.available(device) or self.problem(operation)
        return Support.no(problem) if problem else Support.yes()

    def problem(self, operation: Operation) -> str:
        """Why this operation can't be taken; empty where it can."""
        x, y = operation.inputs[0], operation.outputs[0]
        problem = _nhwc.first(
            _nhwc.dtype_problem(x, _nhwc.FLOATS, "X"),
            _nhwc.size_problem(x, "X"),
            _nhwc.size_problem(y, "Y"),
        )
        if problem:
            return problem
        if len(operation.outputs) > 1:
            return "it writes no indices"
        if operation.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
            return "its pads are not given"
        if math.prod(Window.read(operation.attributes).kernel) > _TAPS:
            return f"its window has more than {_TAPS} elements"
        return ""

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        _, channels, _, _ = _nhwc.shape(operation.outputs[0])
        elements = math.prod(_nhwc.shape(operation.outputs[0]))
        least = 16 if channels <= 16 else 32
        if elements < 2048 * device.multiprocessors:
            tiles = [(8, 0, least, 1), (16, 0, least, 2), (8, 0, 2 * least, 2), (32, 0, least, 4)]
        else:
            tiles = [(64, 8, least, 4), (64, 0, least, 4), (32, 0, least, 4)]
            tiles += [(32, 8, 2 * least, 4), (128, 16, least, 8)]
        return [
            {
                "block_m": block_m,
                "tile_w": tile_w,
                "block_c": block_c,
                "warps": warps,
                "pdl": _nhwc.pdl(device),
            }
            for block_m, tile_w, block_c, warps in tiles
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        block_m, block_c = int(config["block_m"]), int(config["block_c"])
        n, channels, oh, ow = _nhwc.shape(operation.outputs[0])
        programs = math.ceil(n * oh * ow / block_m) * math.ceil(channels / block_c)
        waves = math.ceil(programs / (device.multiprocessors * (32 // int(config["warps"]))))
        memory = _nhwc.moved(operation) / device.bandwidth
        return _nhwc.START + max(0.7e-6 * waves, 1.2 * memory)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        stand_ins = [_nhwc.stand_in(operation.inputs[0]), _nhwc.stand_in(operation.outputs[0])]
        kernels = [self.kernel(operation, config, stand_ins) for config in configs]
        _triton.compile_ahead(kernels, device)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        return _triton.launches([self.kernel(operation, config, [inputs[0], outputs[0]])])

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X, Y.
        """
        from peregrine.compiler.kernels import pixels, pooling

        n, c, h, w = _nhwc.shape(operation.inputs[0])
        _, _, oh, ow = _nhwc.shape(operation.outputs[0])
        block_m, tile_w, block_c = (int(config[key]) for key in ("block_m", "tile_w", "block_c"))
        window = Window.read(operation.attributes)
        pads = window.pads if operation.attributes.get("auto_pad") != "VALID" else (0, 0, 0, 0)
        pdl = bool(config["pdl"])
        arguments = {
            **dict(zip("xy", tensors, strict=True)),
            "N": n,
            "C": c,
            "H": h,
            "W": w,
            "OH": oh,
            "OW": ow,
            **_nhwc.nhw("x", operation.inputs[0]),
            **_nhwc.nhw("y", operation.outputs[0]),
            "STRIDE_H": window.strides[0],
            "STRIDE_W": window.strides[1],
            "TOP": pads[0],
            "LEFT": pads[1],
            "KH": window.kernel[0],
            "KW": window.kernel[1],
            "DILATION_H": window.dilations[0],
            "DILATION_W": window.dilations[1],
            "BLOCK_M": block_m,
            "TILE_W": tile_w,
            "BLOCK_C": block_c,
            "PDL": pdl,
        }
        grid = (pixels.pixel_programs(n, oh, ow, block_m, tile_w), math.ceil(c / block_c))
        return _triton.Kernel(
            pooling.max_pool_kernel, grid, arguments, int(config["warps"]), 1, pdl
        )


def _mean_kernel(
    operation: Operation, config: Config, x: Any, y: Any, stride_yn: int
) -> _triton.Kernel:
    """The means of X into y, whose images are stride_yn elements apart."""
    from peregrine.compiler.kernels import pooling

    n, c, h, w = _nhwc.shape(operation.inputs[0])
    block_p, block_c = int(config["block_p"]), int(config["block_c"])
    pdl = bool(config["pdl"])
    arguments = {
        "x": x,
        "y": y,
        "C": c,
        "H": h,
        "W": w,
        **_nhwc.nhw("x", operation.inputs[0]),
        "stride_yn": stride_yn,
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
        "PDL": pdl,
    }
    grid = (n, math.ceil(c / block_c))
    return _triton.Kernel(pooling.mean_kernel, grid, arguments, int(config["warps"]), 1, pdl)


def _block_p(operation: Operation, most: int = 64) -> int:
    """Pixels loaded at once: all of a small image."""
    _, _, h, w = _nhwc.shape(operation.inputs[0])
    return min(most, _nhwc.power(h * w))


class TritonGlobalPool(Tactic):
    """The mean of each channel of an image, summed in float32."""

    name = "triton_global_pool"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != "ai.onnx.GlobalAveragePool":
            return Support.no(f"it runs ai.onnx.GlobalAveragePool, not {operation.operator}")
        x, y = operation.inputs[0], operation.outputs[0]
        problem = _triton.available(device) or _nhwc.first(
            _nhwc.dtype_problem(x, _nhwc.FLOATS, "X"),
            _nhwc.size_problem(x, "X"),
            _nhwc.size_problem(y, "Y"),
        )
        return Support.no(problem) if problem else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        block_p = _block_p(operation)
        return [
            {"block_p": block_p, "block_c": block_c, "warps": warps, "pdl": _nhwc.pdl(device)}
            for block_c, warps in ((32, 4), (64, 4), (32, 2), (128, 8))
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        n, c, h, w = _nhwc.shape(operation.inputs[0])
        steps = math.ceil(h * w / int(config["block_p"]))
        programs = n * math.ceil(c / int(config["block_c"]))
        waves = math.ceil(programs / (device.multiprocessors * 32 // int(config["warps"])))
        memory = _nhwc.moved(operation) / device.bandwidth
        return _nhwc.START + max(0.7e-6 * steps * waves, memory)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        x, y = _nhwc.stand_in(operation.inputs[0]), _nhwc.stand_in(operation.outputs[0])
        step = _nhwc.strides(operation.outputs[0])[0]
        kernels = [_mean_kernel(operation, config, x, y, step) for config in configs]
        _triton.compile_ahead(kernels, device)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        step = _nhwc.strides(operation.outputs[0])[0]
        return _triton.launches([_mean_kernel(operation, config, inputs[0], outputs[0], step)])


class TritonPoolLinear(Tactic):
    """Means and classifier, in one kernel whose programs pool the channels they sum over, or in two
    with a matrix product for many images."""

    name = "triton_pool_linear"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.POOL_LINEAR:
            return Support.no(f"it runs {Fused.POOL_LINEAR}, not {operation.operator}")
        problem = _triton.available(device) or self.problem(operation)
        return Support.no(problem) if problem else Support.yes()

    def problem(self, operation: Operation) -> str:
        """Why this operation can't be taken; empty where it can."""
        x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
        problem = _nhwc.first(
            _nhwc.dtype_problem(x, _nhwc.HALVES, "X"),
            _nhwc.dtype_problem(w, _nhwc.HALVES, "W"),
            _nhwc.dtype_problem(y, _nhwc.FLOATS, "Y"),
            _nhwc.size_problem(x, "X"),
            _nhwc.constant_problem(operation, (1, 2)),
        )
        if problem:
            return problem
        if y.strides is None or (_nhwc.shape(y)[1] > 1 and _nhwc.strides(y)[1] != 1):
            return "the outputs of an image are not side by side"
        return ""

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        n, channels, _, _ = _nhwc.shape(operation.inputs[0])
        pdl = _nhwc.pdl(device)
        block_p = _block_p(operation)
        found: list[Config] = []
        if n <= _MANY:
            for block_o, block_c, warps, splits in (
                (64, 128, 4, 16),
                (64, 128, 4, 8),
                (128, 64, 4, 16),
                (32, 128, 4, 4),
                (16, 256, 4, 2),
                (8, 256, 4, 1),
                (16, 256, 8, 1),
            ):
                blocks = math.ceil(channels / block_c)
                splits = math.ceil(blocks / math.ceil(blocks / splits))
                config = _one(block_o, block_c, block_p, warps, splits, pdl)
                if config not in found:
                    found.append(config)
        for block_m, block_o, block_c, warps, stages in (
            (16, 16, 256, 4, 3),
            (64, 64, 64, 4, 4),
            (64, 32, 128, 4, 4),
            (128, 64, 64, 4, 4),
        ):
            if block_m <= max(16, 2 * n):
                found.append(_two(block_m, block_o, block_c, block_p, warps, stages, pdl))
        return found

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        n, channels, h, w = _nhwc.shape(operation.inputs[0])
        outputs = _nhwc.shape(operation.outputs[0])[1]
        memory = _nhwc.moved(operation) / device.bandwidth
        block_o, block_c = int(config["block_o"]), int(config["block_c"])
        if config["kernels"] == 2:
            tiles = math.ceil(n / int(config["block_m"])) * math.ceil(outputs / block_o)
            steps = math.ceil(channels / block_c)
            waves = math.ceil(tiles / device.multiprocessors)
            return 2 * _nhwc.START + max(1.5e-6, memory) + waves * steps * 0.3e-6
        splits = int(config["splits"])
        programs = n * math.ceil(outputs / block_o) * splits
        each = 2 * math.ceil(channels / splits) * (h * w + block_o)
        waves = math.ceil(programs / (2 * device.multiprocessors))
        steps = math.ceil(channels / block_c / splits)
        seconds = waves * max(1.2e-6 * steps, 2 * each / _MULTIPROCESSOR)
        return _nhwc.START + max(seconds, memory) + (_nhwc.SPLIT if splits > 1 else 0.0)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        import torch

        tensors = _nhwc.stand_ins([*[*operation.inputs, None][:3], operation.outputs[0]])
        kernels = []
        for config in configs:
            stand_ins = [
                *tensors,
                torch.empty(self.workspace(operation, config, device), dtype=torch.uint8),
                torch.empty(self.state(operation, config, device), dtype=torch.uint8),
            ]
            kernels += self.kernels(operation, config, stand_ins)
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        packed = list(inputs)
        assert packed[1] is not None
        packed[1] = packed[1].contiguous()
        if len(packed) > 2 and packed[2] is not None:
            packed[2] = packed[2].float().contiguous()
        return packed

    def workspace(self, operation: Operation, config: Config, device: Device) -> int:
        n, channels, _, _ = _nhwc.shape(operation.inputs[0])
        if config["kernels"] == 2:
            return 2 * n * channels
        splits = int(config["splits"])
        return 0 if splits == 1 else 4 * splits * int(config["block_o"]) * _tiles(operation, config)

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        if config["kernels"] == 2 or config["splits"] == 1:
            return 0
        return 4 * _tiles(operation, config)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        tensors = [*[*inputs, None][:3], outputs[0], workspace, state]
        return _triton.launches(self.kernels(operation, config, tensors))

    def kernels(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> list[_triton.Kernel]:
        """What a launch of this configuration launches, in order.

        Args:
            tensors: X; W and B as packed; Y; workspace and state as bytes.
        """
        import torch

        from peregrine.compiler.kernels import pooling

        x, w, b, y, workspace, state = tensors
        assert x is not None
        assert y is not None
        n, channels, height, width = _nhwc.shape(operation.inputs[0])
        outputs = _nhwc.shape(operation.outputs[0])[1]
        pdl = bool(config["pdl"])
        block_o, block_c = int(config["block_o"]), int(config["block_c"])
        arguments: dict[str, Any] = {
            "w": w,
            "b": y if b is None else b,
            "y": y,
            "C": channels,
            "M": outputs,
            "stride_wm": channels,
            "stride_yn": _nhwc.strides(operation.outputs[0])[0],
            "HAS_BIAS": b is not None,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            "BLOCK_O": block_o,
            "BLOCK_C": block_c,
            "PDL": pdl,
        }
        warps = int(config["warps"])
        if config["kernels"] == 2:
            assert workspace is not None
            means = workspace.view(x.dtype)
            block_m = int(config["block_m"])
            pooled = {"block_p": config["block_p"], "block_c": 64, "warps": 4, "pdl": pdl}
            arguments |= {"x": means, "N": n, "stride_xn": channels, "BLOCK_M": block_m}
            arguments["UPCAST"] = _triton.interpreted()
            grid: tuple[int, ...] = (math.ceil(n / block_m), math.ceil(outputs / block_o))
            stages = int(config["stages"])
            return [
                _mean_kernel(operation, pooled, x, means, channels),
                _triton.Kernel(pooling.linear_kernel, grid, arguments, warps, stages, pdl),
            ]
        splits = int(config["splits"])
        blocks = math.ceil(channels / block_c)
        arguments |= {
            "x": x,
            "H": height,
            "W": width,
            **_nhwc.nhw("x", operation.inputs[0]),
            "partial": y if splits == 1 or workspace is None else workspace.view(torch.float32),
            "counter": y if splits == 1 or state is None else state.view(torch.int32),
            "channels_of_split": math.ceil(blocks / splits) * block_c,
            "BLOCK_P": int(config["block_p"]),
            "SPLITS": splits,
        }
        grid = (n, math.ceil(outputs / block_o), splits)
        return [_triton.Kernel(pooling.pool_linear_kernel, grid, arguments, warps, 2, pdl)]


def _tiles(operation: Operation, config: Config) -> int:
    """Of the output, one image each."""
    n, outputs = _nhwc.shape(operation.outputs[0])
    return n * math.ceil(outputs / int(config["block_o"]))


def _one(block_o: int, block_c: int, block_p: int, warps: int, splits: int, pdl: bool) -> Config:
    return {
        "kernels": 1,
        "block_o": block_o,
        "block_c": block_c,
        "block_p": block_p,
        "warps": warps,
        "splits": splits,
        "pdl": pdl,
    }


def _two(
    block_m: int, block_o: int, block_c: int, block_p: int, warps: int, stages: int, pdl: bool
) -> Config:
    return {
        "kernels": 2,
        "block_m": block_m,
        "block_o": block_o,
        "block_c": block_c,
        "block_p": block_p,
        "warps": warps,
        "stages": stages,
        "pdl": pdl,
    }
