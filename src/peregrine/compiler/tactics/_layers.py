"""A fused convolution or matrix product in the terms of the kernels of `kernels.conv`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.tactics import _triton
from peregrine.compiler.tactics._matrix import Matrix
from peregrine.compiler.tactics._tiles import Product

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32")
"""Of what the kernels read and write."""
_WIDE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Layer:
    """What a kernel needs to know of an operation: its sizes, window and strides in elements."""

    operation: Operation
    images: int
    channels: int
    outputs: int
    image: tuple[int, int]
    """Height and width of the input."""
    grid: tuple[int, int]
    """Height and width of the output."""
    window: Window
    x_stride: int
    z_stride: int
    """0 without Z."""
    y_stride: int

    @classmethod
    def read(cls, operation: Operation) -> Layer | str:
        """Of a Conv or Linear; why the kernels can't run it, where they can't."""
        x, w, y = operation.inputs[0], operation.inputs[1], operation.outputs[0]
        z = operation.inputs[3] if len(operation.inputs) > 3 else None
        assert x is not None
        assert w is not None
        for kind in (x, w, y, z):
            if kind is not None and (kind.shape is None or kind.strides is None):
                return "its sizes are not known"
        assert x.shape is not None
        assert w.shape is not None
        assert y.shape is not None
        if operation.operator == Fused.LINEAR:
            images, channels = math.prod(x.shape[:-1]), x.shape[-1]
            image = grid = (1, 1)
            window = Window((1, 1))
        else:
            images, channels, height, width = x.shape
            image, grid = (height, width), (y.shape[2], y.shape[3])
            window = Window.read(operation.attributes)
            if int(operation.attributes.get("group", 1)) != 1 or w.shape[1] != channels:
                return "it is a grouped convolution"
            if max(*window.kernel, *window.pads) > 31:
                return "its window or pads are larger than 31"
            if window.is_pointwise and window.strides == (1, 1):
                # A matrix product: one kernel then serves images of every size.
                images, image, grid = images * height * width, (1, 1), (1, 1)
        if images * grid[0] * grid[1] == 0:
            return "its output is empty"
        pitches = []
        for kind in (x, z, y):
            rows = Matrix.of(kind, image=operation.operator != Fused.LINEAR) if kind else None
            if kind is not None and rows is None:
                return "its channels are not innermost, or its pixels are not evenly spaced"
            pitches.append(rows.pitch if rows is not None else 0)
        return cls(
            operation,
            images,
            channels,
            w.shape[0],
            image,
            grid,
            window,
            *pitches,
        )

    @property
    def m(self) -> int:
        """Output pixels."""
        return self.images * self.grid[0] * self.grid[1]

    @property
    def product(self) -> Product:
        kinds = [kind for kind in (*self.operation.inputs, *self.operation.outputs) if kind]
        return Product(
            (self.images, *self.grid),
            self.outputs,
            self.window.kernel[0] * self.window.kernel[1],
            self.channels,
            kinds[0].itemsize,
            sum(kind.bytes for kind in kinds),
            self.has_z,
            self.boxed_end,
            self.box_rank,
        )

    @property
    def box_rank(self) -> int:
        """Dimensions of the input as the tensor memory accelerator is told of it (see
        `kernels.conv_tma`), 0 where it cannot be: it steps over multiples of 16 bytes, and over
        whole strides."""
        x = self.operation.inputs[0]
        assert x is not None
        stride = self.window.strides[0]
        if self.window.strides != (stride, stride) or self.x_stride * x.itemsize % 16 != 0:
            return 0
        if self.image == self.grid == self.window.kernel == (1, 1):
            return 2
        if stride == 1 or self.window.is_pointwise:
            return 4
        return 0 if self.image[0] % stride or self.image[1] % stride else 5

    @property
    def boxed_end(self) -> bool:
        """Whether Z and Y can be told of it."""
        ends = [(self.operation.outputs[0], self.y_stride)]
        if self.has_z:
            z = self.operation.inputs[3]
            assert z is not None
            ends.append((z, self.z_stride))
        return all(stride * kind.itemsize % 16 == 0 for kind, stride in ends)

    @property
    def has_bias(self) -> bool:
        return len(self.operation.inputs) > 2 and self.operation.inputs[2] is not None

    @property
    def has_z(self) -> bool:
        return len(self.operation.inputs) > 3 and self.operation.inputs[3] is not None

    @property
    def wide(self) -> bool:
        """Whether an offset into a tensor passes 31 bits."""
        pixels = self.images * self.image[0] * self.image[1]
        return max(pixels * self.x_stride, self.m * max(self.y_stride, self.z_stride)) > _WIDE

    def constants(self) -> dict[str, Any]:
        """The kernels' compile-time constants that say what the sum is."""
        window = self.window
        return {
            "C": self.channels,
            "OH": self.grid[0],
            "OW": self.grid[1],
            "KH": window.kernel[0],
            "KW": window.kernel[1],
            "PAD_H": window.pads[0],
            "PAD_W": window.pads[1],
            "DILATION_H": window.dilations[0],
            "DILATION_W": window.dilations[1],
            "X_STRIDE": self.x_stride,
        }

    def geometry(self) -> dict[str, Any]:
        """Those that only the kernel with pointers has."""
        return {
            "H": self.image[0],
            "W": self.image[1],
            "STRIDE_H": self.window.strides[0],
            "STRIDE_W": self.window.strides[1],
        }

    def epilogue(self) -> dict[str, Any]:
        """And those that say what comes after the sum."""
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


