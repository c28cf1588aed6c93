"""FP8 E4M3: Q/DQ around the products of a float16 graph.

TensorRT is strongly typed, so that what leaves a DequantizeLinear has the type of its scale: over a
float16 graph with float16 scales, everything between the products is float16.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from peregrine.conversion.job import GRAPH_FILE, Job, Made
from peregrine.conversion.prepare import at_opset, opset
from peregrine.conversion.quantize import WEIGHTED, channel_axis, collect_ranges, weighted_nodes
from peregrine.conversion.typed import make_typed
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.types import Array

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPSET = 19
"""The first whose QuantizeLinear makes FP8."""
LARGEST = 448.0
"""Of E4M3 without infinities (`float8_e4m3fn`); N. Micikevicius et al., "FP8 formats for deep
learning", arXiv:2209.05433."""
_LARGEST_WEIGHT, _LARGEST_INPUT = LARGEST / 64, LARGEST / 16
"""Where weights and activations are put in E4M3's range. TensorRT-RTX 1.5 writes the sum of
products in float16 before it applies the scales: with both at 448 a ResNet-18 gave 962 Inf of 1000
on an H200, with 7 and 28 none, with the error that exact arithmetic has (0.09) and no slower.
E4M3 is a floating type, so that values which fill only part of its range lose no digits; what is
beyond the calibrated range has room to be."""
_LEAST_SCALE = 2.0**-14
"""float16's smallest normal number. A smaller scale would itself lose bits."""


def make_fp8(job: Job) -> Made:
    """Write the graph with FP8 E4M3 inputs and weights of every Conv, ConvTranspose, Gemm and
    MatMul with constant weights: activations scaled per tensor by the largest of the calibration
    data, weights per output channel.

    Nodes in `job.keep` stay float32, all else is float16 as in the graph `fp16`; inputs and
    outputs of the graph keep their types.

    Raises:
        Unsupported: nothing to quantise, or what float16 and the range collection refuse.
    """
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    products = {
        node.name: node.input[0]
        for node in weighted_nodes(job.prepared)
        if node.op_type in WEIGHTED and node.name not in job.keep
    }
    if not products:
        raise Unsupported(
            f"{job.model.name} has nothing to quantise to FP8.",
            why=f"It has no {', '.join(WEIGHTED)} with constant weights outside of branches.",
        )
    bounds = collect_ranges(job, ("minmax",))["minmax"]
    half, made = _half(job)
    model = onnx_ir.from_proto(half)
    converted: Counter[str] = Counter()
    for node in list(model.graph):
        tensor = products.get(node.name or "", "")
        if tensor in bounds and _quantize(model, node, max(map(abs, bounds[tensor]))):
            converted[node.op_type] += 1
    RemoveUnusedNodesPass()(model)  # the float16 weights
    job.out.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx_ir.to_proto(model), job.out / GRAPH_FILE)
    left = Counter(node.op_type for node in weighted_nodes(job.prepared)) - converted
    return Made(
        by=f"ml_dtypes {ml_dtypes.__version__} and {made.by}",
        calibrator="minmax",
        converted=dict(sorted(converted.items())),
        left=dict(sorted(left.items())),
        notes=made.notes,
    )


def _half(job: Job) -> tuple[onnx.ModelProto, Made]:
    """The float16 graph at an opset that has FP8, and what is said of it."""
    import onnx

    prepared = job.prepared
    if opset(prepared) < OPSET:
        prepared = at_opset(prepared, OPSET)
    with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
        made = make_typed(
            dataclasses.replace(
                job, prepared=prepared, graph=Graph.FP16, out=Path(directory), calibration=None
            )
        )
        return onnx.load(Path(directory) / GRAPH_FILE), made


def _quantize(model: ir.Model, node: ir.Node, amax: float) -> bool:
    """Put Q/DQ before a product. False, and nothing done, where its weights are no constant of
    float16: something else in the graph needs them wider."""
    import onnx_ir as ir

    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or weight.const_value is None:
        return False
    if weight.dtype is not ir.DataType.FLOAT16:
        return False
    values = weight.const_value.numpy().astype(np.float32)
    axis = channel_axis(ir.to_proto(node), values.ndim)
    others = tuple(i for i in range(values.ndim) if i != axis)
    scales = scale_of(np.abs(values).max(axis=others, keepdims=True), _LARGEST_WEIGHT)
    stored = (values / scales.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
    name = f"{node.name}//fp8"
    low = _pair(
        model,
        node,
        f"{name}_weight",
        _constant(model, f"{name}_weight", stored),
        scales.reshape(-1),
        axis,
    )
    node.replace_input_with(1, low)
    scale = scale_of(np.array(amax), _LARGEST_INPUT)
    node.replace_input_with(0, _pair(model, node, f"{name}_input", x, scale))
    return True


def _pair(
    model: ir.Model, node: ir.Node, name: str, x: ir.Value, scale: Array, axis: int | None = None
) -> ir.Value:
    """`x` through Q/DQ, inserted before `node`; through DQ alone where it is stored in FP8."""
    import onnx_ir as ir

    attributes = {} if axis is None else {"axis": axis}
    scales = _constant(model, f"{name}_scale", scale)
    zero = _constant(model, f"{name}_zero", np.zeros(scale.shape, ml_dtypes.float8_e4m3fn))
    steps = ["DequantizeLinear"] if axis is not None else ["QuantizeLinear", "DequantizeLinear"]
    for step in steps:
        made = ir.node(step, [x, scales, zero], attributes, name=f"{name}_{step}")
        made.outputs[0].name = f"{name}_{step}"
        node.prepend(made)
        x = made.outputs[0]
    return x


def _constant(model: ir.Model, name: str, values: Array) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(values.shape),
    )
    model.graph.register_initializer(value)
    return value


def scale_of(amax: Array, largest: float) -> Array:
    """float16 scales that bring `amax` to `largest`, and not beyond it."""
    wanted = np.where(amax > 0, np.maximum(amax / largest, _LEAST_SCALE), 1.0)
    rounded = wanted.astype(np.float16)
    short = rounded.astype(np.float64) < wanted
    return np.where(short, np.nextafter(rounded, np.float16(np.inf)), rounded).astype(np.float16)
