"""Convolutions and matrix products by the Triton kernel of `kernels.conv`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _tiles, _triton
from peregrine.compiler.tactics._tiles import Product, Tiling
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_DTYPES = ("float16", "bfloat16", "float32")
_TRIED = 10
"""Tilings of one operation that are compiled and timed."""
_WIDE = 2**31 - 1


def pixel_stride(kind: TensorType) -> int | None:
    """Elements from one pixel (row) to the next where the channels (last dimension) are neighbours
    and all pixels are evenly spaced, as in a channels_last tensor or a slice of its channels.

    Takes (N, C, H, W) and (..., K). None where it is laid out otherwise."""
    assert kind.shape is not None
    assert kind.strides is not None
    if len(kind.shape) == 4:
        axes: tuple[int, ...] = (0, 2, 3, 1)
    else:
        axes = tuple(range(len(kind.shape)))
    sizes = [kind.shape[axis] for axis in axes]
    strides = [kind.strides[axis] for axis in axes]
    if sizes[-1] > 1 and strides[-1] != 1:
        return None
    step = None
    for size, stride in zip(reversed(sizes[:-1]), reversed(strides[:-1]), strict=True):
        if size == 1:
            continue
        if step is None:
            step = first = stride
        elif stride != step:
            return None
        step *= size
    if step is None:
        return sizes[-1]
    return first


@dataclass(frozen=True, slots=True)
class Layer:
    """An operation in the terms of the kernel."""

    operation: Operation
    m: int
    channels: int
    outputs: int
    image: tuple[int, int]
    grid: tuple[int, int]
    """Height and width of the output."""
    window: Window
    x_stride: int
    z_stride: int
    y_stride: int

    @classmethod
    def read(cls, operation: Operation) -> Layer | str:
        """Why it is none, where it is none."""
        x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
        z = operation.inputs[3] if len(operation.inputs) > 3 else None
        assert x is not None
        assert w is not None
        for kind in (x, w, y, z):
            if kind is not None and (kind.shape is None or kind.strides is None):
                return "its sizes are not known"
        strides = [pixel_stride(kind) if kind is not None else 0 for kind in (x, z, y)]
        if None in strides:
            return "its channels are not innermost, or its pixels are not evenly spaced"
        x_stride, z_stride, y_stride = (int(stride or 0) for stride in strides)
        assert x.shape is not None
        assert w.shape is not None
        assert y.shape is not None
        if operation.operator == Fused.LINEAR:
            m, channels = math.prod(x.shape[:-1]), x.shape[-1]
            image = grid = (1, 1)
            window = Window((1, 1))
        else:
            n, channels, *image_ = x.shape
            image = (image_[0], image_[1])
            window = Window.read(operation.attributes)
            if int(operation.attributes.get("group", 1)) != 1 or w.shape[1] != channels:
                return "it is a grouped convolution"
            if max(window.kernel) > 31:
                return "its window is larger than 31"
            grid = (y.shape[2], y.shape[3])
            m = n * grid[0] * grid[1]
            if window.is_pointwise and window.strides == (1, 1):
                # A matrix product: no need of the image's size, which would cost a compilation.
                image = grid = (1, 1)
        if m == 0:
            return "its output is empty"
        return cls(
            operation, m, channels, w.shape[0], image, grid, window, x_stride, z_stride, y_stride
        )

    @property
    def product(self) -> Product:
        kinds = [kind for kind in (*self.operation.inputs, *self.operation.outputs) if kind]
        taps = self.window.kernel[0] * self.window.kernel[1]
        return Product(
            self.m,
            self.outputs,
            taps,
            self.channels,
            kinds[0].itemsize,
            sum(kind.bytes for kind in kinds),
        )

    @property
    def has_bias(self) -> bool:
        return len(self.operation.inputs) > 2 and self.operation.inputs[2] is not None

    @property
    def has_z(self) -> bool:
        return len(self.operation.inputs) > 3 and self.operation.inputs[3] is not None

    @property
    def wide(self) -> bool:
        """Whether an offset into a tensor passes 31 bits."""
        pixels = math.prod(self.operation.inputs[0].shape or ()) // max(1, self.channels)  # type: ignore[union-attr]
        return max(pixels * self.x_stride, self.m * max(self.y_stride, self.z_stride)) > _WIDE

    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time constants that say what the layer is."""
        window = self.window
        return {
            "C": self.channels,
            "O": self.outputs,
            "H": self.image[0],
            "W": self.image[1],
            "OH": self.grid[0],
            "OW": self.grid[1],
            "KH": window.kernel[0],
            "KW": window.kernel[1],
            "STRIDE_H": window.strides[0],
            "STRIDE_W": window.strides[1],
            "PAD_H": window.pads[0],
            "PAD_W": window.pads[1],
            "DILATION_H": window.dilations[0],
            "DILATION_W": window.dilations[1],
            "X_STRIDE": self.x_stride,
        }

    def epilogue(self) -> dict[str, Any]:
        """And what comes after the sum."""
        activation = Activation.read(self.operation.attributes)
        return {
            "O": self.outputs,
            "Z_STRIDE": self.z_stride,
            "Y_STRIDE": self.y_stride,
            "HAS_BIAS": self.has_bias,
            "HAS_Z": self.has_z,
            "KIND": str(activation.kind),
            "ALPHA": activation.alpha,
            "BETA": activation.beta,
            "WIDE": self.wide,
        }


