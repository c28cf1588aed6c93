"""Operators that scale and shift each channel by constants: y = scale * x + shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from peregrine.compiler.passes.rewriting import attributes_of, exact, is_op
from peregrine.types import Array


@dataclass(frozen=True, slots=True)
class Affine:
    """What such a node does to the `value` it reads; float64, one number a channel."""

    value: ir.Value
    scale: Array
    shift: Array


def affine(node: ir.Node, channel_axis: int) -> Affine | None:
    """Of BatchNormalization at inference, and of Mul, Div, Add and Sub with a constant that is
    the same along all axes but the channels'. Negative axes count from the end."""
    if is_op(node, "BatchNormalization"):
        shape = node.outputs[0].shape
        is_last = shape is not None and len(shape) == 2
        return _batch_norm(node) if channel_axis == 1 or is_last else None
    if not is_op(node, "Mul", "Div", "Add", "Sub"):
        return None
    left, right = node.inputs
    output = node.outputs[0]
    by = channel_constant(right, output, channel_axis)
    value = left
    if by is None and not is_op(node, "Div"):
        by, value = channel_constant(left, output, channel_axis), right
    if by is None or value is None or not _same_shape(value, output):
        return None
    one, zero = np.ones_like(by), np.zeros_like(by)
    if is_op(node, "Mul"):
        return Affine(value, by, zero)
    if is_op(node, "Div"):
        return Affine(value, one / by, zero) if np.all(by != 0) else None
    if is_op(node, "Add"):
        return Affine(value, one, by)
    return Affine(value, one, -by) if value is left else Affine(value, -one, by)


def channel_constant(value: ir.Value | None, output: ir.Value, channel_axis: int) -> Array | None:
    """The numbers of a constant that broadcasts to `output` and is the same along all its axes
    but the channels', one a channel, float64. Negative axes count from the end."""
    array = exact(value)
    if array is None or output.shape is None:
        return None
    rank = len(output.shape)
    if array.ndim > rank or not -rank <= channel_axis < rank:
        return None
    channels = output.shape[channel_axis]
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if not isinstance(channels, int) or full.size not in (1, full.shape[channel_axis]):
        return None
    if full.size not in (1, channels):
        return None
    return np.array(np.broadcast_to(full.reshape(-1), (channels,)))


def _batch_norm(node: ir.Node) -> Affine | None:
    """scale' = scale / sqrt(var + epsilon), shift' = shift - mean * scale' (Ioffe and Szegedy,
    2015)."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    attributes = attributes_of(node)
    numbers = [exact(value) for value in node.inputs[1:5]]
    value = node.inputs[0]
    if value is None or attributes.get("training_mode", 0) or any(n is None for n in numbers):
        return None
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in numbers)
    factor = scale / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))
    return Affine(value, factor, shift - mean * factor)


def _same_shape(value: ir.Value, output: ir.Value) -> bool:
    """Whether the constant does not broadcast the value. Sizes that are not known are equal
    where their names are."""
    return (
        value.shape is not None
        and value.shape == output.shape
        and all(
            size is not None and getattr(size, "value", size) is not None for size in value.shape
        )
    )
