"""Tensors joined, split, sliced, padded and cropped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.dtypes import bits, integers
from peregrine.compiler.torch_ops.registry import Call, operator
from peregrine.errors import Unsupported


@operator("ai.onnx.Concat")
def concat(call: Call, *tensors: Tensor) -> Tensor:
    """Before opset 4 the axis is 1 where it is absent."""
    return torch.cat([bits(x) for x in tensors], call.get("axis", 1)).view(tensors[0].dtype)


def _split(x: Tensor, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
    return tuple(torch.split(x, list(sizes), axis))


def _even(size: int, parts: int) -> list[int]:
    """Parts of equal size but for the last ones, which take what is left."""
    part = -(-size // parts)
    return [max(0, min(part, size - i * part)) for i in range(parts)]


@operator("ai.onnx.Split", host=(1,))
def split_attribute(call: Call, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    """Opset 1 knows the sizes as an attribute or an input."""
    axis = call.get("axis", 0)
    sizes = call.get("split") if split is None else integers(split)
    return _split(x, sizes or _even(x.shape[axis], call.outputs), axis)


@operator("ai.onnx.Split", since=13, host=(1,))
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    if sizes is not None:
        return _split(x, integers(sizes), axis)
    return _split(x, _even(x.shape[axis], call.get("num_outputs") or call.outputs), axis)


def _sliced(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    """As numpy slices, steps backwards included, which torch's slices know not."""
    axes = axes if axes is not None else range(len(starts))
    steps = steps if steps is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(*_bounds(x.shape[axis], start, end, step))
        if not taken:
            x = x.narrow(axis, 0, 0)
            continue
        first, last = min(taken[0], taken[-1]), max(taken[0], taken[-1])
        index = [slice(None)] * x.dim()
        index[axis] = slice(first, last + 1, abs(step))
        x = x[tuple(index)]
        if step < 0:
            x = bits(x).flip(axis).view(x.dtype)
    return x


def _bounds(size: int, start: int, end: int, step: int) -> tuple[int, int, int]:
    """Start, end and step as a range of indices: negative ones count from the end, once, and what
    lies outside is clamped."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size), step
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1), step


@operator("ai.onnx.Slice")
def slice_attributes(call: Call, x: Tensor) -> Tensor:
    return _sliced(x, call.attributes["starts"], call.attributes["ends"], call.get("axes"), None)


@operator("ai.onnx.Slice", since=10, host=(1, 2, 3, 4))
def slice_inputs(
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    return _sliced(
        x,
        integers(starts),
        integers(ends),
        None if axes is None else integers(axes),
        None if steps is None else integers(steps),
    )


def _padded(
    x: Tensor, pads: Sequence[int], axes: Sequence[int], mode: str, value: Tensor | None
) -> Tensor:
    """Negative pads crop. `value` is what a constant pad is filled with, 0 where absent."""
    before, after = pads[: len(axes)], pads[len(axes) :]
    y = bits(x)
    if mode == "constant":
        fill = None if value is None else bits(value.to(x.device, x.dtype))
        for axis, low, high in zip(axes, before, after, strict=True):
            y = _constant_padded(y, axis, low, high, fill)
        return y.view(x.dtype)
    for axis, low, high in zip(axes, before, after, strict=True):
        if low or high:
            index = _source(y.shape[axis], low, high, mode, y.device)
            y = y.index_select(axis, index)
    return y.view(x.dtype)


def _constant_padded(x: Tensor, axis: int, low: int, high: int, value: Tensor | None) -> Tensor:
    start, stop = max(0, -low), x.shape[axis] - max(0, -high)
    kept = x.narrow(axis, start, max(0, stop - start))
    low, high = max(0, low), max(0, high)
    if not low and not high:
        return kept
    shape = list(kept.shape)
    shape[axis] += low + high
    padded = kept.new_zeros(shape) if value is None else value.reshape(()).expand(shape).clone()
    padded.narrow(axis, low, kept.shape[axis]).copy_(kept)
    return padded


def _source(size: int, low: int, high: int, mode: str, device: torch.device) -> Tensor:
    """Which element each element of a padded axis is."""
    place = torch.arange(-low, size + high, device=device)
    if mode == "edge":
        return place.clamp(0, size - 1)
    if mode == "wrap":
        return place % size
    if mode == "reflect":
        period = max(1, 2 * (size - 1))
        place = place % period
        return torch.where(place >= size, period - place, place)
    raise Unsupported(f"Pad's mode {mode!r} is not known.")


@operator("ai.onnx.Pad")
def pad_attributes(call: Call, x: Tensor) -> Tensor:
    """Opset 1 calls its attribute `paddings`."""
    pads = call.get("pads") or call.get("paddings")
    value = torch.full((), call.get("value", 0.0), dtype=x.dtype, device=x.device)
    return _padded(x, pads, range(x.dim()), call.get("mode", "constant"), value)


@operator("ai.onnx.Pad", since=11, host=(1, 3))
def pad(
    call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    where = range(x.dim()) if axes is None else integers(axes)
    return _padded(x, integers(pads), where, call.get("mode", "constant"), value)


@operator("ai.onnx.CenterCropPad", since=18, host=(1,))
def center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """To the sizes asked for, in the middle: an odd pixel is cut off or padded at the end."""
    axes = call.get("axes") or range(x.dim())
    pads: list[int] = []
    ends: list[int] = []
    for axis, size in zip(axes, integers(shape), strict=True):
        missing = size - x.shape[axis]
        # Cropping starts at half of what is too much, rounded down.
        pads.append(missing // 2 if missing > 0 else -(-missing // 2))
        ends.append(missing - pads[-1])
    return _padded(x, [*pads, *ends], axes, "constant", None)
