"""ONNX Runtime: rows, errors, proof of placement, what is saved, silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from conformance import assert_close, assert_repeatable, converted, target
from one_node import SHAPE, of_bytes, one_node
from peregrine.backends._ort_placement import Kernel, place, read_profile
from peregrine.backends._ort_providers import CPU, installed, ladder, plugin_distributions
from peregrine.backends._ort_providers import CUDA as GPU
from peregrine.backends.onnxruntime import OnnxRuntimeBackend, OrtSession
from peregrine.errors import (
    BackendError,
    BackendUnavailable,
    OptionError,
    Unsupported,
)
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Profile, Scalar, Target
from peregrine.validate import DEFAULTS

BACKEND = OnnxRuntimeBackend()
OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


def row(**options: Scalar) -> Candidate:
    return Candidate("onnxruntime", CPU, options=options)


def compiled(model: Model, candidate: Candidate | None = None) -> OrtSession:
    return BACKEND.compile(model, candidate or row(), target(model))


def attempt(model: Model, provider: str) -> OrtSession | BackendUnavailable:
    try:
        return compiled(model, Candidate("onnxruntime", provider))
    except BackendUnavailable as error:
        return error


# Rows


def test_the_cpu_comes_first_with_few_rows(residual: Model) -> None:
    rows = [c for c in BACKEND.candidates(residual, Target(threads=4)) if c.variant == CPU]
    assert [c.id for c in rows] == [
        "onnxruntime[CPUExecutionProvider] fp32",
        "onnxruntime[CPUExecutionProvider] fp32 spinning=False",
        "onnxruntime[CPUExecutionProvider] fp32 threads=1",
        "onnxruntime[CPUExecutionProvider] int8 u8s8",
        "onnxruntime[CPUExecutionProvider] fp16",
        "onnxruntime[CPUExecutionProvider] bf16",
    ]
    assert next(iter(BACKEND.candidates(residual, Target()))) == rows[0]


def test_dynamic_quantisation_is_for_what_takes_no_images(
    residual: Model, attention: Model
) -> None:
    def graphs(model: Model) -> set[str]:
        return {c.graph for c in BACKEND.candidates(model, Target())}

    assert "dynamic" not in graphs(residual)
    assert "dynamic" in graphs(attention)


def test_a_gpus_providers_are_raced_in_its_precisions() -> None:
    gpu = Target("cuda:0")
    words = {name: [f"{p} {g}".strip() for p, g in ladder(name, gpu)] for name in (GPU, TENSORRT)}
    assert words[GPU] == ["fp32", "tf32", "fp16 fp16", "bf16 bf16"]
    assert words[TENSORRT] == ["fp32", "fp16 fp16", "bf16 bf16", "fp8 fp8", "int8 s8s8"]
    # On another device one row says why nothing runs.
    assert [str(p) for p, _ in ladder(GPU, Target())] == ["fp32"]


def test_a_row_equal_to_the_default_is_left_out(residual: Model) -> None:
    rows = BACKEND.candidates(residual, Target(threads=1))
    assert not any("threads" in candidate.options for candidate in rows)


def test_every_plugin_is_a_row(residual: Model) -> None:
    variants = {c.variant for c in BACKEND.candidates(residual, Target())}
    plugins = {p.distribution: p.name for p in installed() if p.distribution}
    assert set(plugins) == set(plugin_distributions())
    assert set(plugins.values()) <= variants
    assert "AzureExecutionProvider" not in variants


def test_threads_follow_option_then_target(residual: Model) -> None:
    budget = Target(profile=target(residual).profile, threads=3)
    with BACKEND.compile(residual, row(), budget) as session:
        assert session.recipe.threads == 3
    with BACKEND.compile(residual, row(threads=1), budget) as session:
        assert session.recipe.threads == 1


@pytest.mark.parametrize("options", [{"optimization": "most"}, {"thread": 1}])
def test_options_are_checked(residual: Model, options: dict[str, Scalar]) -> None:
    with pytest.raises(OptionError) as raised:
        compiled(residual, row(**options))
    assert "Use one of" in raised.value.fix


def test_options_of_a_gpu_are_no_options_of_the_cpu(residual: Model) -> None:
    with pytest.raises(OptionError, match="no prefer_nhwc and no cuda_graph") as raised:
        compiled(residual, row(prefer_nhwc=True, cuda_graph=True))
    assert GPU in raised.value.fix


def test_a_precision_without_its_graph_is_refused(residual: Model) -> None:
    with pytest.raises(Unsupported, match="no fp16 here") as raised:
        compiled(residual, Candidate("onnxruntime", CPU, Precision.FP16))
    assert "fp16 fp16" in raised.value.fix


def test_a_graph_of_another_taste_is_refused(residual: Model) -> None:
    """Signed activations, which the CPU takes and computes slowly."""
    model = dataclasses.replace(residual, graph="s8s8")
    with pytest.raises(Unsupported, match="no int8 as the graph s8s8"):
        compiled(model, Candidate("onnxruntime", CPU, Precision.INT8, graph="s8s8"))


def test_the_cpu_says_that_it_has_no_bf16_kernels(residual: Model, tmp_path: Path) -> None:
    model = converted(residual, Graph.BF16, tmp_path)
    with pytest.raises(Unsupported, match=rf"{CPU} has no bf16 kernel for operator \w+") as raised:
        compiled(model, Candidate("onnxruntime", CPU, Precision.BF16, graph="bf16"))
    assert "another backend" in raised.value.fix


def test_one_session_serves_any_batch(residual: Model) -> None:
    with compiled(residual) as session:
        for batch in (1, 3, 17):
            assert session.profile.covers({"batch": batch})
            assert session.run(random_feeds(residual, batch, 0))["output"].shape == (batch, 10)


# Providers that are not there


def test_a_provider_of_another_build_says_what_is_missing(residual: Model) -> None:
    name = "CUDAExecutionProvider"
    if name in {provider.name for provider in installed()}:
        pytest.skip("this build has it")
    with pytest.raises(BackendUnavailable) as raised:
        compiled(residual, Candidate("onnxruntime", name))
    assert name in raised.value.what
    assert raised.value.why
    assert raised.value.fix


def test_the_openvino_plugin_runs_in_fp32_or_names_the_vendor_it_wants(residual: Model) -> None:
    if OPENVINO not in {p.name for p in installed() if p.distribution}:
        pytest.skip("onnxruntime-ep-openvino is not installed")
    outcome = attempt(residual, OPENVINO)
    if isinstance(outcome, BackendUnavailable):
        assert "Intel hardware only" in outcome.why
        assert "openvino" in outcome.fix
        return
    feeds = random_feeds(residual, 3, 0)
    with outcome, compiled(residual) as cpu:
        assert_close(outcome.run(feeds), cpu.run(feeds), 1e-5, OPENVINO)
        placement = outcome.placement(feeds)
    assert not placement.fell_back
    assert placement.nodes[OPENVINO] > 1


def test_asking_twice_finds_the_plugin_twice(residual: Model) -> None:
    """Registered, a plugin's provider is listed beside the built-in ones: it stays one row."""
    before = list(installed())
    for provider in before:
        if provider.distribution:
            outcome = attempt(residual, provider.name)
            assert isinstance(outcome, OrtSession) or outcome.why
    assert list(installed()) == before


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_cuda_graph_computes_what_the_cpu_does(
    residual: Model, precision: Precision, tmp_path: Path
) -> None:
    if GPU not in {provider.name for provider in installed()}:
        pytest.skip("this build has no CUDA")
    graph = Graph.FP16 if precision is Precision.FP16 else ""
    model = converted(residual, Graph.FP16, tmp_path) if graph else residual
    options = {"prefer_nhwc": True, "cuda_graph": True}
    candidate = Candidate("onnxruntime", GPU, precision, options, graph)
    limit = DEFAULTS[precision].scaled_error
    with (
        compiled(residual) as cpu,
        BACKEND.compile(model, candidate, Target("cuda:0", target(model).profile)) as session,
    ):
        assert_repeatable(session, cpu, residual, limit)
        assert not session.placement(random_feeds(residual, 3, 5)).fell_back