def pack_weights(weights: torch.Tensor, block_n: int, block_k: int) -> torch.Tensor:
    """(O, C, KH, KW) or (O, K) as (O padded to block_n, KH * KW * C padded to block_k): a row holds
    one output's weights tap by tap. What pads is zero, so it adds nothing."""
    import torch.nn.functional as functional

    if weights.ndim == 2:
        weights = weights[:, :, None, None]
    outputs, channels = weights.shape[:2]
    taps = weights.permute(0, 2, 3, 1)
    padded = functional.pad(taps, (0, -channels % block_k, 0, 0, 0, 0, 0, -outputs % block_n))
    return padded.reshape(padded.shape[0], -1).contiguous()


def pack_bias(bias: torch.Tensor, block_n: int) -> torch.Tensor:
    """(O) as float32 (O padded to block_n)."""
    import torch.nn.functional as functional

    return functional.pad(bias.float(), (0, -bias.shape[0] % block_n)).contiguous()


def precisions(operation: Operation) -> tuple[str, ...]:
    """How float32 products may be made: by three TF32 products, which keep float32's accuracy, by
    one where the caller allows it, or without tensor cores. Other dtypes know one way."""
    kind = operation.inputs[0]
    assert kind is not None
    if kind.dtype != "float32":
        return ("upcast",) if _triton.interpreted() else ("ieee",)
    return ("tf32", "tf32x3") if operation.tf32 else ("tf32x3", "ieee")