def read_layer(operation: Operation) -> Layer:
    """Of an operation that a tactic said it supports.

    Raises:
        ValueError: it does not.
    """
    layer = Layer.read(operation)
    if isinstance(layer, str):
        raise ValueError(layer)
    return layer


def precisions(operation: Operation) -> tuple[str, ...]:
    """How float32 products may be made: by three TF32 products, which keep float32's accuracy, by
    one where the caller allows it, or without tensor cores. Other dtypes know one way."""
    kind = operation.inputs[0]
    assert kind is not None
    if kind.dtype != "float32":
        return ("upcast",) if _triton.interpreted() else ("ieee",)
    return ("tf32", "tf32x3") if operation.tf32 else ("tf32x3", "ieee")


def input_view(layer: Layer, x: torch.Tensor, box: tuple[int, int, int], block_k: int) -> Any:
    """A descriptor of X in `box_rank` dimensions, for requests of `block_k` channels of what one
    tap reads for a box of output pixels."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    (height, width), stride = layer.image, layer.window.strides[0]
    pixel, row, image = layer.x_stride, width * layer.x_stride, height * width * layer.x_stride
    images, rows, columns = box
    if layer.box_rank == 2:
        sizes, strides = [layer.images, layer.channels], [pixel, 1]
        request = [images, block_k]
    elif layer.box_rank == 4:
        if stride > 1:
            height, width = layer.grid
        sizes = [layer.images, height, width, layer.channels]
        strides = [image, stride * row, stride * pixel, 1]
        request = [images, rows, columns, block_k]
    else:
        both = (stride - 1) * pixel + layer.channels
        sizes = [layer.images, height // stride, stride, width // stride, both]
        strides = [image, stride * row, row, stride * pixel, 1]
        request = [images, rows, 1, columns, block_k]
    return TensorDescriptor(x, sizes, strides, request)


def output_view(
    layer: Layer, y: torch.Tensor, stride: int, box: tuple[int, int, int], block_n: int
) -> Any:
    """A descriptor of Y, or of Z, for tiles of `block_n` channels of a box of pixels.

    Args:
        stride: of its pixels, in elements.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    height, width = layer.grid
    if layer.box_rank == 2:
        return TensorDescriptor(y, [layer.images, layer.outputs], [stride, 1], [box[0], block_n])
    sizes = [layer.images, height, width, layer.outputs]
    strides = [height * width * stride, width * stride, stride, 1]
    return TensorDescriptor(y, sizes, strides, [*box, block_n])


def weight_view(packed: torch.Tensor, layer: Layer, block_n: int, block_k: int) -> Any:
    """A descriptor of what `pack_weights` gave."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows = -(-layer.outputs // block_n) * block_n
    depth = layer.product.steps(block_k) * block_k
    return TensorDescriptor(packed, [rows, depth], [depth, 1], [block_n, block_k])
