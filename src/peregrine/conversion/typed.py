"""fp16 and bf16: the graph typed in them, and its rounding told on a CPU that has neither."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from peregrine.conversion.job import GRAPH_FILE, Job, Made
from peregrine.conversion.prepare import at_opset, opset
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.types import Precision

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from peregrine.conversion.lowering import Loss, Plan

BF16_OPSET = 22
"""The first whose Conv, pooling and recurrent operators take bfloat16."""
_BF16_IR = 10
"""The ONNX file version that came with that opset."""


def make_typed(job: Job) -> Made:
    """Write the graph with float16 or bfloat16 inside. Inputs and outputs stay as the user has
    them; `job.keep`, arithmetic on shapes and operators without the type stay float32, between
    Casts.

    Raises:
        Unsupported: nothing in the graph can be narrowed, or bfloat16 needs an opset that the
            graph does not convert to.
    """
    import onnx
    import onnx_ir as ir

    from peregrine.conversion.lowering import Lowering

    dtype = _ir_dtype(job.graph.precision)
    prepared, raised = _with_types(job.prepared, job.graph)
    model = _read(prepared)
    plan = _plan(model, dtype, job.keep, opset(prepared))
    if not plan.reads:
        raise Unsupported(
            f"Nothing in {job.model.name} computes in {job.graph}.",
            why="None of its operators takes float32 here and could take that type instead.",
        )
    converted, left = plan.converted(), plan.left()
    lowering = Lowering(plan, emulate=False)
    lowering.write()
    made = ir.to_proto(model)
    path = job.out / GRAPH_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path)
    return Made(
        by=f"onnx {onnx.__version__}, onnx_ir {ir.__version__}",
        converted=dict(converted),
        left=dict(left),
        notes=(*raised, *_notes(job.graph, lowering.loss)),
    )


def emulate(
    prepared: onnx.ModelProto, precision: Precision, keep: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """The fp32 graph with every tensor that `make_typed` would narrow rounded to that type:
    weights as they are written, outputs of nodes by two Casts. Inside a node it computes in
    fp32, as hardware with fp32 accumulation does; the state of a recurrent node is not rounded
    between its steps.

    Every tensor keeps its name and holds the rounded value. Run it with graph optimisations
    disabled, or the Casts go.
    """
    import onnx_ir as ir

    from peregrine.conversion.lowering import Lowering

    graph = Graph(precision)
    model = _read(prepared)
    version = max(opset(prepared), BF16_OPSET if graph is Graph.BF16 else 0)
    plan = _plan(model, _ir_dtype(precision), keep, version)
    if plan.reads:
        Lowering(plan, emulate=True).write()
    return ir.to_proto(model)


def _ir_dtype(precision: Precision) -> ir.DataType:
    import onnx_ir as ir

    return {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}[precision]


def _read(proto: onnx.ModelProto) -> ir.Model:
    """With constants among the weights. Shares no node with `proto`."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    model = ir.from_proto(proto)
    for step in (
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        model = step(model).model
    return model


def _plan(model: ir.Model, dtype: ir.DataType, keep: frozenset[str], version: int) -> Plan:
    from peregrine.conversion.lowering import Plan

    return Plan(model.graph, dtype, keep, version)


def _with_types(prepared: onnx.ModelProto, graph: Graph) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph at an opset whose operators take the type, and a note where that is a later one.

    Raises:
        Unsupported: it does not convert; the operators that need it are named.
    """
    if graph is not Graph.BF16 or opset(prepared) >= BF16_OPSET:
        return prepared, ()
    dtype, model = _ir_dtype(graph.precision), _read(prepared)
    now = _plan(model, dtype, frozenset(), opset(prepared))
    then = _plan(model, dtype, frozenset(), BF16_OPSET)
    gained = Counter(node.op_type for node in then.reads if node not in now.reads)
    if not gained:
        return prepared, ()
    names = ", ".join(gained)
    try:
        raised = at_opset(prepared, BF16_OPSET)
    except Unsupported as error:
        raise Unsupported(
            f"{names} take bfloat16 from opset {BF16_OPSET} on only.",
            why=error.reason,
            fix=f"Export the model with opset {BF16_OPSET} or later.",
        ) from error
    raised.ir_version = max(raised.ir_version, _BF16_IR)
    return raised, (
        f"Converted from opset {opset(prepared)} to {BF16_OPSET}, where {names} take bfloat16.",
    )


def _notes(graph: Graph, loss: Loss) -> list[str]:
    notes = []
    for lost, what in (
        (loss.vanished, "too small and became 0"),
        (loss.overflowed, "too large and became infinite"),
    ):
        if lost:
            (name, count), *_ = lost.most_common(1)
            notes.append(
                f"{lost.total()} of {loss.weights} weights are {what} in {graph}, "
                f"{count} of them in {name}."
            )
    return notes
