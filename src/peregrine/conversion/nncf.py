"""INT8 by OpenVINO's own quantiser, written as OpenVINO's IR."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peregrine.conversion import saturation
from peregrine.conversion.job import GRAPH_FILE, IR_FILE, Job, Made
from peregrine.conversion.quiet import quiet
from peregrine.conversion.untracked import import_nncf, import_openvino
from peregrine.errors import BackendUnavailable, Unsupported

if TYPE_CHECKING:
    import onnx

_RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell")
_COMPUTE = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
    *_RECURRENT,
}
"""OpenVINO's operators that multiply by weights, or activations by activations."""
_PASS_ON = frozenset({"Convert", "Multiply", "Subtract", "Reshape", "Transpose"})
"""What may stand between int8 weights and their use."""


def make_nncf(job: Job) -> Made:
    """Write `model.xml` and `model.bin`, quantised over all of the calibration data. Inputs,
    outputs and open sizes stay as they are.

    Raises:
        BackendUnavailable: nncf or OpenVINO is not installed.
        Unsupported: nncf refuses the graph, with its reason, or finds nothing to quantise.
    """
    assert job.calibration is not None
    try:
        nncf, ov = import_nncf(), import_openvino()
    except ImportError as error:
        raise BackendUnavailable(
            f"{error.name or 'nncf'} does not import.",
            why=str(error),
            fix="pip install 'peregrine-inference[openvino]'",
        ) from error
    seven_bits = saturation.reduces_range(job.graph)
    names = {spec.name for spec in job.model.inputs}
    items = [
        {name: value for name, value in item.items() if name in names}
        for item in job.calibration.items()
    ]
    try:
        graph = _read(ov, job.prepared)
        layers = layers_of(job.prepared, graph)
        with quiet():
            quantised = nncf.quantize(
                graph,
                nncf.Dataset(items),
                subset_size=len(items),
                fast_bias_correction=True,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=(
                        nncf.OverflowFix.ENABLE if seven_bits else nncf.OverflowFix.FIRST_LAYER
                    )
                ),
                model_type=nncf.ModelType.TRANSFORMER if has_attention(job.prepared) else None,
                # Not validated: a layer that OpenVINO fused away needs no leaving out.
                ignored_scope=nncf.IgnoredScope(
                    names=sorted({name for node in job.keep for name in layers.get(node, ())}),
                    # OpenVINO 2026.4.1 runs a quantised LSTM, and makes zeros of the negative
                    # values of its state.
                    types=list(_RECURRENT),
                    validate=False,
                ),
            )
    except (RuntimeError, ValueError, nncf.InternalError, nncf.ValidationError) as error:
        raise Unsupported(
            f"nncf does not quantise {job.model.name}.",
            why=_reason(error),
        ) from error
    converted, left = _counts(job.prepared, layers, quantised)
    if not converted:
        raise Unsupported(
            f"nncf finds nothing to quantise in {job.model.name}.",
            why=f"Layers with weights that it leaves: {_told(left) or 'none'}.",
        )
    job.out.mkdir(parents=True, exist_ok=True)
    ov.save_model(quantised, job.out / IR_FILE, compress_to_fp16=False)
    return Made(
        by=f"nncf {nncf.__version__}, openvino {ov.__version__.partition('-')[0]}",
        file=IR_FILE,
        calibrator="minmax",
        converted=dict(converted),
        left=dict(left),
        notes=(
            *(("Quantised as a transformer.",) if has_attention(job.prepared) else ()),
            *((saturation.NOTE,) if seven_bits else ()),
        ),
    )


def has_attention(proto: onnx.ModelProto) -> bool:
    """Whether a product of two activations, neither of them weights, reads a Softmax."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    chances = {
        name for node in proto.graph.node if node.op_type == "Softmax" for name in node.output
    }
    return any(
        node.op_type == "MatMul" and chances & set(node.input) and not weights & set(node.input)
        for node in proto.graph.node
    )


def layers_of(proto: onnx.ModelProto, graph: Any) -> dict[str, set[str]]:
    """Name of an ONNX node -> friendly names of the OpenVINO operators that stand for it.

    One ONNX node may become several (a Conv with a bias is a Convolution and an Add), and the
    one at an output goes by the output's name. Tensors keep their names: the operators of a
    node are those between its outputs and the outputs of other nodes.
    """
    producers = {
        name: output.get_node()
        for operator in graph.get_ops()
        for output in operator.outputs()
        for name in output.get_names()
    }
    found: dict[str, set[str]] = {}
    for node in proto.graph.node:
        own = set(node.output)
        ends = [producers[name] for name in node.output if name in producers]
        found[node.name] = set(_between(ends, set(producers) - own))
    return found


def _between(ends: Iterable[Any], borders: set[str]) -> Iterator[str]:
    """Friendly names of the operators before `ends` and after tensors of the names `borders`."""
    todo, seen = list(ends), set()
    while todo:
        operator = todo.pop()
        name = operator.get_friendly_name()
        if name in seen or operator.get_type_name() in ("Constant", "Parameter"):
            continue
        seen.add(name)
        yield name
        todo += [
            source.get_node()
            for source in operator.input_values()
            if not source.get_names() & borders
        ]


def _read(ov: Any, proto: onnx.ModelProto) -> Any:
    with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
        path = Path(directory) / GRAPH_FILE
        path.write_bytes(proto.SerializeToString())
        graph = ov.Core().read_model(path)
    # Or the weights of a grouped convolution are a Reshape of a constant, nncf quantises what
    # comes out of the Reshape, and the CPU plugin computes the layer in fp32.
    passes = importlib.import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(graph)
    return graph


def _counts(
    proto: onnx.ModelProto, layers: dict[str, set[str]], quantised: Any
) -> tuple[Counter[str], Counter[str]]:
    """ONNX operator type -> nodes that compute in INT8, and nodes that could have."""
    work = {
        operator.get_friendly_name(): _in_int8(operator)
        for operator in quantised.get_ops()
        if operator.get_type_name() in _COMPUTE
    }
    converted: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for node in proto.graph.node:
        answers = [work[name] for name in layers.get(node.name, ()) if name in work]
        if answers:
            (converted if any(answers) else left)[node.op_type] += 1
    return converted, left


def _in_int8(operator: Any) -> bool:
    """Whether its weights, or the second of two activations that it multiplies, are quantised;
    nncf then does the other factor too."""
    sources = [_source(value.get_node()) for value in operator.input_values()]
    constants = [node for node in sources if node.get_type_name() == "Constant"]
    if any(node.get_element_type().get_type_name() in ("i8", "u8") for node in constants):
        return True
    second = sources[1].get_type_name() if operator.get_type_name() == "MatMul" else ""
    return bool(second == "FakeQuantize")


def _source(operator: Any) -> Any:
    while operator.get_type_name() in _PASS_ON:
        operator = operator.input_value(0).get_node()
    return operator


def _reason(error: Exception) -> str:
    """What is said, without OpenVINO's trail of source locations."""
    lines = (line.strip() for line in str(error).splitlines())
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(told)[:600] or type(error).__name__


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
