"""Resizing, and other resampling of images: along each axis every output is a weighted sum of a few
inputs, whose places and weights follow from the sizes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported

Floats: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True, slots=True)
class _Method:
    """How all axes are resized; ONNX's attributes."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation_value: float = 0.0


@dataclass(frozen=True, slots=True)
class _Axis:
    """How one axis is resized."""

    dim: int
    size: int
    output: int
    scale: float
    start: float = 0.0
    end: float = 1.0
    """The region of interest, as shares of the axis."""

    @property
    def changes(self) -> bool:
        whole = self.start == 0.0 and self.end == 1.0
        return self.output != self.size or self.scale != 1.0 or not whole


def _positions(method: _Method, axis: _Axis) -> Floats:
    """Where each output lies in the input, in pixels; formulas as in ONNX's Resize-19."""
    at = np.arange(axis.output, dtype=np.float64)
    length = axis.scale * axis.size
    match method.coordinates:
        case "half_pixel":
            return (at + 0.5) / axis.scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / axis.scale - 0.5 if length > 1 else at - 0.5
        case "half_pixel_symmetric":
            offset = axis.size / 2 * (1 - axis.output / length)
            return offset + (at + 0.5) / axis.scale - 0.5
        case "align_corners":
            return at * ((axis.size - 1) / (length - 1)) if length != 1 else 0 * at
        case "asymmetric":
            return at / axis.scale
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / axis.scale
        case "tf_crop_and_resize":
            last = axis.size - 1
            if length == 1:
                return 0 * at + 0.5 * (axis.start + axis.end) * last
            step = (axis.end - axis.start) * last / (length - 1)
            return axis.start * last + at * step
        case other:
            raise Unsupported(f"Resize with coordinate_transformation_mode {other!r}")


def _nearest(method: _Method, axis: _Axis, at: Floats) -> Floats:
    match method.nearest:
        case "floor":
            return np.floor(at)
        case "ceil":
            return np.ceil(at)
        case "round_prefer_floor":
            return np.ceil(at - 0.5)
        case "round_prefer_ceil":
            return np.floor(at + 0.5)
        case "onnx_10":
            return np.ceil(at) if axis.scale < 1 else np.floor(at)
        case other:
            raise Unsupported(f"Resize with nearest_mode {other!r}")


def _kernel(method: _Method, distance: Floats) -> Floats:
    """The weight at a distance in pixels: a triangle, or Keys' cubic (1981)."""
    x = np.abs(distance)
    if method.mode == "linear":
        triangle: Floats = np.maximum(1 - x, 0)
        return triangle
    a = method.cubic_a
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _taps(method: _Method, axis: _Axis) -> tuple[NDArray[np.int64], Floats]:
    """(places, weights) of each output, both (output, taps); places lie in the input."""
    at = _positions(method, axis)
    if method.mode == "nearest":
        places = _nearest(method, axis, at)[:, None]
        weights = np.ones_like(places)
    elif method.mode in ("linear", "cubic"):
        shrink = min(axis.scale, 1.0) if method.antialias else 1.0
        reach = math.ceil((1 if method.mode == "linear" else 2) / shrink)
        places = np.floor(at)[:, None] + np.arange(1 - reach, reach + 1)
        weights = _kernel(method, (places - at[:, None]) * shrink)
        weights /= weights.sum(1, keepdims=True)
    else:
        raise Unsupported(f"Resize with mode {method.mode!r}")
    if method.exclude_outside:
        weights = np.where((places < 0) | (places >= axis.size), 0, weights)
        sums = weights.sum(1, keepdims=True)
        weights = weights / np.where(sums == 0, 1, sums)
    return np.clip(places, 0, axis.size - 1).astype(np.int64), weights


