"""The user's graph made ready for conversion: folded, typed, named, in one piece."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.errors import Unsupported
from peregrine.model.model import Model
from peregrine.model.onnx_file import graphs

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 13
"""The first whose DequantizeLinear takes a scale a channel."""
_LARGEST = (1 << 31) - (1 << 20)
"""Bytes that one protobuf message may hold, less what quantisation adds to it."""


def prepare(model: Model) -> onnx.ModelProto:
    """The model's graph with constants, identities and BatchNorm folded by ONNX Runtime's basic
    optimisations (standard operators in, standard operators out), the dtypes of its tensors
    inferred, opset 13 or later, weights inside, and a name of its own for every node.

    The same model gives the same graph, byte for byte, and the same numbers up to rounding.

    Raises:
        Unsupported: no ONNX graph, too large for one message, an opset that does not convert
            up, or a graph that ONNX Runtime does not open; with the library's reason.
    """
    import onnx

    path = model.onnx_path
    size = sum(file.stat().st_size for file in _files(path))
    if size > _LARGEST:
        raise Unsupported(
            f"{model.name} is too large to convert.",
            why=f"Its graph and weights are {size / 2**30:.1f} GiB; one ONNX message holds 2.",
        )
    proto = onnx.load(path)
    if opset(proto) < OLDEST_OPSET:
        proto = at_opset(proto, OLDEST_OPSET)
    name_nodes(proto)  # ONNX Runtime refuses two nodes of one name
    folded = _fold(model, proto)
    _drop_unused_domains(folded)
    _drop_shapes_of_constants(folded)
    _flatten_biases(folded)
    name_nodes(folded)
    return _infer(folded)


def opset(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that the graph uses."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def at_opset(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The graph rewritten for a later version of the standard operators.

    Raises:
        Unsupported: onnx's converter lacks an adapter for one of the operators.
    """
    import onnx

    try:
        return onnx.version_converter.convert_version(proto, version)
    except (RuntimeError, ValueError) as error:
        raise Unsupported(
            f"The graph is of opset {opset(proto)} and does not convert to {version}.",
            why=str(error).strip()[:600],
            fix=f"Export the model with opset {version} or later.",
        ) from error


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give a name to every node that has none or another's, by operator and position."""
    taken: set[str] = set()
    for graph in graphs(proto.graph):
        for position, node in enumerate(graph.node):
            name = node.name or f"{node.op_type}_{position}"
            again = 1
            while name in taken:
                again += 1
                name = f"{node.name or f'{node.op_type}_{position}'}_{again}"
            node.name = name
            taken.add(name)


def _files(path: Path) -> Iterator[Path]:
    import onnx

    from peregrine.model.onnx_file import external_files

    yield path
    for location in external_files(onnx.load(path, load_external_data=False)):
        yield path.parent / location


def _fold(model: Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
        written = Path(directory) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(written)
        options.intra_op_num_threads = 1  # folded constants are then the same on any machine
        options.log_severity_level = 3
        try:
            ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise Unsupported(
                f"ONNX Runtime does not open {model.name}, and converting it needs that.",
                why=str(error).strip()[:600],
            ) from error
        return onnx.load(written)


def _drop_unused_domains(proto: onnx.ModelProto) -> None:
    """ONNX Runtime imports every domain it knows; other runtimes refuse what they do not."""
    used = {node.domain for graph in graphs(proto.graph) for node in graph.node}
    used |= {node.domain for function in proto.functions for node in function.node}
    standard = {"", "ai.onnx"}
    kept = [o for o in proto.opset_import if o.domain in used | standard]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _flatten_biases(proto: onnx.ModelProto) -> None:
    """[1, N] to [N] for a Gemm's bias, which is the same by broadcasting: onnxruntime's quantiser
    takes element i for that of channel i."""
    readers: dict[str, set[tuple[str, int]]] = {}
    for graph in graphs(proto.graph):
        for node in graph.node:
            for position, name in enumerate(node.input):
                readers.setdefault(name, set()).add((node.op_type, position))
    returned = {value.name for value in proto.graph.output}
    for tensor in proto.graph.initializer:
        alone = readers.get(tensor.name) == {("Gemm", 2)} and tensor.name not in returned
        if alone and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def _drop_shapes_of_constants(proto: onnx.ModelProto) -> None:
    """ONNX Runtime writes them for constants that branches use; where a converter transposes
    such a constant, they contradict it."""
    for graph in graphs(proto.graph):
        constants = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in constants]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes that onnx can prove; as it is where it contradicts itself, since the
    dtypes, which quantisers need, came from ONNX Runtime."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return proto