# Errors


def test_an_operator_of_an_unknown_domain_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"com\.acme:Frobnicate"):
        compiled(one_node(tmp_path, "Frobnicate", domain="com.acme"))


def test_an_unknown_operator_is_named_with_its_opset(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="operator Frobnicate of opset 17"):
        compiled(one_node(tmp_path, "Frobnicate"))


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"operator Relu \(version 14\)"):
        compiled(one_node(tmp_path, "Relu", dtype="int64"))


def test_an_opset_of_the_future_says_which_it_knows(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"opset 99 \(it knows up to \d+\)") as raised:
        compiled(one_node(tmp_path, "Relu", opset=99))
    assert "upgrade" in raised.value.fix


def test_an_inference_that_fails_is_a_backend_error(tmp_path: Path) -> None:
    model = one_node(
        tmp_path,
        "Gather",
        dtype="int64",
        inputs=("table", "x"),
        initializers=[("table", np.zeros((3, 2), np.float32))],
    )
    feeds = {"x": np.full((3, 4), 7)}
    with compiled(model) as session:
        with pytest.raises(BackendError, match="out of data bounds"):
            session.run(feeds)
        session.bind(feeds)
        with pytest.raises(BackendError, match="out of data bounds"):
            session.enqueue()


# Placement


def test_the_reference_runs_the_graph_as_written(residual: Model) -> None:
    feeds = random_feeds(residual, 3, 0)
    graph = onnx.load(residual.onnx_path).graph
    nodes = sum(node.op_type != "Constant" for node in graph.node)
    with compiled(residual, row(optimization="disabled")) as written, compiled(residual) as fused:
        assert written.placement(feeds).nodes == {CPU: nodes}
        assert fused.placement(feeds).nodes[CPU] < nodes
        assert not fused.placement(feeds).fell_back


