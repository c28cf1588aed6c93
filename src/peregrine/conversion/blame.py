"""Which nodes cause the error of a converted graph, and why.

Trying N nodes one by one would need N conversions, seconds each. Instead:

1. One run for each of a few calibration items holds the fp32 graph and its conversion side by
   side, cut at the tensors that both have (`probe_tensors.side_by_side`), so that every converted
   node reads fp32 values. What differs at a node's output is its own loss: the *local error*.
2. A local error says little: a network forgives 10% in one place and nothing in another. So each
   node's loss is added to its fp32 output, everything else in fp32, and the outputs are compared
   (`probe_tensors.Sensitivity`): the *effect*, what converting this node alone does to the
   outputs. That is one fp32 inference a node, no conversion. It starts with the largest local
   errors and stops when its time is up; what it did not come to is ranked by local error, last.
3. Reasons come from the fp32 values of the node's own tensors (`reasons`).

Effects of single nodes add up only roughly, so the ranking is a proposal; `repair` proves it.
Signal-to-noise ratios per tensor, as onnxruntime.quantization.qdq_loss_debug gives them, compare
runs in which every error before a node counts too; its names of tensors and its way of pairing
them are what the cut relies on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from peregrine.conversion.calibration import Calibration
from peregrine.conversion.probe_tensors import (
    CONVERTED,
    Runner,
    Sensitivity,
    Wiring,
    float_pairs,
    merged_nodes,
    side_by_side,
)
from peregrine.conversion.reasons import Facts, Reason, Scale, Seen, find
from peregrine.discrepancy import comparable, is_exact, measure
from peregrine.model.graphs import Graph
from peregrine.model.onnx_file import graphs
from peregrine.results import KeptLayer
from peregrine.types import Array

ITEMS = 4
"""Calibration items that local errors and reasons come from."""
_EFFECT_ITEMS = 2
EFFECTS_S = 60.0
"""Seconds for the effects, at most."""
_CONVOLUTIONS = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization")
_LEAST_SQUARES = 1e-25
"""A sum of squares below which those of errors may vanish in float32."""
_ROUNDING = 1e-6
"""A local error below it is fp32's own."""


@dataclass(frozen=True, slots=True)
class Blamed:
    """A node that loses something by being converted."""

    node: str
    operator: str
    reason: Reason
    error: float
    """Scaled error of its own output from exact inputs; Inf where that is not finite. The worst of
    its outputs and of the items."""
    effect: float
    """Scaled error that this brings to the graph's worst output; NaN where time was up."""
    partners: tuple[str, ...] = ()
    """The nodes at the other ends of the tensor that the reason names: as long as they are
    converted, that tensor may be too."""

    def kept(self) -> KeptLayer:
        """The node as a report names it."""
        return KeptLayer(self.node, self.operator, str(self.reason), self.error)


def rank(
    prepared: onnx.ModelProto,
    graph: Graph,
    calibration: Calibration,
    convert_with: Callable[[frozenset[str]], onnx.ModelProto],
    items: int = ITEMS,
    *,
    seconds: float = EFFECTS_S,
) -> list[Blamed]:
    """The converted nodes that lose something, the worst first. The module says how.

    Args:
        prepared: the fp32 graph.
        graph: what it is converted to, for the reasons.
        calibration: real inputs.
        convert_with: the converted graph that leaves these nodes in fp32. Its nodes must compute
            in fp32 between Q/DQ pairs or roundings where ONNX Runtime does not optimise it.
        items: calibration items to look at, fewer where they take longer than `seconds`.
        seconds: for the effects, and for the items after the first.

    Raises:
        Unsupported: ONNX Runtime does not run the converted graph, or the two do not fit into
            one message of 2 GiB.
    """
    converted = convert_with(frozenset())
    wiring = Wiring.of(prepared)
    merged = merged_nodes(prepared, converted)
    local = _local(prepared, converted, wiring, merged, calibration, items, seconds)
    effects = _effects(prepared, calibration, local, seconds)
    scales = _scales(converted)
    made = Wiring.of(converted)

    def error(keep: frozenset[str]) -> float:
        """Of the graph that leaves `keep` in fp32."""
        want, got = Runner(prepared, optimised=False), Runner(convert_with(keep), optimised=False)
        feeds = calibration.items(_EFFECT_ITEMS)
        return float(np.mean([worst_error(want.run(item), got.run(item)) for item in feeds]))

    blamed: list[Blamed] = []
    for name, loss in local.losses.items():
        node = wiring.nodes[name]
        outputs = [*node.output, *(tensor for tensor, owner in merged.items() if owner == name)]
        seen = _seen(node, outputs, wiring, local.facts, scales)
        reason = find(graph, seen, loss.error)
        partners = tuple(
            other for other in _partners(node, reason.tensor, wiring, made) if other in local.losses
        )
        effect = effects.get(name, math.nan)
        whole = Blamed(name, node.op_type, reason, loss.error, effect, partners)
        if inner := _inside(node, converted):
            blamed += _blame_inside(whole, inner, error, seconds)
        else:
            blamed.append(whole)
    return sorted(blamed, key=_badness, reverse=True)


