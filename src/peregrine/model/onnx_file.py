"""ONNX files: read and check them, read their specs, write them under readable dimensions."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.errors import ModelCorrupt, ModelNotFound, Unsupported
from peregrine.types import Dim, TensorSpec, numpy_dtype

if TYPE_CHECKING:
    import onnx

ONNX_FILE = "model.onnx"
_STANDARD_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"}
_REEXPORT = "Export or download the model again."


def read(path: Path) -> onnx.ModelProto:
    """Read and check a graph; external data stays on disk.

    Raises:
        ModelNotFound: there is no such file.
        ModelCorrupt: it is not ONNX, its external data is missing, or the checker refuses it.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}.", fix="Check the path.")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ModelCorrupt(
            f"{path} is a Git LFS pointer, not the model.", fix="Run `git lfs pull` in its repo."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelCorrupt(
            f"{path} is not a readable ONNX file.",
            why=f"It is truncated or of another format ({path.stat().st_size} bytes).",
            fix=_REEXPORT,
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelCorrupt(
            f"{path} is not an ONNX model.", why="It holds no graph with outputs.", fix=_REEXPORT
        )
    _check_external(model, path.parent)
    _check(model, path)
    return model


def _check(model: onnx.ModelProto, path: Path) -> None:
    """Run onnx's checker; by path, since a proto beyond 2 GiB cannot be checked in memory."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        why = str(error).strip()
        raise ModelCorrupt(
            f"{path.name} fails the ONNX checker.",
            why=why[:600],
            fix=(
                "The graph uses an operator that its opset does not have; export it with an opset "
                "that does."
                if "No Op registered" in why
                else _REEXPORT
            ),
        ) from error


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """Relative path of each external data file -> the bytes that the graph needs in it."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    needed: dict[str, int] = {}
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = int(info.offset or 0) + int(info.length or 0)
            needed[info.location] = max(needed.get(info.location, 0), end)
    return needed


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from (a.t for a in node.attribute if a.HasField("t"))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph nested in it (branches of If, bodies of Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for nested in attribute.graphs:
                yield from graphs(nested)


def _check_external(model: onnx.ModelProto, directory: Path) -> None:
    for location, size in external_files(model).items():
        path = directory / location
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ModelCorrupt(
                f"The model's external data {location!r} lies outside its directory.",
                why="Such a file could read anything on this machine.",
                fix="Put the data file beside the .onnx file and export again.",
            )
        if not path.is_file():
            raise ModelCorrupt(
                f"The model's external data {location!r} is missing.",
                why=f"{directory} does not hold it.",
                fix="Copy it beside the .onnx file; the two belong together.",
            )
        if path.stat().st_size < size:
            raise ModelCorrupt(
                f"The model's external data {location!r} is truncated.",
                why=f"The graph needs {size} bytes of it; it has {path.stat().st_size}.",
                fix=_REEXPORT,
            )


def specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as declared. A dimension without a name gets a symbol of its own
    that starts with "?".

    Raises:
        Unsupported: an input or output that is no tensor, or is of strings.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return tuple(map(_spec, inputs)), tuple(map(_spec, model.graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type" or element in (
        onnx.TensorProto.STRING,
        onnx.TensorProto.COMPLEX64,
        onnx.TensorProto.COMPLEX128,
        onnx.TensorProto.UNDEFINED,
    ):
        what = kind if kind != "tensor_type" else onnx.TensorProto.DataType.Name(element).lower()
        raise Unsupported(
            f"{value.name!r} is of type {what or 'unknown'}.",
            why="Only tensors of numbers and bools can be raced.",
            fix="Export the model without it (scikit-learn: options={'zipmap': False}).",
        )
    dims: list[Dim] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        named = dim.dim_param not in ("", "?")
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param if named else f"?{value.name}:{axis}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    return TensorSpec(value.name, dtype.name, tuple(dims))


def write(
    model: onnx.ModelProto,
    directory: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    source_directory: Path | None,
) -> str:
    """Write `model.onnx` with the dimensions of the specs, external data beside it.

    Returns the sha256 of the graph and of its external data, in order of their names.
    `source_directory` is where external data lies now; None when there is none on disk.
    Inputs that an exporter dropped, because nothing uses them, come back as unused ones.
    """
    _add_unused_inputs(model, inputs)
    _set_dims(model, [*inputs, *outputs])
    directory.mkdir(parents=True, exist_ok=True)
    blob = model.SerializeToString(deterministic=True)
    (directory / ONNX_FILE).write_bytes(blob)
    digest = hashlib.sha256(blob)
    for location in sorted(external_files(model)):
        target = directory / location
        if source_directory is not None and source_directory.resolve() != directory.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source_directory / location, target)
        with target.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _add_unused_inputs(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    import onnx

    present = {value.name: value for value in model.graph.input}
    if all(spec.name in present for spec in inputs):
        return
    del model.graph.input[:]
    for spec in inputs:
        if spec.name in present:
            model.graph.input.append(present[spec.name])
        else:
            element = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype))
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(spec.name, element, spec.shape)
            )


