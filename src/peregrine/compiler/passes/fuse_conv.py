"""Conv with what follows it: bias, residual sum, activation."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from peregrine.compiler.operators import Activation, Fused, Window
from peregrine.compiler.passes import activations
from peregrine.compiler.passes.affine import channel_constant
from peregrine.compiler.passes.rewriting import (
    FLOATS,
    Fusion,
    Weights,
    attributes_of,
    constant,
    exact,
    input_at,
    is_op,
    only_reader,
    shape_of,
    write,
)
from peregrine.compiler.passes.windows import window_of
from peregrine.types import Array


class FuseConv(Fusion):
    """Each 2-D Conv with constant weights becomes a `peregrine.Conv`.

    It takes in sums with a constant a channel (its bias), then one sum with a tensor of its own
    shape (the residual), then an activation, as long as nothing else reads what lies between and
    it is no output of the graph. Where both terms of a sum are convolutions, the later one takes
    the other as its residual, since that is there by then."""

    def fuse(self, node: ir.Node, weights: Weights) -> bool:
        window = _fusible(node)
        if window is None:
            return False
        tail = follow(node, channel_axis=1)
        bias = input_at(node, 2)
        if tail.bias is not None:
            bias = add_bias(weights, node, bias, tail.bias)
        group = int(attributes_of(node).get("group", 1))
        write(
            weights,
            Fused.CONV,
            [*node.inputs[:2], bias, tail.residual],
            {**window.attributes(), "group": group, **tail.activation.attributes()},
            tail.nodes,
        )
        return True


def _fusible(node: ir.Node) -> Window | None:
    """The geometry of a Conv that can be fused."""
    if not is_op(node, "Conv") or constant(node.inputs[1]) is None:
        return None
    bias = input_at(node, 2)
    if bias is not None and constant(bias) is None:
        return None
    shape, output = shape_of(node.inputs[1]), node.outputs[0]
    if shape is None or len(shape) != 4 or output.dtype not in FLOATS:
        return None
    return window_of(node, (shape[2], shape[3]))


@dataclass
class Tail:
    """What follows a matrix product or a convolution and can be done as it is written."""

    nodes: list[ir.Node]
    bias: Array | None = None
    """What is added to each channel, float64."""
    residual: ir.Value | None = None
    activation: Activation = field(default_factory=Activation)

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def follow(node: ir.Node, channel_axis: int, *, residual: ir.Value | None = None) -> Tail:
    """Collect what can be fused into `node`, which has one already where `residual` is given."""
    tail = Tail([node], residual=residual)
    while (found := activations.find(tail.output)) is None:
        add = only_reader(tail.output)
        if add is None or not is_op(add, "Add") or tail.residual is not None:
            break
        other = add.inputs[1] if add.inputs[0] is tail.output else add.inputs[0]
        bias = channel_constant(other, tail.output, channel_axis)
        if bias is not None:
            tail.bias = bias if tail.bias is None else tail.bias + bias
        elif other is not None and _is_alike(other, tail.output):
            tail.residual = other
        else:
            break
        tail.nodes.append(add)
    if found is not None:
        tail.activation = found.activation
        tail.nodes.extend(found.nodes)
    return tail


def add_bias(weights: Weights, node: ir.Node, bias: ir.Value | None, added: Array) -> ir.Value:
    """A bias with more added to it."""
    dtype = node.outputs[0].dtype
    assert dtype is not None
    was = exact(bias)
    return weights.add(added if was is None else was + added, f"{node.name}_bias", dtype)


def _is_alike(value: ir.Value, output: ir.Value) -> bool:
    """Whether it has the same dtype and shape, without broadcasting."""
    shape = shape_of(output)
    return shape is not None and shape_of(value) == shape and value.dtype == output.dtype