def _inside(node: onnx.NodeProto, converted: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes in the bodies of If, Loop or Scan that were converted."""
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    if not bodies:
        return []
    after = {n.name: n.op_type for graph in graphs(converted.graph) for n in graph.node}
    inner = [n for body in bodies for graph in graphs(body) for n in graph.node]
    return [n for n in inner if after.get(n.name) != n.op_type]


def _blame_inside(
    whole: Blamed,
    inner: Sequence[onnx.NodeProto],
    error: Callable[[frozenset[str]], float],
    seconds: float,
) -> list[Blamed]:
    """Blame the nodes of a body, which cannot be seen from outside: the effect of each is by how
    much the outputs come nearer when it alone is left in fp32. A conversion a node."""
    began = time.monotonic()
    all_converted = error(frozenset())
    words = f"it is inside {whole.node}, which as a whole is off by {whole.error:.2g} of its size"
    found = []
    for node in inner:
        effect = math.nan
        if time.monotonic() - began < seconds:
            effect = max(0.0, all_converted - error(frozenset({node.name})))
        reason = Reason("coarse", words)
        found.append(Blamed(node.name, node.op_type, reason, whole.error, effect))
    return found


def _badness(blamed: Blamed) -> tuple[bool, float, float]:
    known = not math.isnan(blamed.effect)
    return known, blamed.effect if known else 0.0, blamed.error


@dataclass(slots=True)
class _Loss:
    """Of one node: its worst local error, and what to add to its outputs, item by item."""

    error: float
    deltas: list[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class _Local:
    losses: dict[str, _Loss]
    facts: dict[str, Facts]


def _local(
    prepared: onnx.ModelProto,
    converted: onnx.ModelProto,
    wiring: Wiring,
    merged: Mapping[str, str],
    calibration: Calibration,
    items: int,
    seconds: float,
) -> _Local:
    began = time.monotonic()
    runner = Runner(side_by_side(prepared, converted), optimised=False)
    losses: dict[str, _Loss] = {}
    facts: dict[str, Facts] = {}
    for number, feeds in enumerate(calibration.items(items)):
        if number and time.monotonic() - began > seconds:
            break
        values = {**runner.run(feeds)}
        deltas: dict[str, dict[str, Array]] = {}
        for tensor, exact, twin in float_pairs(values):
            if tensor not in wiring.maker:
                continue  # an input
            node = merged.get(tensor, wiring.maker[tensor].name)
            error = _scaled_error(exact, twin)
            if error > _ROUNDING:
                loss = losses.setdefault(node, _Loss(0.0, []))
                loss.error = max(loss.error, error)
                with np.errstate(invalid="ignore", over="ignore"):
                    deltas.setdefault(node, {})[tensor] = np.asarray(twin - exact)
        if number < _EFFECT_ITEMS:
            for name, arrays in deltas.items():
                losses[name].deltas.append(arrays)
        for tensor, value in {**feeds, **values}.items():
            if not tensor.startswith(CONVERTED) and _is_float(value):
                facts.setdefault(tensor, Facts(_axis(tensor, value, wiring))).add(value)
    for tensor, constant in wiring.constants.items():
        if constant.data_type == onnx.TensorProto.FLOAT and constant.dims:
            facts[tensor] = Facts()
            facts[tensor].add(onnx.numpy_helper.to_array(constant))
    return _Local(losses, facts)


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size > 0


def _axis(tensor: str, value: Array, wiring: Wiring) -> int | None:
    """The dimension of channels: the second of images and of what convolutions touch, else the
    last."""
    if value.ndim < 2:
        return None
    makers = (wiring.maker[tensor],) if tensor in wiring.maker else ()
    touching = {node.op_type for node in (*makers, *wiring.readers.get(tensor, ()))}
    return 1 if value.ndim > 3 or touching.intersection(_CONVOLUTIONS) else -1


def _effects(
    prepared: onnx.ModelProto, calibration: Calibration, local: _Local, seconds: float
) -> dict[str, float]:
    """Node -> mean scaled error of the worst output when this node alone loses."""
    tensors = {t for loss in local.losses.values() for arrays in loss.deltas for t in arrays}
    began = time.monotonic()
    probe = Sensitivity(prepared, sorted(tensors))
    feeds = list(calibration.items(_EFFECT_ITEMS))
    exact = [probe.run(item, {}) for item in feeds]
    effects = {}
    for name, loss in sorted(local.losses.items(), key=lambda entry: -entry[1].error):
        if time.monotonic() - began > seconds:
            break
        errors = [
            worst_error(want, probe.run(item, deltas))
            for item, want, deltas in zip(feeds, exact, loss.deltas, strict=False)
        ]
        if errors:
            effects[name] = float(np.mean(errors))
    return effects


def worst_error(exact: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """Scaled error of the worst output, Inf where one is not finite, has another shape, or is
    exact by its dtype (a class, a mask) and differs."""
    worst = 0.0
    for name, want in exact.items():
        if not isinstance(want, np.ndarray) or not want.size:
            continue
        if not comparable(want, got[name]):
            return math.inf
        if is_exact(want.dtype):
            found = measure(want, got[name])
            worst = max(worst, found.unequal / found.size)
        else:
            worst = max(worst, _scaled_error(want, got[name]))
    return worst


def _scaled_error(exact: Array, got: Array) -> float:
    """Scaled error, Inf where `got` is not finite and `exact` is. In float32 as far as that
    holds the squares: a ranking takes thousands of these, and `measure` five times as long."""
    if exact.dtype == got.dtype == np.float32:
        with np.errstate(invalid="ignore", over="ignore"):
            error = (got - exact).ravel()
            lost, size = float(error @ error), float(exact.ravel() @ exact.ravel())
        if math.isfinite(lost) and _LEAST_SQUARES < size < math.inf:
            return math.sqrt(lost / size)
    found = measure(exact, got)
    return found.scaled_error if found.sound else math.inf


def _scales(converted: onnx.ModelProto) -> dict[str, Scale]:
    """Tensor -> the range that its QuantizeLinear holds, for fixed scales of one number."""
    wiring = Wiring.of(converted)
    found = {}
    for node in converted.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        values = [wiring.constants.get(name) for name in node.input[1:3]]
        if len(values) < 2 or values[0] is None or values[1] is None:
            continue
        point = onnx.numpy_helper.to_array(values[1])
        scale = onnx.numpy_helper.to_array(values[0])
        if scale.size != 1 or point.dtype not in (np.int8, np.uint8):
            continue
        limits, zero = np.iinfo(point.dtype), int(point.ravel()[0])
        step = float(scale.ravel()[0])
        name = node.input[0].removesuffix("_QuantizeLinear_Input")
        found[name] = Scale((limits.min - zero) * step, (limits.max - zero) * step)
    return found


def _seen(
    node: onnx.NodeProto,
    outputs: Sequence[str],
    wiring: Wiring,
    facts: Mapping[str, Facts],
    scales: Mapping[str, Scale],
) -> Sequence[Seen]:
    read = [n for n in dict.fromkeys(wiring.data(node)) if n in facts]
    weights = [n for n in node.input if n in wiring.constants and n in facts]
    return [
        *(Seen(n, "its input", facts[n], scales.get(n)) for n in read),
        *(Seen(n, "its weights", facts[n]) for n in weights),
        *(Seen(n, "its output", facts[n], scales.get(n)) for n in outputs if n in facts),
    ]


def _partners(
    node: onnx.NodeProto, tensor: str, wiring: Wiring, converted: Wiring
) -> tuple[str, ...]:
    """Other nodes that touch `tensor`. A node that the conversion merged into its neighbour
    (a Relu that became the lower end of a range) stands for that neighbour too."""
    found: dict[str, None] = {}

    def reach(name: str, depth: int = 4) -> None:
        maker = wiring.maker.get(name)
        if maker is not None and maker.name not in found:
            found[maker.name] = None
            if maker.name not in converted.nodes and depth:
                for source in wiring.data(maker):
                    reach(source, depth - 1)

    if tensor and tensor not in wiring.constants:
        reach(tensor)
        found |= dict.fromkeys(reader.name for reader in wiring.readers.get(tensor, ()))
    found.pop(node.name, None)
    return tuple(found)