def _set_dims(model: onnx.ModelProto, wanted: Sequence[TensorSpec]) -> None:
    shapes = {spec.name: spec.shape for spec in wanted}
    changed = False
    for value in [*model.graph.input, *model.graph.output]:
        if value.name not in shapes:
            continue
        shape = value.type.tensor_type.shape
        if _declared(shape) == shapes[value.name]:
            continue
        changed = True
        del shape.dim[:]
        for dim in shapes[value.name]:
            added = shape.dim.add()
            if isinstance(dim, int):
                added.dim_value = dim
            else:
                added.dim_param = dim
    if changed:
        # Shapes recorded inside the graph speak of the old names; every runtime infers them.
        kept = [
            value
            for value in model.graph.value_info
            if not any(d.dim_param for d in value.type.tensor_type.shape.dim)
        ]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


def _declared(shape: onnx.TensorShapeProto) -> tuple[Dim, ...]:
    return tuple(d.dim_param or d.dim_value for d in shape.dim)


def infer_outputs(
    model: onnx.ModelProto, renames: Mapping[str, str], outputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """`outputs` (original names) with each open dimension replaced by what shape inference can
    prove: a size, or a symbol of an input. Unchanged where inference fails."""
    import onnx

    if external_files(model) or all(not spec.symbols and spec.shape for spec in outputs):
        return tuple(outputs)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in probe.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(probe, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return tuple(outputs)
    found = dict(zip((o.name for o in outputs), map(_spec, inferred.graph.output), strict=True))
    merged = []
    for spec in outputs:
        seen = found[spec.name].shape
        shape = spec.shape or seen
        if len(seen) == len(shape):
            shape = tuple(
                proved if isinstance(dim, str) and _known(proved, renames) else dim
                for dim, proved in zip(shape, seen, strict=True)
            )
        merged.append(TensorSpec(spec.name, spec.dtype, shape))
    return tuple(merged)


def _known(dim: Dim, renames: Mapping[str, str]) -> bool:
    return isinstance(dim, int) or dim in renames


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of the graph's constants of floating-point or 8-bit type; shapes and indices,
    which exporters also keep as constants, are of others."""
    import onnx

    kind = onnx.TensorProto
    counted = {kind.FLOAT, kind.DOUBLE, kind.FLOAT16, kind.BFLOAT16, kind.INT8, kind.UINT8}
    return sum(math.prod(t.dims) for t in _tensors(model) if t.data_type in counted)


def foreign_operators(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Operator domains outside the ONNX standard -> their operators in this model."""
    functions = {(function.domain, function.name) for function in model.functions}
    foreign: dict[str, set[str]] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            key = (node.domain, node.op_type)
            if node.domain not in _STANDARD_DOMAINS and key not in functions:
                foreign.setdefault(node.domain, set()).add(node.op_type)
    return {domain: sorted(operators) for domain, operators in sorted(foreign.items())}
