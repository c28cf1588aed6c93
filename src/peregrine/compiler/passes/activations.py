"""Element-wise functions found in a graph, whatever the operators they are spelled with.

A single operator is read by name. A composition (x * sigmoid(x), GELU by erf) is found by what it
computes: the nodes that depend on one value and on lone numbers only, and that leave one value,
are a function of one variable, which is computed in float64 over the range of the type and
compared with the functions that `ActivationKind` names. So the order of factors, a division in
place of a product or a square by Pow make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from peregrine.compiler.operators import Activation, ActivationKind
from peregrine.compiler.passes.rewriting import (
    attributes_of,
    input_at,
    is_op,
    only_reader,
    scalar,
)
from peregrine.types import Array

_K = ActivationKind
_MOST_NODES = 10
"""GELU by tanh, with its cube spelled by products, has nine."""


@dataclass(frozen=True, slots=True)
class Found:
    """An activation of a value, and the nodes that compute it, in their order."""

    activation: Activation
    nodes: tuple[ir.Node, ...]


def find(value: ir.Value) -> Found | None:
    """The activation that everything which reads `value` amounts to, where it is one."""
    reader = only_reader(value)
    if reader is not None:
        activation = single(reader)
        if activation is not None:
            return Found(activation, (reader,))
    return _composed(value)


def found_around(node: ir.Node) -> bool:
    """Whether it is one of the nodes of a composed activation."""
    if not is_op(node, *_ELEMENTWISE):
        return False
    seen: dict[ir.Value, None] = dict.fromkeys(value for value in node.inputs if value is not None)
    for value in (open_values := list(seen)):
        found = find(value) if not value.is_initializer() else None
        if found is not None and node in found.nodes:
            return True
        producer = value.producer()
        if is_op(producer, *_ELEMENTWISE) and producer is not None and len(seen) <= 2 * _MOST_NODES:
            new = [v for v in producer.inputs if v is not None and v not in seen]
            seen.update(dict.fromkeys(new))
            open_values.extend(new)
    return False


def single(node: ir.Node) -> Activation | None:
    """The activation that an operator is by itself."""
    if not is_op(node, *_SINGLE) or len(node.outputs) != 1:
        return None
    return _SINGLE[node.op_type](node)


def _clip(node: ir.Node) -> Activation | None:
    low, high = -math.inf, math.inf
    if input_at(node, 1) is not None:
        bound = scalar(input_at(node, 1))
        if bound is None:
            return None
        low = bound
    if input_at(node, 2) is not None:
        bound = scalar(input_at(node, 2))
        if bound is None:
            return None
        high = bound
    if high == math.inf:
        return Activation(_K.RELU) if low == 0 else None
    # An infinity is no JSON.
    return Activation(_K.CLIP, low, high) if low > -math.inf else None


def _leaky_relu(node: ir.Node) -> Activation:
    return Activation(_K.LEAKY_RELU, float(attributes_of(node).get("alpha", 0.01)))


def _hard_sigmoid(node: ir.Node) -> Activation:
    attributes = attributes_of(node)
    return Activation(
        _K.HARD_SIGMOID,
        float(attributes.get("alpha", 0.2)),
        float(attributes.get("beta", 0.5)),
    )


def _gelu(node: ir.Node) -> Activation:
    tanh = attributes_of(node).get("approximate", "none") == "tanh"
    return Activation(_K.GELU_TANH if tanh else _K.GELU)


def _swish(node: ir.Node) -> Activation | None:
    return Activation(_K.SILU) if attributes_of(node).get("alpha", 1.0) == 1.0 else None


_SINGLE: dict[str, Callable[[ir.Node], Activation | None]] = {
    "Relu": lambda node: Activation(_K.RELU),
    "Sigmoid": lambda node: Activation(_K.SIGMOID),
    "Tanh": lambda node: Activation(_K.TANH),
    "HardSwish": lambda node: Activation(_K.HARD_SWISH),
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Swish": _swish,
}


def _erf(x: Array) -> Array:
    return np.array([math.erf(element) for element in x])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def _pow(x: Array, exponent: Array) -> Array:
    return np.asarray(np.power(x, exponent))


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Pow": _pow,
    "Min": np.minimum,
    "Max": np.maximum,
    "Erf": _erf,
    "Tanh": np.tanh,
    "Sigmoid": _sigmoid,
    "Relu": lambda x: np.maximum(x, 0),
    "Clip": lambda x, low=-math.inf, high=math.inf: np.clip(x, low, high),
}

_FUNCTIONS: dict[Activation, tuple[str, Callable[[Array], Array]]] = {
    Activation(_K.SILU): ("Sigmoid", lambda x: x * _sigmoid(x)),
    Activation(_K.HARD_SIGMOID, 1 / 6, 0.5): ("", lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    Activation(_K.HARD_SWISH): ("", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    Activation(_K.GELU): ("Erf", lambda x: x / 2 * (1 + _erf(x / math.sqrt(2)))),
    Activation(_K.GELU_TANH): (
        "Tanh",
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
}
"""What is composed, and the operator without which it is not: GELU and its approximation are as
near to one another as rounded constants are to exact ones."""

_TOLERANCES = {
    ir.DataType.DOUBLE: 1e-6,
    ir.DataType.FLOAT: 1e-6,
    ir.DataType.FLOAT16: 2e-3,
    ir.DataType.BFLOAT16: 1e-2,
}
"""Of |y| against max(1, |x|): what rounding sqrt(2) and 0.044715 to the type makes of them."""
_MAGNITUDES = np.concatenate([np.logspace(-3, 4, 60), np.linspace(0.05, 12, 120)])
_POINTS = np.concatenate([-_MAGNITUDES, [0.0], _MAGNITUDES])


def _composed(value: ir.Value) -> Found | None:
    """Take in one reader after another until what they leave is a function we know."""
    producer, dtype = value.producer(), value.dtype
    if producer is None or value.is_graph_output() or dtype not in _TOLERANCES:
        return None
    rank = len(value.shape) if value.shape is not None else 0
    results: dict[ir.Value, Array] = {value: _POINTS}
    nodes: list[ir.Node] = []
    open_values = [value]
    while open_values:
        for node in dict.fromkeys(use.node for use in open_values.pop(0).uses()):
            if node in nodes or node.graph is not producer.graph or len(nodes) == _MOST_NODES:
                continue
            result = _evaluate(node, results, rank)
            if result is None:
                continue
            results[node.outputs[0]] = result
            nodes.append(node)
            open_values = [*results]
            activation = _recognise(node.outputs[0], nodes, results, _TOLERANCES[dtype])
            if activation is not None:
                return Found(activation, tuple(nodes))
            break
    return None


def _evaluate(node: ir.Node, results: dict[ir.Value, Array], rank: int) -> Array | None:
    """What an element-wise node makes of values known so far and of lone numbers, of at most
    `rank` dimensions: more would add some to the result."""
    if not is_op(node, *_ELEMENTWISE) and not is_op(node, "HardSigmoid"):
        return None
    arguments: list[Array] = []
    for place, value in enumerate(node.inputs):
        if value is None:
            if not is_op(node, "Clip"):
                return None
            arguments.append(np.array(-math.inf if place == 1 else math.inf))
        elif value in results:
            arguments.append(results[value])
        else:
            number = scalar(value)
            if number is None or value.shape is None or len(value.shape) > rank:
                return None
            arguments.append(np.array(number))
    with np.errstate(all="ignore"):
        if node.op_type == "HardSigmoid":
            activation = _hard_sigmoid(node)
            return np.clip(activation.alpha * arguments[0] + activation.beta, 0, 1)
        return _ELEMENTWISE[node.op_type](*arguments)


def _recognise(
    last: ir.Value, nodes: list[ir.Node], results: dict[ir.Value, Array], tolerance: float
) -> Activation | None:
    """The function that `last` is, if nothing outside `nodes` reads what came before it."""
    for value in results:
        if value is last:
            continue
        if value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
            return None
    operators = {node.op_type for node in nodes}
    scale = np.maximum(1, np.abs(_POINTS))
    for activation, (needed, function) in _FUNCTIONS.items():
        if needed and needed not in operators:
            continue
        error = np.abs(results[last] - function(_POINTS)) / scale
        if np.all(error <= tolerance):  # not where one is NaN
            return activation
    return None
