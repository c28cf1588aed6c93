"""Dynamic INT8: weights in 8 bits, activations quantised as they come. No calibration data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from peregrine.conversion import saturation
from peregrine.conversion.job import GRAPH_FILE, Job, Made
from peregrine.conversion.quiet import quiet
from peregrine.errors import Unsupported
from peregrine.model.onnx_file import graphs

if TYPE_CHECKING:
    import onnx

OPERATORS = ("Attention", "EmbedLayerNormalization", "Gemm", "LSTM", "MatMul")
"""Not Conv, whose ConvInteger is slower than fp32 on a CPU, nor GRU and RNN, for which
onnxruntime has no dynamic kernel."""
_HAVE_WEIGHTS = (*OPERATORS, "Conv", "ConvTranspose", "GRU", "RNN")

_AS_MATMUL = "_MatMul"
"""What the quantiser adds to the name of a Gemm, which it first turns into MatMul and Add."""


def make_dynamic(job: Job) -> Made:
    """Write the dynamically quantised graph of `job`, bodies of If and Loop included.

    Weights are signed and scaled per channel: x86 multiplies them with the unsigned activations.

    Raises:
        Unsupported: no matrix product or LSTM has constant weights.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = dict(_weighted(job.prepared))
    convertible = {n for n, op in before.items() if op in OPERATORS and n not in job.keep}
    if not convertible:
        raise Unsupported(
            f"{job.model.name} has nothing to quantise dynamically.",
            why=f"None of its nodes is a {', '.join(OPERATORS[:-1])} or {OPERATORS[-1]} with "
            "constant weights."
            if not job.keep
            else "Every layer that could be is kept in fp32.",
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(job.prepared)  # the quantiser changes it in place
    _unshare(proto)
    job.out.mkdir(parents=True, exist_ok=True)
    with quiet():
        quantize_dynamic(
            proto,
            job.out / GRAPH_FILE,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=sorted(job.keep | {f"{name}{_AS_MATMUL}" for name in job.keep}),
            per_channel=True,
            reduce_range=saturation.reduces_range(job.graph),
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
    # What the quantiser replaced lost its operator, or its weights.
    after = dict(_weighted(onnx.load(job.out / GRAPH_FILE)))
    left = Counter(op for n, op in before.items() if after.keys() & {n, f"{n}{_AS_MATMUL}"})
    converted = Counter(before.values()) - left
    if not converted:
        raise Unsupported(
            f"{job.model.name} has nothing to quantise dynamically.",
            why="onnxruntime's quantiser left every layer as it was.",
        )
    return Made(
        by=f"onnxruntime.quantization {onnxruntime.__version__}",
        converted=dict(sorted(converted.items())),
        left=dict(sorted(left.items())),
        notes=(saturation.NOTE,) if saturation.reduces_range(job.graph) else (),
    )


def _unshare(proto: onnx.ModelProto) -> None:
    """Work around two faults of the quantiser: it turns Gemm into MatMul by transposing the
    weights where they lie, once for every Gemm that shares them; and it infers shapes again,
    which fails where the branches of an If carry different ones under the same name."""
    uses = Counter(name for graph in graphs(proto.graph) for n in graph.node for name in n.input)
    weights = {tensor.name: tensor for g in graphs(proto.graph) for tensor in g.initializer}
    for graph in graphs(proto.graph):
        if graph is not proto.graph:
            del graph.value_info[:]
        for node in graph.node:
            if node.op_type == "Gemm" and node.input[1] in weights and uses[node.input[1]] > 1:
                own = graph.initializer.add()
                own.CopyFrom(weights[node.input[1]])
                own.name = f"{own.name}//{node.name}"
                node.input[1] = own.name


def _weighted(proto: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """(name, operator) of every node whose weights are a constant, in any body."""
    import onnx

    constants: set[str] = set()
    for graph in graphs(proto.graph):
        constants |= {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
    for graph in graphs(proto.graph):
        for node in graph.node:
            if node.op_type in _HAVE_WEIGHTS and constants.intersection(node.input[1:2]):
                yield node.name, node.op_type
