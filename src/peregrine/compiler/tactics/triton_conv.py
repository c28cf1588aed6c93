"""Convolutions and matrix products by the Triton kernel of `kernels.conv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Fused
from peregrine.compiler.tactics import _tiles, _triton
from peregrine.compiler.tactics._layers import (
    DTYPES,
    Layer,
    input_view,
    output_view,
    pack_bias,
    pack_weights,
    precisions,
    read_layer,
    weight_view,
)
from peregrine.compiler.tactics._tiles import Tiling
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 16
"""Tilings of one operation that are compiled and timed."""


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
        if any(kind.dtype not in DTYPES for kind in kinds):
            return Support.no(f"it takes {', '.join(DTYPES)}")
        if kinds[0].dtype != kinds[1].dtype:
            return Support.no("X and W have different dtypes")
        weights = {position for position in (1, 2) if position < len(operation.inputs)}
        if any(operation.inputs[i] and i not in operation.constants for i in weights):
            return Support.no("its weights are no constants")
        layer = Layer.read(operation)
        return Support.no(layer) if isinstance(layer, str) else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        tilings = _tiles.best(read_layer(operation).product, device)
        pdl = device.is_cuda and device.capability >= (9, 0)
        return [
            {**tiling.config(), "precision": precision, "pdl": pdl}
            for tiling in tilings[:_TRIED]
            for precision in precisions(operation)
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        seconds = _tiles.predict(read_layer(operation).product, Tiling.read(config), device)
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
        tiles = tiling.tiles(read_layer(operation).product)
        return 4 * tiles * tiling.split_k * tiling.block_m * tiling.block_n

    def state(self, operation: Operation, config: Config, device: Device) -> int:
        tiling = Tiling.read(config)
        if tiling.split_k == 1 or tiling.reduce != "last":
            return 0
        return 4 * tiling.tiles(read_layer(operation).product)

    def writes_over(self, operation: Operation, config: Config) -> frozenset[int]:
        """Z: of a tile it is read by the program that finishes the tile, and tiles share nothing.
        Where K is split, that is the last program or one of the second kernel."""
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

        layer = read_layer(operation)
        tiling = Tiling.read(config)
        if tensors is None:
            tensors = _stand_ins(operation, tiling)
        x, w, bias, z, y, workspace, state = tensors
        assert x is not None
        assert w is not None
        assert y is not None
        # Absent tensors are never touched: any pointer will do.
        data = {
            "bias": y if bias is None else bias,
            "z": y if z is None else z,
            "y": y,
            "partials": y if workspace is None else workspace.view(torch.float32),
            "counters": y if state is None else state.view(torch.int32),
            **layer.epilogue(),
            "BLOCK_N": tiling.block_n,
            "SPLIT_K": tiling.split_k,
            "PRECISION": str(config["precision"]),
            "LAST_REDUCES": tiling.reduce == "last",
            "AHEAD": tiling.ahead,
            "PDL": bool(config["pdl"]),
        }
        if tiling.fetch == "tma" and x.data_ptr() % 16 == 0:
            kernels = [_with_tma(layer, tiling, x, w, data)]
        else:
            tiling = replace(tiling, fetch="pointers")
            kernels = [_with_pointers(layer, tiling, x, w, data)]
        if tiling.split_k > 1 and tiling.reduce == "kernel":
            kernels.append(_reduction(layer, tiling, data))
        return kernels


def _with_pointers(
    layer: Layer,
    tiling: Tiling,
    x: torch.Tensor,
    w: torch.Tensor,
    data: dict[str, Any],
) -> _triton.Kernel:
    from peregrine.compiler.kernels import conv

    arguments = {
        "x": x,
        "w": w,
        **data,
        "M": layer.m,
        **layer.constants(),
        **layer.geometry(),
        "BLOCK_M": tiling.block_m,
        "BLOCK_K": tiling.block_k,
    }
    grid = (tiling.tiles(layer.product), tiling.split_k)
    return _triton.Kernel(conv.conv, grid, arguments, tiling.warps, tiling.stages, data["PDL"])


def _with_tma(
    layer: Layer, tiling: Tiling, x: torch.Tensor, w: torch.Tensor, data: dict[str, Any]
) -> _triton.Kernel:
    from peregrine.compiler.kernels import conv_tma

    box = tiling.box(layer.product)
    ends: dict[str, Any] = {}
    if tiling.boxed_end and data["y"].data_ptr() % 16 == data["z"].data_ptr() % 16 == 0:
        strides = {"z": layer.z_stride or layer.y_stride, "y": layer.y_stride}
        ends = {
            name: output_view(layer, data[name], stride, box, tiling.block_n)
            for name, stride in strides.items()
        }
    arguments = {
        "x": input_view(layer, x, box, tiling.block_k),
        "w": weight_view(w, layer, tiling.block_n, tiling.block_k),
        **data,
        **ends,
        "BOXED_END": bool(ends),
        "N": layer.images,
        **layer.constants(),
        "STRIDE": layer.window.strides[0],
        "RANK": layer.box_rank,
        "BOX_N": box[0],
        "BOX_H": box[1],
        "BOX_W": box[2],
        "BLOCK_K": tiling.block_k,
        "PERSISTENT": tiling.programs > 0,
    }
    grid = (tiling.programs or tiling.tiles(layer.product), tiling.split_k)
    return _triton.Kernel(
        conv_tma.conv_tma, grid, arguments, tiling.warps, tiling.stages, data["PDL"]
    )


def _reduction(layer: Layer, tiling: Tiling, data: dict[str, Any]) -> _triton.Kernel:
    from peregrine.compiler.kernels import conv_tma

    # About 8 elements a thread: many small programs read the partial sums fastest.
    rows = max(1, min(tiling.block_m, 1024 // tiling.block_n))
    boxed = tiling.fetch == "tma"
    box = tiling.box(layer.product) if boxed else (tiling.block_m, 1, 1)
    arguments = {
        **{name: data[name] for name in ("partials", "bias", "z", "y", *layer.epilogue())},
        **{name: data[name] for name in ("BLOCK_N", "SPLIT_K", "PDL")},
        "N": layer.images if boxed else layer.m,
        "OH": layer.grid[0] if boxed else 1,
        "OW": layer.grid[1] if boxed else 1,
        "BOX_N": box[0],
        "BOX_H": box[1],
        "BOX_W": box[2],
        "ROWS": rows,
    }
    grid = (tiling.tiles(layer.product), tiling.block_m // rows)
    return _triton.Kernel(conv_tma.reduce_splits, grid, arguments, 4, 2, data["PDL"])


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