def _taps_on(
    method: _Method, axis: _Axis, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(places, weights, which outputs lie outside) on the device."""
    places, weights = _taps(method, axis)
    at = _positions(method, axis)
    outside = (at < 0) | (at > axis.size - 1)
    return (
        torch.from_numpy(places).to(device),
        torch.from_numpy(weights).to(device, dtype),
        torch.from_numpy(outside).to(device),
    )


def _resize_axis(call: Call, x: Tensor, method: _Method, axis: _Axis) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.float64
    key = (method, axis, x.device, dtype)
    places, weights, outside = call.table(key, lambda: _taps_on(*key))
    along = [1] * (x.dim() - axis.dim - 1)
    y = x.index_select(axis.dim, places.reshape(-1))
    if method.mode != "nearest":
        taps = y.reshape(*x.shape[: axis.dim], *places.shape, *x.shape[axis.dim + 1 :])
        y = (taps * weights.reshape(*weights.shape, *along)).sum(axis.dim + 1)
    if method.coordinates == "tf_crop_and_resize":
        y = torch.where(outside.reshape(-1, *along), method.extrapolation_value, y)
    return y


def _by_torch(x: Tensor, method: _Method, axes: Sequence[_Axis]) -> Tensor | None:
    """By one kernel of torch's, where one means the same: images of which height and width are
    resized."""
    if x.dim() != 4 or not x.is_floating_point() or {axis.dim for axis in axes} != {2, 3}:
        return None
    rows, columns = sorted(axes, key=lambda axis: axis.dim)
    size, scales = [rows.output, columns.output], (rows.scale, columns.scale)
    # torch divides by the scale in float32: only powers of two leave no rounding to go wrong.
    exact = all(math.frexp(scale)[0] == 0.5 for scale in scales)
    halves = method.coordinates == "half_pixel" or (
        method.coordinates == "pytorch_half_pixel" and min(size) > 1
    )
    kernel: Any = None
    match method.mode:
        case "nearest":
            if method.coordinates == "asymmetric" and method.nearest == "floor" and exact:
                kernel = torch.ops.aten.upsample_nearest2d
        case "linear":
            kernel = partial(torch.ops.aten.upsample_bilinear2d, align_corners=False)
        case "cubic":
            if method.cubic_a == -0.75:
                kernel = partial(torch.ops.aten.upsample_bicubic2d, align_corners=False)
    if method.mode != "nearest" and (not halves or method.antialias or method.exclude_outside):
        kernel = None
    if kernel is None:
        return None
    resized: Tensor = kernel(x, size, scales_h=scales[0], scales_w=scales[1])
    return resized


def _resize(call: Call, x: Tensor, method: _Method, axes: Sequence[_Axis]) -> Tensor:
    changing = [axis for axis in axes if axis.changes]
    if not changing:
        return x
    if x.numel() == 0 or any(axis.output == 0 for axis in changing):
        shape = list(x.shape)
        for axis in changing:
            shape[axis.dim] = axis.output
        return x.new_zeros(shape)
    y = wide(x) if method.mode != "nearest" else x
    whole = _by_torch(y, method, changing)
    if whole is not None:
        return whole.to(x.dtype)
    for axis in changing:
        y = _resize_axis(call, y, method, axis)
    if not x.is_floating_point() and y.is_floating_point():
        limits = torch.iinfo(x.dtype)
        y = y.round().clamp(limits.min, limits.max)
    return y.to(x.dtype)


def _given(x: Tensor | None) -> list[Any] | None:
    """None where an optional list is absent or empty."""
    return None if x is None or x.numel() == 0 else x.tolist()


def _scaled_axes(x: Tensor, dims: Sequence[int], scales: Sequence[float]) -> list[_Axis]:
    return [
        _Axis(dim, x.shape[dim], math.floor(x.shape[dim] * scale), scale)
        for dim, scale in zip(dims, scales, strict=True)
    ]


def _sized_axes(call: Call, x: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> list[_Axis]:
    scales = [size / x.shape[dim] for dim, size in zip(dims, sizes, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        scale = min(scales) if policy == "not_larger" else max(scales)
        scales = [scale] * len(scales)
        sizes = [math.floor(scale * x.shape[dim] + 0.5) for dim in dims]
    return [
        _Axis(dim, x.shape[dim], size, scale)
        for dim, size, scale in zip(dims, sizes, scales, strict=True)
    ]


@operator("ai.onnx.Resize", since=11, host=(1, 2, 3))
def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    dims = [dim % x.dim() for dim in call.get("axes") or range(x.dim())]
    wanted, factors = _given(sizes), _given(scales)
    if wanted is not None:
        axes = _sized_axes(call, x, dims, wanted)
    elif factors is not None:
        axes = _scaled_axes(x, dims, factors)
    else:
        raise Unsupported("Resize with neither scales nor sizes")
    method = _Method(
        call.get("mode", "nearest"),
        call.get("coordinate_transformation_mode", "half_pixel"),
        call.get("nearest_mode", "round_prefer_floor"),
        call.get("cubic_coeff_a", -0.75),
        bool(call.get("exclude_outside", 0)),
        bool(call.get("antialias", 0)),
        call.get("extrapolation_value", 0.0),
    )
    region = _given(roi)
    if method.coordinates == "tf_crop_and_resize" and region is not None:
        halfway = len(axes)
        axes = [
            replace(axis, start=start, end=end)
            for axis, start, end in zip(axes, region[:halfway], region[halfway:], strict=True)
        ]
    return _resize(call, x, method, axes)


@operator("ai.onnx.Upsample", since=9, host=(1,))
@operator("ai.onnx.Resize", since=10, host=(1,))
def resize_by_scales(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    """As before opset 11: output i lies at i / scale."""
    method = _Method(call.get("mode", "nearest"), "asymmetric", "onnx_10")
    return _resize(call, x, method, _scaled_axes(x, range(x.dim()), scales.tolist()))


@operator("ai.onnx.Upsample", since=7)
def upsample(call: Call, x: Tensor) -> Tensor:
    method = _Method(call.get("mode", "nearest"), "asymmetric", "onnx_10")
    return _resize(call, x, method, _scaled_axes(x, range(x.dim()), call.get("scales")))


@operator("ai.onnx.GridSample", since=16)
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = call.get("mode", "linear")
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    if torch_mode == "bicubic" and x.dim() != 4:
        raise Unsupported(f"cubic GridSample of {x.dim() - 2} spatial dimensions")
    if x.dim() not in (4, 5):
        raise Unsupported(f"GridSample of {x.dim() - 2} spatial dimensions")
    y = F.grid_sample(
        wide(x),
        grid.to(wide(x).dtype),
        torch_mode,
        call.get("padding_mode", "zeros"),
        bool(call.get("align_corners", 0)),
    )
    return y.to(x.dtype)


@operator("ai.onnx.AffineGrid", since=20, host=(1,))
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    grid = F.affine_grid(wide(theta), size.tolist(), bool(call.get("align_corners", 0)))
    return grid.to(theta.dtype)
