"""Poolings over sliding windows, over the whole image and over regions of interest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.compiler.torch_ops.windows import Ints, Sliding, pad
from peregrine.errors import Unsupported

_MAX_POOLS: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: torch.max_pool1d_with_indices,
    2: torch.ops.aten.max_pool2d_with_indices,
    3: torch.ops.aten.max_pool3d_with_indices,
}
_AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


def _spatial(call: Call, name: str, x: Tensor) -> Ints:
    sizes = tuple(x.shape[2:])
    if not 1 <= len(sizes) <= 3:
        raise Unsupported(f"{name} of {len(sizes)} spatial dimensions")
    return sizes


def _fits(window: Sliding) -> bool:
    """Whether torch's own padding will do: the same on both sides, at most half a kernel."""
    halves = all(2 * begin <= k for begin, k in zip(window.begins, window.kernel, strict=True))
    return window.is_symmetric and halves


def _overrun(window: Sliding, sizes: Ints, positions: Ints) -> list[int]:
    """What must stand behind the input so that all windows lie within; negative where the last
    window ends earlier."""
    return [
        (count - 1) * stride + extent - size - begin
        for count, stride, extent, size, begin in zip(
            positions, window.strides, window.extents, sizes, window.begins, strict=True
        )
    ]


@operator("ai.onnx.MaxPool")
def max_pool(call: Call, x: Tensor) -> Result:
    sizes = _spatial(call, "MaxPool", x)
    window = Sliding.read(call, sizes)
    ceil = bool(call.get("ceil_mode", 0))
    begins = window.begins
    y = x if x.is_floating_point() else x.double()
    if ceil or not _fits(window):
        ends = _overrun(window, sizes, window.outputs(sizes, ceil=ceil))
        y = pad(y, begins, ends, -math.inf)
        padded, begins = y.shape[2:], (0,) * len(sizes)
    else:
        padded = x.shape[2:]
    kernel, strides, dilations = window.kernel, window.strides, window.dilations
    pooled, indices = _MAX_POOLS[len(sizes)](y, kernel, strides, begins, dilations)
    pooled = pooled.to(x.dtype)
    if call.outputs == 1:
        return pooled
    shifts = [old - new for old, new in zip(window.begins, begins, strict=True)]
    return pooled, _flat_indices(call, indices, x.shape, padded, shifts)


def _flat_indices(
    call: Call, indices: Tensor, shape: Sequence[int], padded: Sequence[int], shifts: Sequence[int]
) -> Tensor:
    """torch's indices within a padded channel as ONNX's within the whole tensor."""
    sizes = shape[2:]
    coordinates = []
    for size, shift in zip(reversed(padded), reversed(shifts), strict=True):
        coordinates.append(indices % size - shift)
        indices = indices.div(size, rounding_mode="floor")
    innermost_first = list(zip(coordinates, reversed(sizes), strict=True))
    if call.get("storage_order", 0):
        innermost_first.reverse()
    flat, step = torch.zeros_like(indices), 1
    for coordinate, size in innermost_first:
        flat = flat + coordinate * step
        step *= size
    channels = torch.arange(shape[0] * shape[1], device=flat.device) * step
    return flat + channels.reshape(*shape[:2], *[1] * len(sizes))


