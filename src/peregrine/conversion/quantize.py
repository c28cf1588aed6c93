"""Static INT8: Q/DQ graphs by onnxruntime.quantization, in x86's taste and in TensorRT's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.conversion import ranges, saturation
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import GRAPH_FILE, Job, Made
from peregrine.conversion.quiet import quiet
from peregrine.conversion.ranges import CALIBRATORS, Bounds
from peregrine.errors import OptionError, Unsupported
from peregrine.model.graphs import Graph
from peregrine.results import CalibratorTrial

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose products are worth integers."""
HAVE_WEIGHTS = (*WEIGHTED, "LSTM", "GRU", "RNN", "Gather")
_BETWEEN = ("Add", "Mul", "Concat", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Resize")
"""Operators with integer kernels that pay only between integers: a quantised Add after a
LayerNormalization costs accuracy and two more conversions."""
_CARRIERS = (
    *("AveragePool", "Clip", "Flatten", "MaxPool", "Pad", "Relu", "Reshape", "Slice", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)
"""Operators that keep their input's scale; onnxruntime converts them only behind integers."""
JUDGED_ITEMS = 32
"""Calibration items that calibrators are compared on, at most."""
_NEAR = 1.05
"""Calibrators whose errors lie within this factor are told apart by agreement."""


def make_static(job: Job) -> Made:
    """Write the U8S8 or S8S8 graph of `job`, with the calibrator that is named or the best.

    Raises:
        Unsupported: nothing in the graph can be quantised, or ONNX Runtime cannot run it.
    """
    import onnx
    import onnxruntime

    _refuse_empty(job)
    calibration = _calibration(job)
    names = (job.calibrator,) if job.calibrator else CALIBRATORS
    found = collect_ranges(job, names)
    tried: list[CalibratorTrial] = []
    graphs: dict[str, onnx.ModelProto] = {}
    for name, bounds in found.items():
        graphs[name] = quantize(job.prepared, bounds, job.graph, job.keep)
    if len(graphs) > 1:
        fused = fusing_is_exact(job.graph)
        reference = _run(job.prepared, calibration)
        tried = [
            judge(name, reference, _run(graph, calibration, fused), job.model.classifier)
            for name, graph in graphs.items()
        ]
        chosen = choose(tried)
    else:
        (chosen,) = graphs
    made = graphs[chosen]
    job.out.mkdir(parents=True, exist_ok=True)
    onnx.save(made, job.out / GRAPH_FILE)
    converted, left = count(job.prepared, made)
    return Made(
        by=f"onnxruntime.quantization {onnxruntime.__version__}",
        calibrator=chosen,
        tried=tuple(tried),
        converted=converted,
        left=left,
        notes=(saturation.NOTE,) if saturation.reduces_range(job.graph) else (),
    )


def collect_ranges(job: Job, calibrators: Sequence[str] = CALIBRATORS) -> dict[str, Bounds]:
    """Calibrator -> bounds of every activation that `quantize` may ask for, whatever it keeps.

    Raises:
        OptionError: an unknown calibrator.
        Unsupported: ONNX Runtime cannot run the graph, or a value is not finite.
    """
    unknown = set(calibrators) - set(CALIBRATORS)
    if unknown:
        raise OptionError(
            f"There is no calibrator {unknown.pop()!r}.",
            fix=f"Use one of {', '.join(CALIBRATORS)}.",
        )

    def used(bounds: Bounds) -> Collection[str]:
        quantizer = _quantizer(job.prepared, bounds, job.graph, frozenset())
        with quiet():
            quantizer.quantize_model()
        return [name for name in quantizer.quantized_value_map if name in bounds]

    return ranges.collect(job.prepared, _calibration(job), operators(job.graph), calibrators, used)


def quantize(
    prepared: onnx.ModelProto, bounds: Bounds, graph: Graph, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """The Q/DQ graph from ranges at hand, the nodes named in `keep` in fp32; about a second.

    Raises:
        Unsupported: onnxruntime's quantiser fails on the graph, with its reason.
    """
    quantizer = _quantizer(prepared, bounds, graph, keep)
    try:
        with quiet():
            quantizer.quantize_model()
    except Exception as error:  # the quantiser raises whatever its assertions are
        raise Unsupported(
            "onnxruntime.quantization cannot quantise the graph.",
            why=f"{type(error).__name__}: {error}"[:600],
        ) from error
    return _sorted(quantizer.model.model)


def _sorted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes after what they read, also inside bodies: the quantiser appends its own at the end."""
    import onnx_ir

    model = onnx_ir.from_proto(proto)
    model.graph.sort()
    return onnx_ir.to_proto(model)


def operators(graph: Graph) -> tuple[str, ...]:
    """The operators of which nodes are quantised, where the neighbours allow it."""
    return (*WEIGHTED, *_BETWEEN, *_CARRIERS) if graph is Graph.U8S8 else WEIGHTED


def _quantizer(
    prepared: onnx.ModelProto, bounds: Bounds, graph: Graph, keep: Collection[str]
) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    proto = onnx.ModelProto()
    proto.CopyFrom(prepared)  # the quantiser changes it in place
    _unshare(proto)
    signed = graph is Graph.S8S8
    options: dict[str, Any] = {"ActivationSymmetric": signed, "WeightSymmetric": True}
    if signed:
        # TensorRT wants a pair of its own before each consumer, fp32 biases, and no pair
        # between a product and what it fuses with.
        options |= {
            "DedicatedQDQPair": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        }
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in bounds.items()
    }
    with quiet():
        return QDQQuantizer(
            proto,
            True,  # per channel
            saturation.reduces_range(graph),
            QuantType.QInt8,
            QuantType.QInt8 if signed else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            [],
            sorted({*keep, *_excluded(prepared, keep)}),
            list(operators(graph)),
            options,
        )


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a product's weights along which its output's channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return rank - 1


def _unshare(proto: onnx.ModelProto) -> None:
    """Give products whose channels lie along another axis of the same weights, or that share
    them with another operator (a tied embedding), a copy: the quantiser would scale the tensor
    along one axis for all, and ONNX Runtime's kernels then take the scales for the other's."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    first: dict[str, int | None] = {}
    for node in proto.graph.node:
        product = node.op_type in WEIGHTED
        for name in node.input:
            if name in weights and not (product and name == node.input[1]):
                first[name] = None
    copies = set()
    for node in proto.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in weights:
            continue
        name = node.input[1]
        axis = channel_axis(node, len(weights[name].dims))
        if first.setdefault(name, axis) == axis:
            continue
        node.input[1] = f"{name}//axis{axis}"
        if node.input[1] not in copies:
            copies.add(node.input[1])
            own = proto.graph.initializer.add()
            own.CopyFrom(weights[name])
            own.name = node.input[1]


def _excluded(prepared: onnx.ModelProto, keep: Collection[str]) -> set[str]:
    """Nodes that stay in fp32 by rule: products of two activations, and operators of
    `_BETWEEN` with an input that is not in integers, or sums and products with a constant."""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    integers: set[str] = set()
    out = set()
    for node in prepared.graph.node:
        if node.name in keep:
            continue
        activations = [name for name in node.input if name and name not in constants]
        if node.op_type in WEIGHTED:
            fits = len(activations) == 1 and activations[0] == node.input[0]
        elif node.op_type in _BETWEEN:
            fits = bool(activations) and integers.issuperset(activations)
            # A bias or a factor computes as fast in fp32 on the way out of a product, and better.
            fits = fits and (node.op_type not in ("Add", "Mul") or len(activations) == 2)
        elif node.op_type in _CARRIERS:
            fits = bool(activations) and activations[0] in integers
        else:
            fits = False
        if fits:
            integers.update(node.output)
        elif node.op_type in WEIGHTED + _BETWEEN:
            out.add(node.name)
    return out


def count(
    prepared: onnx.ModelProto, made: onnx.ModelProto
) -> tuple[dict[str, int], dict[str, int]]:
    """Operator -> nodes that compute in 8 bits, and -> nodes with weights that do not.

    A product computes in 8 bits where it reads both factors from Q/DQ, any other operator where
    it also hands on to Q/DQ alone.
    """
    dequantized = {
        name
        for node in made.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    loose = {value.name for value in made.graph.output}
    loose |= {n for node in made.graph.node if node.op_type != "QuantizeLinear" for n in node.input}
    there = {node.name for node in prepared.graph.node}
    constants = {"", *(tensor.name for tensor in made.graph.initializer)}
    converted: Counter[str] = Counter()
    done = set()
    for node in made.graph.node:
        if node.name not in there:
            continue
        if node.op_type in WEIGHTED:
            fits = dequantized.issuperset(node.input[:2])
        else:
            fits = (
                node.op_type in (*_BETWEEN, *_CARRIERS)
                and node.input[0] in dequantized
                and constants.issuperset(set(node.input) - dequantized)
                and loose.isdisjoint(node.output)
            )
        if fits:
            converted[node.op_type] += 1
            done.add(node.name)
    left = Counter(node.op_type for node in weighted_nodes(prepared) if node.name not in done)
    return dict(sorted(converted.items())), dict(sorted(left.items()))


def weighted_nodes(prepared: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes with constant weights of floating point."""
    import onnx

    constants = {
        t.name for t in prepared.graph.initializer if t.data_type == onnx.TensorProto.FLOAT
    }
    for node in prepared.graph.node:
        if node.op_type in HAVE_WEIGHTS and not constants.isdisjoint(node.input[:2]):
            yield node


def _refuse_empty(job: Job) -> None:
    products = [n for n in weighted_nodes(job.prepared) if n.op_type in WEIGHTED]
    if not products:
        inner = any(a.HasField("g") for n in job.prepared.graph.node for a in n.attribute)
        raise Unsupported(
            f"{job.model.name} has nothing to quantise with fixed ranges.",
            why="All of its convolutions and matrix products lie in branches of If or bodies of "
            "Loop, which the quantiser does not enter."
            if inner
            else f"It has no {', '.join(WEIGHTED)} with constant weights.",
        )


def _calibration(job: Job) -> Calibration:
    if job.calibration is None or not len(job.calibration):
        raise Unsupported(f"{job.graph} needs calibration data.", fix="--calibration DIR_OR_NPZ")
    return job.calibration


def fusing_is_exact(graph: Graph) -> bool:
    """Whether ONNX Runtime's integer kernels compute here what `graph` says: 8-bit weights that
    are another device's saturate on some CPUs, so that it is judged with its Q/DQ pairs in fp32."""
    return saturation.reduces_range(graph) or not saturation.saturates()


def _run(
    proto: onnx.ModelProto, calibration: Calibration, fused: bool = True
) -> list[list[np.ndarray[Any, Any]]]:
    session = ranges.open_session(proto, optimized=fused)
    return [session.run(None, feeds) for feeds in calibration.items(JUDGED_ITEMS)]


def judge(
    calibrator: str,
    reference: Sequence[Sequence[np.ndarray[Any, Any]]],
    outputs: Sequence[Sequence[np.ndarray[Any, Any]]],
    classifier: bool,
) -> CalibratorTrial:
    """A calibrator's graph against fp32, item by item, each a list of outputs."""
    errors = np.array(
        [
            [_scaled_error(want, got) for want, got in zip(item, made, strict=True)]
            for item, made in zip(reference, outputs, strict=True)
        ]
    )
    agreement = None
    if classifier:
        same = [
            np.array_equal(np.argmax(item[0], -1), np.argmax(made[0], -1))
            for item, made in zip(reference, outputs, strict=True)
        ]
        agreement = float(np.mean(same))
    return CalibratorTrial(calibrator, float(errors.mean(axis=0).max()), agreement)


def _scaled_error(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    """||got - want|| / ||want||, Euclidean norms; infinite where it holds NaN."""
    size = float(np.linalg.norm(want.astype(np.float64)))
    error = float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)))
    if not np.isfinite(error):
        return float("inf")
    return error / size if size else float(error > 0)


def choose(tried: Sequence[CalibratorTrial]) -> str:
    """The calibrator of least error; of those near it, the one that agrees most often."""
    least = min(trial.scaled_error for trial in tried)
    near = [trial for trial in tried if trial.scaled_error <= least * _NEAR]
    return min(near, key=lambda t: (-(t.agreement or 0.0), t.scaled_error)).calibrator
