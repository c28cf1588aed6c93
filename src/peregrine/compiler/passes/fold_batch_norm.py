"""BatchNormalization folded into the convolution or matrix product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from peregrine.compiler.passes.rewriting import (
    Fusion,
    Weights,
    add_sources,
    attributes_of,
    exact,
    input_at,
    is_op,
    only_reader,
)
from peregrine.types import Array


class FoldBatchNorm(Fusion):
    """Conv, ConvTranspose or Gemm with constant weights, and a BatchNormalization that alone
    reads it, become that operator with other weights.

    With s = scale / sqrt(var + epsilon), a channel's weights are multiplied by s and its bias b
    becomes (b - mean) * s + shift (Ioffe and Szegedy, 2015, equation 4). Computed in float64 and
    rounded once to the dtype of the weights; meant for graphs of float32."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        if not is_op(node, "BatchNormalization") or not _is_inference(node):
            return False
        value = node.inputs[0]
        producer = value.producer() if value is not None else None
        if producer is None or value is None or only_reader(value) is not node:
            return False
        folded = _fold(producer, [exact(constant) for constant in node.inputs[1:5]], node)
        if folded is None:
            return False
        _rewrite(producer, node, *folded, weights)
        return True


def _is_inference(node: ir.Node) -> bool:
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return not used and not attributes_of(node).get("training_mode", 0)


def _fold(
    node: ir.Node, statistics: list[Array | None], norm: ir.Node
) -> tuple[Array, Array] | None:
    """Weights and bias with the normalisation in them, float64."""
    if not is_op(node, "Conv", "ConvTranspose", "Gemm"):
        return None
    weight, given = exact(node.inputs[1]), input_at(node, 2)
    bias = np.zeros(1) if given is None else exact(given)
    if weight is None or bias is None:
        return None
    if any(array is None for array in statistics):
        return None
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in statistics)
    factor = scale / np.sqrt(variance + float(attributes_of(norm).get("epsilon", 1e-5)))
    attributes = attributes_of(node)
    if is_op(node, "Gemm"):
        if bias.ndim > 1 and bias.shape[0] != 1:
            return None  # a bias a row as well
        bias = bias.reshape(-1) * float(attributes.get("beta", 1.0))
        weight = weight * float(attributes.get("alpha", 1.0))
    scaled = _scale_channels(node, weight, factor)
    if scaled is None:
        return None
    return scaled, (bias - mean) * factor + shift


def _scale_channels(node: ir.Node, weight: Array, factor: Array) -> Array | None:
    """The weights of output channel o times factor[o]."""
    attributes = attributes_of(node)
    if is_op(node, "Gemm"):
        return weight * (factor[:, None] if attributes.get("transB", 0) else factor)
    if is_op(node, "Conv"):
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    # (C, O / group, ...): the first axis goes through the groups.
    group = int(attributes.get("group", 1))
    if weight.shape[1] * group != factor.size:
        return None
    grouped = weight.reshape(group, -1, *weight.shape[1:])
    spatial = [1] * (weight.ndim - 2)
    return (grouped * factor.reshape(group, 1, -1, *spatial)).reshape(weight.shape)


def _rewrite(node: ir.Node, norm: ir.Node, weight: Array, bias: Array, weights: Weights) -> None:
    output, was = norm.outputs[0], node.inputs[1]
    assert was is not None
    assert was.dtype is not None
    inputs = [
        node.inputs[0],
        weights.add(weight, f"{was.name}_folded", was.dtype),
        weights.add(bias, f"{node.name}_bias", was.dtype),
    ]
    kept = [a for a in node.attributes.values() if a.name not in ("alpha", "beta")]
    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        kept,
        outputs=[ir.Value(name=output.name, type=output.type, shape=output.shape)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    add_sources(made, [node, norm])
    graph = norm.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(
        graph, norm, [node, norm], [made], [output], list(made.outputs)
    )
