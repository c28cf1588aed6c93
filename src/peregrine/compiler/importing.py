"""A model's ONNX file as an onnx-ir graph of fixed sizes, simplified and typed for a precision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from peregrine.compiler.passes.fold_batch_norm import FoldBatchNorm, FoldScaleIntoNext
from peregrine.compiler.passes.fold_pads import FoldPads
from peregrine.compiler.passes.rewriting import constant
from peregrine.compiler.statistics import statistics
from peregrine.conversion.prepare import OLDEST_OPSET, at_opset
from peregrine.conversion.typed import BF16_OPSET
from peregrine.errors import Unsupported
from peregrine.model.model import Model
from peregrine.types import Precision, TensorSpec

_HALVES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}
_LARGEST_FOLDED = 1 << 26
"""Elements of a constant that folding may write."""
_SMALL = 1 << 10
"""Elements of a constant that a converter of opsets may want to read: axes, sizes, scales."""
_LARGEST_FILL = 1 << 12
"""Elements of a ConstantOfShape that is folded."""
_MOST_ROUNDS = 4
"""Of inferring shapes and folding what they make constant, each of which may allow the other."""


def specialise(model: Model, dims: Mapping[str, int], precision: Precision) -> ir.Model:
    """The graph of a model for one size of each of its symbols.

    Constants, identities, inference-time Dropout, branches with a known condition and
    BatchNormalization after a convolution or Gemm are folded; functions are inlined; constants
    are initializers of the main graph, and no input of it has a default. Every node has a name
    of its own. Shapes and dtypes are set wherever they follow from the inputs', and are None
    elsewhere. For fp16 and bf16 what can compute in that type does, but for variances and norms
    (`statistics`), with Casts where it meets what does not and at inputs and outputs, which keep
    their dtypes. Operators that nobody knows stay.

    Args:
        model: one with an ONNX graph; external data beside it.
        dims: the size of every symbol of its inputs.
        precision: fp32, tf32 (the same graph), fp16 or bf16.

    Raises:
        Unsupported: no ONNX graph, an opset that does not convert to one that is needed, a
            precision that needs a converted graph, or one in which nothing computes.
        KeyError: a symbol has no size.
    """
    if precision not in (Precision.FP32, Precision.TF32, *_HALVES):
        raise Unsupported(
            f"The native engine does not compute in {precision}.",
            why="It types a graph in fp32, tf32, fp16 or bf16.",
        )
    graph = _read(model)
    _fix_sizes(graph, model.inputs, dims)
    _simplify(graph)
    ir.passes.Sequential(FoldPads(), FoldBatchNorm(), FoldScaleIntoNext())(graph)
    if precision in _HALVES:
        graph = _typed(graph, precision, model.name)
    _tidy(graph)
    return graph


def _read(model: Model) -> ir.Model:
    """The file with its weights in memory, in an opset that has one meaning for all passes."""
    graph = ir.load(model.onnx_path)
    ir.external_data.load_to_model(graph)
    if _opset(graph) < OLDEST_OPSET:
        common.RemoveInitializersFromInputsPass()(graph)
        graph = _at_opset(graph, OLDEST_OPSET)
    return graph


def _at_opset(model: ir.Model, version: int) -> ir.Model:
    """The graph in a later opset. Its large weights stay behind meanwhile: the converter reads
    no numbers of them, and is slow where they are many."""
    graph, weights = model.graph, {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > _SMALL:
            weights[name] = value.const_value
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
    converted = ir.from_proto(at_opset(ir.to_proto(model), version))
    graph = converted.graph
    for value in list(graph.inputs):
        if value.name in weights:
            graph.inputs.remove(value)
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    return converted


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def _fix_sizes(model: ir.Model, specs: tuple[TensorSpec, ...], dims: Mapping[str, int]) -> None:
    """Set the shapes of the inputs; forget those of all else that inference will find, since a
    file may have them of an example."""
    ir.passes.Sequential(
        common.RemoveInitializersFromInputsPass(),
        common.InlinePass(),
        common.NameFixPass(),
    )(model)
    shapes = {spec.name: spec.resolve(dims) for spec in specs}
    for value in model.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in ("", "ai.onnx"):
            for output in node.outputs:
                output.shape = None


def _simplify(model: ir.Model) -> None:
    names = [str(value.name) for value in model.graph.outputs]
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for _ in range(_MOST_ROUNDS):
        _infer(model)
        folded = fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=_LARGEST_FOLDED,
            output_size_limit=_LARGEST_FOLDED,
            should_fold=_is_small_fill,
        )
        ir.passes.Sequential(
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
        )(model)
        if not folded.modified:
            break
    ir.passes.Sequential(common.CommonSubexpressionEliminationPass(), common.OutputFixPass())(model)
    _name_outputs(model.graph, names)
    _tidy(model)
    _infer(model)


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Give the outputs their names back, which folding exchanges where one value is several."""
    outputs = set(graph.outputs)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value in outputs or value.name in names:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _is_small_fill(node: ir.Node) -> bool | None:
    """True for a ConstantOfShape that is cheap to keep, which the library leaves alone; None
    where its own rules decide."""
    if node.op_type != "ConstantOfShape" or node.domain not in ("", "ai.onnx"):
        return None
    sizes = constant(node.inputs[0])
    small = sizes is not None and math.prod(sizes.tolist()) <= _LARGEST_FILL
    return True if small else None


def _infer(model: ir.Model) -> None:
    """Set the shapes and dtypes that onnx can prove; a node it does not know stops nothing."""
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _tidy(model: ir.Model) -> None:
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
    )(model)


def _typed(model: ir.Model, precision: Precision, name: str) -> ir.Model:
    """With float16 or bfloat16 inside, as `conversion.lowering` writes it."""
    from peregrine.conversion.lowering import Lowering, Plan

    dtype = _HALVES[precision]
    version, kept = _opset(model), statistics(model.graph)
    if precision is Precision.BF16 and version < BF16_OPSET:
        now = Plan(model.graph, dtype, kept, version)
        then = Plan(model.graph, dtype, kept, BF16_OPSET)
        if len(then.reads) > len(now.reads):
            version = BF16_OPSET
            model = _at_opset(model, version)
            _infer(model)
            kept = statistics(model.graph)
    plan = Plan(model.graph, dtype, kept, version)
    if not plan.reads:
        raise Unsupported(
            f"Nothing in {name} computes in {precision}.",
            why="None of its operators takes float32 here and could take that type instead.",
        )
    Lowering(plan, emulate=False).write()
    return model
