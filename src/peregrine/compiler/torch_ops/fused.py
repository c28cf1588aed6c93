"""The fused operators by plain PyTorch: what runs where no tactic is faster, and the reference
that every tactic's outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.attributes import torch_dtype
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.torch_ops.activations import activate
from peregrine.compiler.torch_ops.arithmetic import HALVES, float32_products
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported

Attributes: TypeAlias = "Mapping[str, Any]"

MOST_FLOAT64_FLOPS = 20e9
"""A reference on a GPU with more operations than this is computed in float32, without TF32."""


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """The dtypes of one run."""

    rounded: torch.dtype
    """What X is rounded to first: the dtype of the weights."""
    products: torch.dtype
    """What the kernels take."""
    sums: torch.dtype
    """What bias, residual and activation are computed in."""

    @classmethod
    def of(cls, weight: Tensor) -> _Arithmetic:
        """A CPU has no fast half kernels, so there halves are multiplied as float32."""
        dtype = weight.dtype
        if dtype not in HALVES:
            return cls(dtype, dtype, dtype)
        return cls(dtype, dtype if weight.is_cuda else torch.float32, torch.float32)

    def conv(self, x: Tensor, w: Tensor, window: Window, group: int = 1) -> Tensor:
        """In the dtype of the products."""
        x = x.to(self.rounded).to(self.products)
        top, left, bottom, right = window.pads
        padding = (top, left)
        if (top, left) != (bottom, right):
            x = F.pad(x, (left, right, top, bottom))
            padding = (0, 0)
        w = w.to(self.products)
        return F.conv2d(x, w, None, window.strides, padding, window.dilations, group)

    def linear(self, x: Tensor, w: Tensor) -> Tensor:
        """In the dtype of the products."""
        return F.linear(x.to(self.rounded).to(self.products), w.to(self.products))

    def finish(
        self, y: Tensor, b: Tensor | None, z: Tensor | None, activation: Activation
    ) -> Tensor:
        """activation(y + b + z) in the dtype of the sums; channels are y's dimension 1."""
        if b is not None:
            y = y + b.to(self.sums).reshape(-1, *[1] * (y.dim() - 2))
        if z is not None:
            y = y.to(self.sums) + z
        return activate(activation, y.to(self.sums))


_Compute: TypeAlias = "Callable[..., Tensor | tuple[Tensor, ...]]"
_C = TypeVar("_C", bound=_Compute)
_COMPUTES: dict[str, _Compute] = {}


