"""TensorRT: real engines built without a GPU, honest words where none can run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance import BATCH, assert_close, assert_repeatable, converted, target
from one_node import one_node
from peregrine.backends import registry
from peregrine.backends._trt_engine import build_engine, installed_module
from peregrine.backends.tensorrt import TensorRtBackend, nvidia_driver
from peregrine.errors import BackendUnavailable, OptionError, Unsupported
from peregrine.harness.cuda_events import time_by_events
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, DimRange, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from small_models import SMALL

if not installed_module():
    pytest.skip("TensorRT is not installed", allow_module_level=True)

BACKEND = TensorRtBackend()
FP32 = Candidate("tensorrt")
AS_WRITTEN = Candidate("onnxruntime", "CPUExecutionProvider", options={"optimization": "disabled"})
THREE = Target(profile=Profile.fixed({"batch": 3}))
FIVE = Target(profile=Profile({"batch": DimRange(1, 3, 5)}))
no_gpu = pytest.mark.skipif(bool(nvidia_driver()), reason="there is a GPU here")

# TensorRT-RTX 1.5 computes fp32 convolutions in TF32 whatever the builder's flag says: on an H200
# ResNet-18 was off by 8e-4 of the reference's norm, which a race's validation calls invalid.
_TOLERANCE = 1e-2


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("fixed", [True, False])
def test_every_small_model_becomes_an_engine(name: str, fixed: bool, tmp_path: Path) -> None:
    model = SMALL[name]().load(tmp_path)
    assert len(build_engine(model, FP32, target(model, fixed))) > 10_000


def test_tf32_is_a_precision_of_its_own(residual: Model) -> None:
    aim = Target("cuda:0", target(residual).profile)
    precisions = [c.precision for c in BACKEND.candidates(residual, aim)]
    assert precisions[:2] == [Precision.FP32, Precision.TF32]
    assert len(build_engine(residual, Candidate("tensorrt", precision=Precision.TF32), aim)) > 0


def test_each_precision_reads_its_own_graph(residual: Model) -> None:
    rows = {str(c.precision): c.graph for c in BACKEND.candidates(residual, Target("cuda:0"))}
    assert rows == {
        "fp32": "",
        "tf32": "",
        "fp16": "fp16",
        "bf16": "bf16",
        "fp8": "fp8",
        "int8": "s8s8",
    }
    # Without a GPU one row says why nothing runs; the others would say the same.
    assert [c.id for c in BACKEND.candidates(residual, Target())] == ["tensorrt fp32"]


@pytest.mark.parametrize("graph", [Graph.FP16, Graph.BF16, Graph.FP8])
def test_a_graph_in_lower_precision_becomes_an_engine(
    residual: Model, graph: Graph, tmp_path: Path
) -> None:
    model = converted(residual, graph, tmp_path)
    assert len(build_engine(model, in_precision(graph), target(residual))) > 10_000


@pytest.mark.skipif(installed_module() == "tensorrt", reason="full TensorRT has INT8")
def test_int8_convolutions_are_refused_in_plain_words(residual: Model, tmp_path: Path) -> None:
    model = converted(residual, Graph.S8S8, tmp_path)
    with pytest.raises(Unsupported, match="does not compute convolutions in INT8") as raised:
        build_engine(model, in_precision(Graph.S8S8), target(residual))
    assert "FP8E4M3" in raised.value.why
    assert "fp8" in raised.value.fix


@no_gpu
def test_without_a_gpu_it_builds_and_says_so(residual: Model) -> None:
    assert BACKEND.available()
    with pytest.raises(BackendUnavailable, match=r"built an engine.*MB in .* s") as raised:
        BACKEND.compile(residual, FP32, target(residual))
    assert "driver" in raised.value.why
    assert "GPU" in raised.value.fix


@no_gpu
def test_a_saved_engine_is_not_loaded_without_a_gpu(residual: Model, tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(build_engine(residual, FP32, target(residual)))
    with pytest.raises(BackendUnavailable, match="cannot run the saved engine"):
        BACKEND.load(tmp_path, residual, FP32, target(residual))


@pytest.mark.parametrize("domain", ["", "com.acme"])
def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path, domain: str) -> None:
    with pytest.raises(Unsupported, match="Frobnicate") as raised:
        build_engine(one_node(tmp_path, "Frobnicate", domain=domain), FP32, THREE)
    assert "the_node" in raised.value.why
    assert raised.value.fix


def test_options_and_precisions_are_checked(residual: Model) -> None:
    with pytest.raises(OptionError):
        BACKEND.compile(residual, Candidate("tensorrt", options={"x": 1}), target(residual))
    with pytest.raises(Unsupported, match="no int8 from an fp32 graph"):
        build_engine(residual, Candidate("tensorrt", precision=Precision.INT8), target(residual))
    with pytest.raises(OptionError, match="the graph fp16"):
        build_engine(residual, in_precision(Graph.FP16), target(residual))


def in_precision(graph: Graph) -> Candidate:
    return Candidate("tensorrt", precision=graph.precision, graph=graph)


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [Graph.FP16, Graph.BF16, Graph.FP8])
def test_an_engine_in_lower_precision_is_near(
    residual: Model, graph: Graph, tmp_path: Path
) -> None:
    model = converted(residual, graph, tmp_path)
    feeds = random_feeds(residual, BATCH, 0)
    cpu = registry.get("onnxruntime")
    with cpu.compile(residual, AS_WRITTEN, target(residual)) as reference:
        expected = reference.run(feeds)
    aim = Target("cuda:0", target(residual).profile)
    with BACKEND.compile(model, in_precision(graph), aim) as session:
        limit = DEFAULTS[graph.precision].scaled_error
        assert_close(session.run(feeds), expected, limit, graph)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_cuda_graph_computes_what_single_launches_do(residual: Model, cuda_graph: bool) -> None:
    cpu = registry.get("onnxruntime")
    candidate = Candidate("tensorrt", options={"cuda_graph": cuda_graph})
    with (
        cpu.compile(residual, AS_WRITTEN, target(residual)) as reference,
        BACKEND.compile(residual, candidate, Target("cuda:0", FIVE.profile)) as session,
    ):
        assert_repeatable(session, reference, residual, _TOLERANCE)
        detail = session.placement(random_feeds(residual, 3, 5)).detail
    assert detail == ("Replayed as one CUDA graph." if cuda_graph else "")


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_it_shows_the_stream_that_inferences_run_on(residual: Model, cuda_graph: bool) -> None:
    """A replayed graph runs on PyTorch's own stream, single launches on the session's."""
    import torch

    candidate = Candidate("tensorrt", options={"cuda_graph": cuda_graph})
    aim = Target("cuda:0", target(residual).profile)
    with BACKEND.compile(residual, candidate, aim) as session:
        feeds = random_feeds(residual, BATCH, 0)
        for _ in range(3):
            session.run(feeds)
        pytorchs = torch.cuda.current_stream(aim.device).cuda_stream
        assert (session.cuda_stream() == pytorchs) is cuda_graph
        times = time_by_events(session, runs=20, max_s=2.0)
    assert times is not None
    assert len(times) == 20
    assert min(times) > 0


@pytest.mark.gpu
@pytest.mark.skipif(installed_module() == "tensorrt", reason="full TensorRT's engines hold them")
@pytest.mark.parametrize("profile", [THREE.profile, FIVE.profile], ids=["fixed", "range"])
def test_kernels_compiled_at_run_time_come_back(
    residual: Model, profile: Profile, tmp_path: Path
) -> None:
    aim = Target("cuda:0", profile)
    feeds = random_feeds(residual, 3, 0)
    with BACKEND.compile(residual, FP32, aim) as session:
        for _ in range(3):
            expected = session.run(feeds)
        BACKEND.save(session, tmp_path)
    assert (tmp_path / "kernels.bin").stat().st_size > 0
    with BACKEND.load(tmp_path, residual, FP32, aim) as session:
        # Before any inference. A process that compiled them may hold them elsewhere as well, so
        # that a load without the file is no comparison.
        assert len(session.compiled_kernels()) > 0
        for _ in range(3):
            assert_close(session.run(feeds), expected, 1e-6, "with its kernels")


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [b"", b"no kernels"], ids=["none", "damaged"])
def test_an_engine_runs_without_its_kernels(
    residual: Model, kernels: bytes, tmp_path: Path
) -> None:
    aim = Target("cuda:0", THREE.profile)
    feeds = random_feeds(residual, 3, 0)
    with BACKEND.compile(residual, FP32, aim) as session:
        expected = session.run(feeds)
        BACKEND.save(session, tmp_path)
    (tmp_path / "kernels.bin").write_bytes(kernels)
    with BACKEND.load(tmp_path, residual, FP32, aim) as session:
        assert_close(session.run(feeds), expected, _TOLERANCE, "without kernels")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SMALL)
def test_an_engine_computes_what_the_graph_says(name: str, tmp_path: Path) -> None:
    if not nvidia_driver():
        pytest.skip(nvidia_driver().reason)
    model = SMALL[name]().load(tmp_path / "model")
    cpu = registry.get("onnxruntime")
    aim = Target("cuda:0", target(model).profile)
    feeds = random_feeds(model, BATCH, 0)
    with cpu.compile(model, AS_WRITTEN, target(model)) as reference:
        expected = reference.run(feeds)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    with BACKEND.compile(model, FP32, aim) as session:
        assert_close(session.run(feeds), expected, _TOLERANCE, name)
        assert session.placement(feeds).nodes["TensorRT"] > 0
        BACKEND.save(session, artifact)
    with BACKEND.load(artifact, model, FP32, aim) as session:
        assert_close(session.run(feeds), expected, _TOLERANCE, name)
