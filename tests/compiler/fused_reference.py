"""The fused operators for `onnx.reference`, in float64, so that graphs run before and after a pass.

Written against the docstring of `peregrine.compiler.operators`, on onnx's own reference operators,
and independent of what the engine runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from peregrine.compiler.operators import DOMAIN, Activation, ActivationKind, Window
from peregrine.types import Array, Feeds

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(activation: Activation, x: Array) -> Array:
    """`activation` of float64 `x`."""
    a, b, kind = activation.alpha, activation.beta, ActivationKind
    cubed = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    return {
        kind.IDENTITY: x,
        kind.RELU: np.maximum(x, 0),
        kind.CLIP: np.minimum(np.maximum(x, a), b),
        kind.LEAKY_RELU: np.where(x >= 0, x, a * x),
        kind.SIGMOID: sigmoid,
        kind.TANH: np.tanh(x),
        kind.SILU: x * sigmoid,
        kind.HARD_SIGMOID: np.clip(a * x + b, 0, 1),
        kind.HARD_SWISH: x * np.clip(x / 6 + 0.5, 0, 1),
        kind.GELU: x / 2 * (1 + _erf(x / math.sqrt(2))),
        kind.GELU_TANH: x / 2 * (1 + np.tanh(cubed)),
    }[activation.kind]


def _geometry(window: Window) -> dict[str, Any]:
    return {
        "kernel_shape": list(window.kernel),
        "strides": list(window.strides),
        "pads": list(window.pads),
        "dilations": list(window.dilations),
    }


def conv(x: Array, w: Array, b: Array | None, window: Window, group: int = 1) -> Array:
    """By onnx's reference, without an activation."""
    assert w.shape[2:] == window.kernel
    inputs = [x, w] if b is None else [x, w, b]
    return load_op("", "Conv", 17).eval(*inputs, group=group, **_geometry(window))


def _biased(y: Array, b: Array | None) -> Array:
    return y if b is None else y + b


def _wide(array: Array | None) -> Array | None:
    return None if array is None else array.astype(np.float64)


class _Fused(OpRun):
    """Computes in float64 from what it reads, X rounded to the dtype of the weights as the
    operators say, and rounds once at the end."""

    op_domain = DOMAIN

    def _run(self, x: Array, w: Array, *others: Array | None, **attributes: Any) -> tuple[Array]:
        rounded = x.astype(w.dtype)
        y = self.compute(attributes, *map(_wide, (rounded, w, *others)))
        return (y.astype(w.dtype),)

    def compute(self, attributes: dict[str, Any], *inputs: Array) -> Array:
        raise NotImplementedError


class Conv(_Fused):
    def compute(self, attributes, x, w, b=None, z=None):
        y = conv(x, w, b, Window.read(attributes), attributes["group"])
        assert z is None or z.shape == y.shape
        return activate(Activation.read(attributes), y if z is None else y + z)


class Linear(_Fused):
    def compute(self, attributes, x, w, b=None, z=None):
        y = _biased(x @ w.T, b)
        assert z is None or z.shape == y.shape
        return activate(Activation.read(attributes), y if z is None else y + z)


class DepthwisePointwise(_Fused):
    def compute(self, attributes, x, wd, bd, wp, bp=None, z=None):
        inner = conv(x, wd, bd, Window.read(attributes), group=x.shape[1])
        inner = activate(Activation.read(attributes, "inner_"), inner)
        y = conv(inner, wp, bp, Window((1, 1)))
        assert z is None or z.shape == y.shape
        return activate(Activation.read(attributes), y if z is None else y + z)


class ConvMaxPool(_Fused):
    def compute(self, attributes, x, w, b=None):
        y = conv(x, w, b, Window.read(attributes), attributes.get("group", 1))
        y = activate(Activation.read(attributes), y)
        pool = Window.read(attributes, "pool_")
        return load_op("", "MaxPool", 12).eval(y, **_geometry(pool))


class ConvBranches(_Fused):
    def compute(self, attributes, x, w1, b1, w2, b2=None):
        window, activation = Window.read(attributes), Activation.read(attributes)
        first = conv(x, w1, b1, Window((1, 1), window.strides))
        return activate(activation, np.concatenate([first, conv(x, w2, b2, window)], axis=1))


class PoolLinear(_Fused):
    def compute(self, attributes, x, w, b=None):
        y = _biased(x.mean((2, 3)) @ w.T, b)
        return activate(Activation.read(attributes), y)


class PointwisePair(_Fused):
    """The one with two outputs."""

    def _run(self, x, w1, b1, z, w2, b2=None, **attributes):
        first = Conv.compute(self, {**_POINTWISE, **attributes}, *map(_wide, (x, w1, b1, z)))
        first = first.astype(w1.dtype)
        second = Activation.read(attributes, "second_").attributes()
        y = Conv.compute(self, {**_POINTWISE, **second}, *map(_wide, (first, w2, b2)))
        return first, y.astype(w2.dtype)


_POINTWISE = {**Window((1, 1)).attributes(), "group": 1}
OPERATORS = [
    Conv,
    Linear,
    DepthwisePointwise,
    ConvMaxPool,
    ConvBranches,
    PoolLinear,
    PointwisePair,
]


def run(model: ir.Model, feeds: Feeds) -> list[Array]:
    """Outputs of a graph with fused operators among standard ones, in the dtypes it declares."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=OPERATORS)
    with np.errstate(over="ignore", invalid="ignore"):  # onnx's sigmoid computes both branches
        outputs = evaluator.run(None, dict(feeds))
    dtypes = [value.dtype.numpy() if value.dtype else None for value in model.graph.outputs]
    return [
        output if dtype is None else np.asarray(output).astype(dtype)
        for output, dtype in zip(outputs, dtypes, strict=True)
    ]
