"""Two branches over one input, pointwise and with a window, in one launch of a Triton kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Fused, Window
from peregrine.compiler.tactics import _nhwc, _tiles, _triton
from peregrine.compiler.tactics._layers import (
    DTYPES,
    Layer,
    input_view,
    pack_bias,
    pack_weights,
    precisions,
    read_layer,
    weight_view,
)
from peregrine.compiler.tactics._tiles import Product, Tiling
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_TRIED = 16


class TritonBranches(Tactic):
    """SqueezeNet's `expand` and its like by `kernels.conv_branches`."""

    name = "triton_branches"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.CONV_BRANCHES:
            return Support.no(f"it runs pairs of convolutions, not {operation.operator}")
        missing = _triton.available(device)
        if missing:
            return Support.no(missing)
        kinds = [kind for kind in (*operation.inputs, *operation.outputs) if kind is not None]
        if any(kind.dtype not in DTYPES for kind in kinds):
            return Support.no(f"it takes {', '.join(DTYPES)}")
        x, w1, w2 = (operation.inputs[i] for i in (0, 1, 3))
        assert x is not None
        assert w1 is not None
        assert w2 is not None
        if not x.dtype == w1.dtype == w2.dtype:
            return Support.no("X and its weights have different dtypes")
        present = {i for i, kind in enumerate(operation.inputs) if i and kind is not None}
        if not present <= operation.constants:
            return Support.no("its weights are no constants")
        for branch in branches(operation):
            layer = Layer.read(branch)
            if isinstance(layer, str):
                return Support.no(layer)
        return Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        pdl = device.is_cuda and device.capability >= (9, 0)
        tilings = [
            tiling
            for tiling in _tiles.best(_product(operation), device)
            if tiling.split_k == 1 and not tiling.programs
        ]
        return [
            {**tiling.config(), "precision": precision, "pdl": pdl}
            for tiling in tilings[:_TRIED]
            for precision in precisions(operation)
        ]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        return _tiles.predict(_product(operation), Tiling.read(config), device)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        _triton.compile_ahead([self.kernel(operation, config) for config in configs], device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        tiling = Tiling.read(config)
        packed = list(inputs)
        for weights in (1, 3):
            given = packed[weights]
            assert given is not None
            packed[weights] = pack_weights(given, tiling.block_n, tiling.block_k)
        for bias in (2, 4):
            given = packed[bias] if bias < len(packed) else None
            if given is not None:
                packed[bias] = pack_bias(given, tiling.block_n)
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
            [self.kernel(operation, config, [*[*inputs, None][:5], outputs[0]])]
        )

    def kernel(
        self,
        operation: Operation,
        config: Config,
        tensors: Sequence[torch.Tensor | None] | None = None,
    ) -> _triton.Kernel:
        """What a launch of this configuration launches.

        Args:
            tensors: X, W1, B1, W2 and B2 as packed, Y; None to compile only.
        """
        from peregrine.compiler.kernels import conv_branches

        tiling = Tiling.read(config)
        pointwise, window = (read_layer(branch) for branch in branches(operation))
        x, w1, bias1, w2, bias2, y = tensors or _nhwc.stand_ins(
            [*[*operation.inputs, None][:5], operation.outputs[0]], biases=(2, 4)
        )
        assert x is not None
        assert w1 is not None
        assert w2 is not None
        assert y is not None
        constants = window.constants()
        x_stride = constants.pop("X_STRIDE")
        end = window.epilogue()
        arguments: dict[str, Any] = {
            # Absent tensors are never touched: any pointer will do.
            "bias1": y if bias1 is None else bias1,
            "bias2": y if bias2 is None else bias2,
            "y": y,
            "O1": pointwise.outputs,
            "O2": window.outputs,
            "HAS_BIAS1": pointwise.has_bias,
            "HAS_BIAS2": window.has_bias,
            **constants,
            **{name: end[name] for name in ("Y_STRIDE", "KIND", "ALPHA", "BETA", "WIDE")},
            "BLOCK_N": tiling.block_n,
            "BLOCK_K": tiling.block_k,
            "PRECISION": str(config["precision"]),
            "PDL": bool(config["pdl"]),
        }
        columns = sum(-(-o // tiling.block_n) for o in (pointwise.outputs, window.outputs))
        if tiling.fetch == "tma" and x.data_ptr() % 16 == 0:
            box = tiling.box(window.product)
            arguments |= {
                "x": input_view(window, x, box, tiling.block_k),
                "w1": weight_view(w1, pointwise, tiling.block_n, tiling.block_k),
                "w2": weight_view(w2, window, tiling.block_n, tiling.block_k),
                "N": window.images,
                "BOX_N": box[0],
                "BOX_H": box[1],
                "BOX_W": box[2],
            }
            function = conv_branches.conv_branches_tma
        else:
            tiling = replace(tiling, fetch="pointers")
            arguments |= {
                "x": x,
                "w1": w1,
                "w2": w2,
                "M": window.m,
                "X_STRIDE": x_stride,
                **window.geometry(),
                "BLOCK_M": tiling.block_m,
            }
            function = conv_branches.conv_branches
        grid = (tiling.rows(window.product) * columns,)
        return _triton.Kernel(
            function, grid, arguments, tiling.warps, tiling.stages, bool(config["pdl"])
        )


def branches(operation: Operation) -> tuple[Operation, Operation]:
    """The two as convolutions of their own, Y as a slice of the joint one."""
    x, w1, b1, w2, b2 = [*operation.inputs, None][:5]
    window = Window.read(operation.attributes)
    y = operation.outputs[0]
    assert y.shape is not None

    def branch(geometry: Window, w: TensorType | None, b: TensorType | None) -> Operation:
        assert w is not None
        assert w.shape is not None
        assert y.shape is not None
        shape = (y.shape[0], w.shape[0], *y.shape[2:])
        return Operation(
            Fused.CONV,
            {**operation.attributes, **geometry.attributes(), "group": 1},
            (x, w, b),
            (TensorType(y.dtype, shape, y.strides),),
            operation.constants,
            operation.opset,
            operation.tf32,
        )

    return branch(Window((1, 1), window.strides), w1, b1), branch(window, w2, b2)


def _product(operation: Operation) -> Product:
    """The window's, with the columns of both: the pointwise ones cost less, but the last of the
    others to end decides. TMA takes stride 1 only."""
    pointwise, window = (read_layer(branch).product for branch in branches(operation))
    return replace(
        window,
        n=pointwise.n + window.n,
        bytes=pointwise.bytes + window.bytes,
        boxed_end=False,
        box_rank=window.box_rank if window.box_rank == 4 else 0,
    )