def _fused(name: Fused) -> Callable[[_C], _C]:
    """Register a function of arithmetic, attributes and inputs that gives the sums of each
    output."""

    def register(compute: _C) -> _C:
        @operator(name)
        def run(call: Call, *inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
            weight = _weight(inputs)
            with float32_products(weight.device, tf32=call.tf32):
                y = compute(_Arithmetic.of(weight), call.attributes, *inputs)
            written = call.get("output_dtype")
            dtype = torch_dtype(written) if written else weight.dtype
            return tuple(part.to(dtype) for part in y) if isinstance(y, tuple) else y.to(dtype)

        _COMPUTES[name] = compute
        return compute

    return register


@_fused(Fused.CONV)
def _conv(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    y = arithmetic.conv(x, w, Window.read(attributes), attributes.get("group", 1))
    return arithmetic.finish(y, b, z, Activation.read(attributes))


@_fused(Fused.LINEAR)
def _linear(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    y = arithmetic.linear(x, w)
    if b is not None:
        y = y + b.to(arithmetic.sums)
    return arithmetic.finish(y, None, z, Activation.read(attributes))


@_fused(Fused.DEPTHWISE_POINTWISE)
def _depthwise_pointwise(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    wd: Tensor,
    bd: Tensor | None,
    wp: Tensor,
    bp: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    y = arithmetic.conv(x, wd, Window.read(attributes), group=x.shape[1])
    y = arithmetic.finish(y, bd, None, Activation.read(attributes, "inner_"))
    y = F.conv2d(y.to(arithmetic.products), wp.to(arithmetic.products))
    return arithmetic.finish(y, bp, z, Activation.read(attributes))


@_fused(Fused.CONV_MAX_POOL)
def _conv_max_pool(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    y = _conv(arithmetic, attributes, x, w, b)
    pool = Window.read(attributes, "pool_")
    top, left, bottom, right = pool.pads
    y = F.pad(y, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(y, pool.kernel, pool.strides, 0, pool.dilations)


@_fused(Fused.CONV_BRANCHES)
def _conv_branches(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None = None,
) -> Tensor:
    window, activation = Window.read(attributes), Activation.read(attributes)
    first = arithmetic.conv(x, w1, Window((1, 1), window.strides))
    second = arithmetic.conv(x, w2, window)
    return torch.cat(
        (
            arithmetic.finish(first, b1, None, activation),
            arithmetic.finish(second, b2, None, activation),
        ),
        dim=1,
    )


@_fused(Fused.POOL_LINEAR)
def _pool_linear(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    mean = x.to(arithmetic.rounded).mean((2, 3), dtype=arithmetic.sums)
    y = F.linear(mean.to(arithmetic.products), w.to(arithmetic.products))
    return arithmetic.finish(y, b, None, Activation.read(attributes))


@_fused(Fused.POINTWISE_PAIR)
def _pointwise_pair(
    arithmetic: _Arithmetic,
    attributes: Attributes,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    z: Tensor | None,
    w2: Tensor,
    b2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    window = Window((1, 1))
    first = arithmetic.conv(x, w1, window)
    first = arithmetic.finish(first, b1, z, Activation.read(attributes))
    # `conv` rounds what it takes as Y1 is rounded when it is written.
    second = arithmetic.conv(first, w2, window)
    return first, arithmetic.finish(second, b2, None, Activation.read(attributes, "second_"))


def reference(operation: Operation, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """What a fused operator should give for these inputs, to judge tactics by.

    X, and the Y1 that a PointwisePair reads again, are rounded to the weights' dtype as the
    operator rounds them; nothing else is rounded. Computed in float64, but above
    `MOST_FLOAT64_FLOPS` on a GPU in float32 without TF32; the outputs have the dtype that they
    were computed in.

    Raises:
        Unsupported: no fused operator of that name.
    """
    compute = _COMPUTES.get(operation.operator)
    if compute is None:
        raise Unsupported(f"{operation.operator} is no fused operator")
    weight = _weight(inputs)
    exact = torch.float64
    if weight.is_cuda and _flops(operation, inputs) > MOST_FLOAT64_FLOPS:
        exact = torch.float32
    with float32_products(weight.device, tf32=False):
        y = compute(_Arithmetic(weight.dtype, exact, exact), operation.attributes, *inputs)
    return y if isinstance(y, tuple) else (y,)


def _weight(inputs: Sequence[Tensor | None]) -> Tensor:
    """The first weight, whose dtype is the operator's; always the second input."""
    weight = inputs[1]
    assert weight is not None
    return weight


def _flops(operation: Operation, inputs: Sequence[Tensor | None]) -> float:
    """Multiplications and additions: each weight once at every position of the output."""
    x = inputs[0]
    assert x is not None
    if operation.operator == Fused.LINEAR:
        positions = x.numel() // x.shape[-1]
    elif operation.operator == Fused.POOL_LINEAR:
        positions = x.shape[0]
    elif operation.operator == Fused.POINTWISE_PAIR:
        positions = x.shape[0] * x.shape[2] * x.shape[3]
    else:
        height, width = Window.read(operation.attributes).output(x.shape[2], x.shape[3])
        positions = x.shape[0] * height * width
    several = {
        Fused.DEPTHWISE_POINTWISE: (1, 3),
        Fused.CONV_BRANCHES: (1, 3),
        Fused.POINTWISE_PAIR: (1, 4),
    }
    weights = (inputs[index] for index in several.get(Fused(operation.operator), (1,)))
    return 2.0 * positions * sum(w.numel() for w in weights if w is not None)
