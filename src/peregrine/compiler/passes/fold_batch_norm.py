"""BatchNormalization, and scales and shifts by constants, folded into the weights beside them.

Both passes compute in float64 and round once to the dtype of the weights. They are meant for
graphs of float32: a shift that is added in float16 to a sum in float16 is not what this gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from peregrine.compiler.passes.activations import found_around
from peregrine.compiler.passes.affine import Affine, affine
from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    attributes_of,
    exact,
    input_at,
    is_op,
    note_sources,
    only_reader,
)
from peregrine.types import Array

_CHANNEL_AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}


class FoldBatchNorm(Fusion):
    """Conv, ConvTranspose, Gemm or MatMul with constant weights, and what scales and shifts its
    channels after it (see `affine`), become that operator with other weights, as long as
    nothing else reads what lies between. MatMul has no bias, and takes a scale alone. What is
    part of an activation (the + 3 of a hard swish) stays with it."""

    forwards: ClassVar[bool] = True  # the first of a chain is folded first

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        for axis in (1, -1):
            found = affine(node, axis)
            product = found.value.producer() if found is not None else None
            if found is None or product is None or not is_op(product, *_CHANNEL_AXES):
                continue
            if _CHANNEL_AXES[product.op_type] != axis or only_reader(found.value) is not node:
                continue
            folded = None if found_around(node) else _after(product, found)
            if folded is not None:
                _replace([product, node], product.inputs[0], folded, weights)
                return True
        return False


class FoldScaleIntoNext(Fusion):
    """What scales and shifts the channels of a value that one Conv alone reads goes into that
    Conv's weights: w' = w * scale, b' = b + sum of w * shift. Not a shift before a Conv with
    pads, whose zeros are not shifted, nor what is part of an activation."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        found = affine(node, 1)
        conv = only_reader(node.outputs[0]) if found is not None else None
        if found is None or not is_op(conv, "Conv") or conv is None:
            return False
        alone = conv.inputs[0] is node.outputs[0] and not found_around(node)
        folded = _before(conv, found) if alone else None
        if folded is None:
            return False
        _replace([node, conv], found.value, folded, weights)
        return True


@dataclass(frozen=True, slots=True)
class _Folded:
    """New weights of a product, float64; a Gemm's alpha and beta are in them."""

    weight: Array
    bias: Array | None


def _after(node: ir.Node, found: Affine) -> _Folded | None:
    """scale * (x * W + b) + shift."""
    product = _exact(node)
    if product is None:
        return None
    weight = _scale_channels(node, product.weight, found.scale)
    if weight is None:
        return None
    if is_op(node, "MatMul"):
        return _Folded(weight, None) if not found.shift.any() else None
    bias = np.zeros_like(found.shift) if product.bias is None else product.bias
    return _Folded(weight, bias * found.scale + found.shift)


def _before(node: ir.Node, found: Affine) -> _Folded | None:
    """(scale * x + shift) * W + b."""
    product = _exact(node)
    if product is None:
        return None
    attributes = attributes_of(node)
    unpadded = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    if found.shift.any() and not (unpadded and not any(attributes.get("pads", ()))):
        return None
    weight, group = product.weight, int(attributes.get("group", 1))
    outputs = weight.shape[0] // group
    spatial = (1,) * (weight.ndim - 2)

    def by_weight(numbers: Array) -> Array:
        """One a channel of the input -> as W has them: (O, C / group, 1, 1)."""
        rows = np.repeat(numbers.reshape(group, -1), outputs, axis=0)
        return rows.reshape(weight.shape[0], weight.shape[1], *spatial)

    if found.scale.size != weight.shape[1] * group:
        return None
    bias = product.bias
    if found.shift.any():
        added = (weight * by_weight(found.shift)).sum(axis=tuple(range(1, weight.ndim)))
        bias = added if bias is None else bias + added
    return _Folded(weight * by_weight(found.scale), bias)


def _exact(node: ir.Node) -> _Folded | None:
    """The constants of a product as they are."""
    weight, given = exact(node.inputs[1]), input_at(node, 2)
    bias = exact(given)
    if weight is None or (given is not None and bias is None):
        return None
    if is_op(node, "MatMul") and weight.ndim != 2:
        return None
    if is_op(node, "Gemm"):
        attributes = attributes_of(node)
        weight = weight * float(attributes.get("alpha", 1.0))
        if bias is not None:
            if bias.ndim > 1 and bias.shape[0] != 1:
                return None  # it differs from row to row
            bias = bias.reshape(-1) * float(attributes.get("beta", 1.0))
    return _Folded(weight, bias)


def _scale_channels(node: ir.Node, weight: Array, scale: Array) -> Array | None:
    """The weights of output channel o times scale[o]."""
    attributes = attributes_of(node)
    if is_op(node, "MatMul") or (is_op(node, "Gemm") and not attributes.get("transB", 0)):
        return weight * scale
    spatial = (1,) * (weight.ndim - 2)
    if not is_op(node, "ConvTranspose"):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    # (C, O / group, ...): the first axis goes through the groups.
    group = int(attributes.get("group", 1))
    if weight.shape[1] * group != scale.size:
        return None
    grouped = weight.reshape(group, -1, *weight.shape[1:])
    return (grouped * scale.reshape(group, 1, -1, *spatial)).reshape(weight.shape)


def _replace(pair: list[ir.Node], x: ir.Value | None, folded: _Folded, weights: Weights) -> None:
    """Write the product of a pair of nodes, with its new weights, in the place of both."""
    product = next(node for node in pair if is_op(node, *_CHANNEL_AXES))
    output, was = pair[-1].outputs[0], product.inputs[1]
    assert was is not None
    assert was.dtype is not None
    inputs = [x, weights.add(folded.weight, f"{was.name}_folded", was.dtype)]
    if folded.bias is not None:
        inputs.append(weights.add(folded.bias, f"{product.name}_bias", was.dtype))
    made = ir.Node(
        product.domain,
        product.op_type,
        inputs,
        [a for a in product.attributes.values() if a.name not in ("alpha", "beta")],
        outputs=[ir.Value(name=output.name, type=output.type, shape=output.shape)],
        name=product.name,
    )
    note_sources(made, pair)
    graph = pair[-1].graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(
        graph, pair[-1], pair, [made], [output], list(made.outputs)
    )