@operator("ai.onnx.AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    sizes = _spatial(call, "AveragePool", x)
    window = Sliding.read(call, sizes)
    ceil, with_pads = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    if _fits(window) and set(window.dilations) == {1}:
        kernel, strides, begins = window.kernel, window.strides, window.begins
        pooled = _AVERAGE_POOLS[len(sizes)](wide(x), kernel, strides, begins, ceil, with_pads)
        return pooled.to(x.dtype)
    ends = _overrun(window, sizes, window.outputs(sizes, ceil=ceil))
    kernel_axes = tuple(range(-len(sizes), 0))
    sums = window.views(pad(wide(x), window.begins, ends)).sum(kernel_axes)
    counted = wide(x).new_ones(1, 1, *sizes)
    if with_pads:
        counted = pad(counted, window.begins, window.ends, 1.0)
        ends = [end - done for end, done in zip(ends, window.ends, strict=True)]
    else:
        counted = pad(counted, window.begins, [0] * len(sizes))
    counts = window.views(pad(counted, [0] * len(sizes), ends)).sum(kernel_axes)
    return (sums / counts).to(x.dtype)


@operator("ai.onnx.LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    sizes = _spatial(call, "LpPool", x)
    window = Sliding.read(call, sizes)
    power = float(call.get("p", 2))
    ends = _overrun(window, sizes, window.outputs(sizes, ceil=bool(call.get("ceil_mode", 0))))
    powers = pad(wide(x).abs().pow(power), window.begins, ends)
    sums = window.views(powers).sum(tuple(range(-len(sizes), 0)))
    return sums.pow(1 / power).to(x.dtype)


def _image_axes(x: Tensor) -> Ints:
    return tuple(range(2, x.dim()))


@operator("ai.onnx.GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return wide(x).mean(_image_axes(x), keepdim=True).to(x.dtype)


@operator("ai.onnx.GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(_image_axes(x), keepdim=True)


@operator("ai.onnx.GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    power = float(call.get("p", 2))
    sums = wide(x).abs().pow(power).sum(_image_axes(x), keepdim=True)
    return sums.pow(1 / power).to(x.dtype)


@operator("ai.onnx.MaxUnpool", host=(2,))
def max_unpool(
    call: Call, x: Tensor, indices: Tensor, output_shape: Tensor | None = None
) -> Tensor:
    """The indices are of the tensor that was pooled; a larger `output_shape` has it in front."""
    rank = x.dim() - 2
    kernel = tuple(call.get("kernel_shape"))
    strides = tuple(call.get("strides") or (1,) * rank)
    pads = tuple(call.get("pads") or (0,) * (2 * rank))
    sizes = [
        (size - 1) * stride - begin - end + extent
        for size, stride, begin, end, extent in zip(
            x.shape[2:], strides, pads[:rank], pads[rank:], kernel, strict=True
        )
    ]
    y = x.new_zeros(x.shape[0] * x.shape[1] * math.prod(sizes))
    y = y.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *sizes)
    if output_shape is None:
        return y
    wanted = output_shape.tolist()[2:]
    return pad(y, [0] * rank, [want - size for want, size in zip(wanted, sizes, strict=True)])


@operator("ai.onnx.MaxRoiPool", host=(1,))
def max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """Girshick, Fast R-CNN (2015). rois (R, 5): image, then x1, y1, x2, y2 inclusive. A region is
    split as adaptive pooling splits; a part outside of the image gives 0."""
    height, width = x.shape[2:]
    scale, pooled = call.get("spatial_scale", 1.0), tuple(call.get("pooled_shape"))
    regions = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (math.floor(corner * scale + 0.5) for corner in corners)
        x2, y2 = max(x2, x1) + 1, max(y2, y1) + 1
        begins, ends = (-y1, -x1), (y2 - height, x2 - width)
        region = pad(x[int(image)], begins, ends, -math.inf)
        regions.append(F.adaptive_max_pool2d(region, pooled))
    if not regions:
        return x.new_empty(0, x.shape[1], *pooled)
    y = torch.stack(regions)
    return torch.where(y == -math.inf, 0, y)


@operator("ai.onnx.RoiAlign", since=10, host=(1, 2))
def roi_align_whole(call: Call, x: Tensor, rois: Tensor, batch_indices: Tensor) -> Tensor:
    return _roi_align(call, x, rois, batch_indices, "output_half_pixel")


@operator("ai.onnx.RoiAlign", since=16, host=(1, 2))
def roi_align(call: Call, x: Tensor, rois: Tensor, batch_indices: Tensor) -> Tensor:
    return _roi_align(call, x, rois, batch_indices, "half_pixel")


def _roi_align(
    call: Call, x: Tensor, rois: Tensor, batch_indices: Tensor, coordinates: str
) -> Tensor:
    """He et al., Mask R-CNN (2017). rois (R, 4): x1, y1, x2, y2. Every bin is the mean, or the
    greatest, of samples between pixels."""
    half = call.get("coordinate_transformation_mode", coordinates) == "half_pixel"
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    scale, ratio = call.get("spatial_scale", 1.0), call.get("sampling_ratio", 0)
    greatest = call.get("mode", "avg") == "max"
    images = batch_indices.tolist()
    regions = []
    for image, corners in zip(images, rois.tolist(), strict=True):
        x1, y1, x2, y2 = (corner * scale - (0.5 if half else 0.0) for corner in corners)
        tall, broad = y2 - y1, x2 - x1
        if not half:
            tall, broad = max(tall, 1.0), max(broad, 1.0)
        rows = _RoiAxis(y1, tall, height, ratio, x)
        columns = _RoiAxis(x1, broad, width, ratio, x)
        regions.append(_sample_region(wide(x[int(image)]), rows, columns, greatest))
    if not regions:
        return x.new_empty(0, x.shape[1], height, width)
    return torch.stack(regions).to(x.dtype)


class _RoiAxis:
    """Where the samples of a region lie along one axis of the image."""

    def __init__(self, start: float, extent: float, bins: int, ratio: int, x: Tensor) -> None:
        size = extent / bins
        self.bins = bins
        self.samples = ratio if ratio > 0 else math.ceil(size)
        at = torch.arange(bins * max(self.samples, 0), dtype=torch.float64)
        per = max(self.samples, 1)
        within = (at % per + 0.5) / per
        self.positions = (start + (at.div(per, rounding_mode="floor") + within) * size).to(x.device)

    def corners(self, limit: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(index, weight) of the pixel before and of the one after each sample; beyond a pixel
        outside of the image both weights are 0."""
        inside = (self.positions >= -1) & (self.positions <= limit)
        at = self.positions.clamp(0, limit - 1)
        low = at.floor()
        after = at - low
        high = (low + 1).clamp(max=limit - 1)
        return (low.long(), (1 - after) * inside), (high.long(), after * inside)


def _sample_region(image: Tensor, rows: _RoiAxis, columns: _RoiAxis, greatest: bool) -> Tensor:
    """image (C, H, W) -> (C, bins, bins)."""
    if rows.samples <= 0 or columns.samples <= 0:
        return image.new_zeros(image.shape[0], rows.bins, columns.bins)
    weighted = []
    for row, row_weight in rows.corners(image.shape[1]):
        for column, column_weight in columns.corners(image.shape[2]):
            weights = (row_weight[:, None] * column_weight).to(image.dtype)
            weighted.append(image[:, row[:, None], column] * weights)
    corners = torch.stack(weighted)
    # ONNX takes the greatest of the four weighted corners, not of the samples' values.
    samples = corners.amax(0) if greatest else corners.sum(0)
    samples = samples.reshape(-1, rows.bins, rows.samples, columns.bins, columns.samples)
    return samples.amax((2, 4)) if greatest else samples.mean((2, 4))