class TritonConv(Tactic):
    """Implicit GEMM in Triton: any window, dense channels, NHWC, split over K where one image
    leaves multiprocessors idle."""

    name = "triton_conv"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator not in (Fused.CONV, Fused.LINEAR):
            return Support.no(f"it runs convolutions and matrix products, not {operation.operator}")
        missing = _triton.available(device)
        if missing:
            return Support.no(missing)
        kinds = [kind for kind in (*operation.inputs, *operation.outputs) if kind is not None]
        if any(kind.dtype not in _DTYPES for kind in kinds):
            return Support.no(f"it takes {', '.join(_DTYPES)}")
        if kinds[0].dtype != kinds[1].dtype:
            return Support.no("X and W have different dtypes")
        weights = {position for position in (1, 2) if position < len(operation.inputs)}
        if any(operation.inputs[i] and i not in operation.constants for i in weights):
            return Support.no("its weights are no constants")
        layer = Layer.read(operation)
        return Support.no(layer) if isinstance(layer, str) else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        tilings = _tiles.best(_layer(operation).product, device)
        pdl = device.is_cuda and device.capability >= (9, 0)
        return [
            {**tiling.config(), "precision": precision, "pdl": pdl}
            for tiling in tilings[:_TRIED]
            for precision in precisions(operation)
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        seconds = _tiles.predict(_layer(operation).product, Tiling.read(config), device)
        return (
            seconds
            * {"ieee": 1.0, "tf32": 1.0, "tf32x3": 3.0, "upcast": 1.0}[str(config["precision"])]
        )

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        kernels = [kernel for config in configs for kernel in self.kernels(operation, config)]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        tiling = Tiling.read(config)
        packed = list(inputs)
        assert packed[1] is not None
        packed[1] = pack_weights(packed[1], tiling.block_n, tiling.block_k)
        if len(packed) > 2 and packed[2] is not None:
            packed[2] = pack_bias(packed[2], tiling.block_n)
        return packed

    def workspace(self, operation: Operation, config: Config, device: Device) -> int:
        tiling = Tiling.read(config)
        if tiling.split_k == 1:
            return 0
        tiles = tiling.tiles(_layer(operation).product)
        return 4 * tiles * tiling.split_k * tiling.block_m * tiling.block_n

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        tiling = Tiling.read(config)
        if tiling.split_k == 1 or tiling.reduce != "last":
            return 0
        return 4 * tiling.tiles(_layer(operation).product)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        tensors = [*inputs, None, None][:4]
        return _triton.launches(
            self.kernels(operation, config, [*tensors, outputs[0], workspace, state])
        )

    def kernels(
        self,
        operation: Operation,
        config: Config,
        tensors: Sequence[torch.Tensor | None] | None = None,
    ) -> list[_triton.Kernel]:
        """What a launch of this configuration launches, in order.

        Args:
            tensors: X, W and B as packed, Z, Y, workspace, state; None to compile only.
        """
        import torch

        from peregrine.compiler.kernels import conv

        layer = _layer(operation)
        tiling = Tiling.read(config)
        if tensors is None:
            tensors = _stand_ins(operation, tiling)
        x, w, bias, z, y, workspace, state = tensors
        assert y is not None
        pdl = bool(config["pdl"])
        cut = {
            "BLOCK_M": tiling.block_m,
            "BLOCK_N": tiling.block_n,
            "GROUP_M": 1,
            "SPLIT_K": tiling.split_k,
            "PDL": pdl,
        }
        # Absent tensors are never touched: any pointer will do.
        data = {"bias": y if bias is None else bias, "z": y if z is None else z, "y": y}
        partials = y if workspace is None else workspace.view(torch.float32)
        tiles = tiling.tiles(layer.product)
        first = _triton.Kernel(
            conv.conv,
            (tiles, tiling.split_k),
            {
                "x": x,
                "w": w,
                **data,
                "partials": partials,
                "counters": y if state is None else state.view(torch.int32),
                "M": layer.m,
                **layer.constants(),
                **layer.epilogue(),
                **cut,
                "BLOCK_K": tiling.block_k,
                "LAST_REDUCES": tiling.reduce == "last",
                "PRECISION": str(config["precision"]),
            },
            tiling.warps,
            tiling.stages,
            pdl,
        )
        if tiling.split_k == 1 or tiling.reduce == "last":
            return [first]
        # About 8 elements a thread: many small programs read the partial sums fastest.
        rows = max(1, min(tiling.block_m, 1024 // tiling.block_n))
        second = _triton.Kernel(
            conv.reduce_splits,
            (tiles, tiling.block_m // rows),
            {"partials": partials, **data, "M": layer.m, **layer.epilogue(), **cut, "ROWS": rows},
            4,
            2,
            pdl,
        )
        return [first, second]


def _layer(operation: Operation) -> Layer:
    layer = Layer.read(operation)
    if isinstance(layer, str):
        raise ValueError(layer)
    return layer


def _stand_ins(operation: Operation, tiling: Tiling) -> list[torch.Tensor | None]:
    """Aligned pointers with the dtypes that `bind` will be given."""
    import torch

    from peregrine.compiler.attributes import torch_dtype

    x, w, bias, z, *_ = [*operation.inputs, None, None]
    split = tiling.split_k > 1
    dtypes = [
        torch_dtype(x.dtype) if x else None,
        torch_dtype(w.dtype) if w else None,
        torch.float32 if bias else None,
        torch_dtype(z.dtype) if z else None,
        torch_dtype(operation.outputs[0].dtype),
        torch.float32 if split else None,
        torch.int32 if split and tiling.reduce == "last" else None,
    ]
    return [None if dtype is None else _triton.pointer(dtype) for dtype in dtypes]