def test_the_timed_session_is_not_profiled(
    residual: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with compiled(residual) as session:
        session.placement(random_feeds(residual, 3, 0))
        assert not session._runtime.get_session_options().enable_profiling
    assert not list(tmp_path.iterdir())


def test_a_node_in_a_loop_counts_once(tmp_path: Path) -> None:
    session = compiled(looping(tmp_path))
    with session:
        placement = session.placement({"x": np.ones((2, 4), np.float32)})
        assert session.run({"x": np.ones((2, 4), np.float32)})["y"][0, 0] == 2**5
    assert placement.nodes[CPU] <= 4


def looping(directory: Path) -> Model:
    """y = x doubled five times, in a Loop."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "before"], ["after"], name="double"),
            helper.make_node("Identity", ["go"], ["go_on"], name="go_on"),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, SHAPE),
        ],
        [value("go_on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, SHAPE)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["five", "", "x"], ["y"], name="loop", body=body)],
        "looping",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value("y", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor("five", TensorProto.INT64, [], [5])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(proto)
    return of_bytes(directory, proto.SerializeToString())


def precisions(model: Model, graph: Graph, directory: Path) -> dict[str, int]:
    candidate = Candidate("onnxruntime", CPU, graph.precision, graph=graph)
    with compiled(converted(model, graph, directory), candidate) as session:
        return dict(session.placement(random_feeds(model, 3, 0)).precisions)


def test_placement_counts_the_layers_that_compute_in_int8(residual: Model, tmp_path: Path) -> None:
    with compiled(residual) as session:
        layers = session.placement(random_feeds(residual, 3, 0)).precisions
    assert set(layers) == {"f32"}
    assert precisions(residual, Graph.U8S8, tmp_path) == {"u8": layers["f32"]}


def test_placement_shows_that_a_cpu_computes_fp16_in_fp32(residual: Model, tmp_path: Path) -> None:
    assert set(precisions(residual, Graph.FP16, tmp_path)) == {"f32"}


def test_placement_counts_dynamic_layers(attention: Model, tmp_path: Path) -> None:
    found = precisions(attention, Graph.DYNAMIC, tmp_path)
    assert found["i8"] >= 4  # its four linear layers


def test_nodes_on_the_cpu_are_a_fallback_with_their_operators_named() -> None:
    ran = [(GPU, "Conv"), (GPU, "Relu"), (CPU, "NonZero"), (CPU, "Shape"), (CPU, "Shape")]
    kernels = [Kernel(*node) for node in (*ran, (GPU, "MemcpyToHost"))]
    placement = place(kernels, {}, GPU, [GPU, CPU], "cuda")
    assert placement.fell_back
    assert placement.nodes == {GPU: 2, CPU: 3}
    assert placement.copies == 1
    assert f"3 of 5 nodes ran on {CPU}: 2 Shape, 1 NonZero." in placement.detail


def test_a_provider_that_the_session_dropped_is_a_fallback() -> None:
    placement = place([Kernel(CPU, "Conv")], {}, GPU, [CPU], "cuda")
    assert placement.fell_back
    assert f"dropped {GPU}" in placement.detail


def test_a_compiled_subgraph_counts_as_the_nodes_it_stands_for() -> None:
    ran = [Kernel(OPENVINO, f"{OPENVINO}_Conv_0", ("float",)), Kernel(CPU, "NonZero")]
    placement = place(ran, {OPENVINO: 40, CPU: 1}, OPENVINO, [OPENVINO, CPU], "cpu")
    assert placement.nodes == {OPENVINO: 40, CPU: 1}
    assert "compiled 40 nodes into 1" in placement.detail
    assert "1 of 41 nodes" in placement.detail
    assert placement.precisions == {}, "a compiled subgraph does not tell"


def test_a_profile_gives_provider_and_operator_of_each_node(
    residual: Model, tmp_path: Path
) -> None:
    session = compiled(residual).recipe.open(
        enable_profiling=True, profile_file_prefix=str(tmp_path / "p")
    )
    for _ in range(2):  # twice the same nodes
        session.run(None, random_feeds(residual, 1, 0))
    ran = read_profile(Path(session.end_profiling()))
    assert {kernel.provider for kernel in ran} == {CPU}
    assert {word for k in ran if k.operator == "Conv" for word in k.inputs} == {"float"}
    assert len(ran) < len(onnx.load(residual.onnx_path).graph.node)


# What is saved


def test_the_optimised_graph_is_what_is_saved(residual: Model, tmp_path: Path) -> None:
    feeds = random_feeds(residual, 3, 0)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with compiled(residual) as session:
        BACKEND.save(session, first)
        expected, nodes = session.run(feeds), session.placement(feeds).nodes
    with BACKEND.load(first, residual, row(), target(residual)) as loaded:
        assert loaded.recipe.graph.parent == first
        assert_close(loaded.run(feeds), expected, 1e-6, "loaded")
        assert loaded.placement(feeds).nodes == nodes
        BACKEND.save(loaded, second)
    assert [f.read_bytes() for f in second.iterdir()] == [f.read_bytes() for f in first.iterdir()]


def test_an_empty_directory_means_compile(residual: Model, tmp_path: Path) -> None:
    with BACKEND.load(tmp_path, residual, row(), target(residual)) as session:
        assert session.recipe.graph == residual.onnx_path


# Silence


def test_warnings_are_spoken_once_by_the_placement(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = one_node(tmp_path, "Relu", initializers=[("unused", np.zeros(3, np.float32))])
    feeds = {"x": np.ones((3, 4), np.float32)}
    with BACKEND.compile(model, row(), Target(profile=Profile.fixed({"batch": 3}))) as session:
        session.run(feeds)
        assert capfd.readouterr().err == ""
        session.placement(feeds)
    assert "Removing initializer 'unused'" in capfd.readouterr().err
