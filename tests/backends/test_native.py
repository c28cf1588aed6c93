"""The native engine as a backend: sizes, kept engines, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from one_node import one_node
from peregrine.backends.native import NativeBackend, NativeSession
from peregrine.backends.onnxruntime import OnnxRuntimeBackend
from peregrine.errors import BackendUnavailable, FeedError, Unsupported
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, DimRange, Precision, Profile, Target
from small_models import SMALL

FP32 = Candidate("native")


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["residual"]().load(tmp_path_factory.mktemp("residual"))


def target(model: Model, low: int = 2, high: int = 2) -> Target:
    return Target(profile=Profile({model.batch: DimRange(low, low, high)}))


def test_a_size_of_a_range_gets_its_plan_when_it_is_first_fed(residual: Model) -> None:
    backend = NativeBackend()
    with backend.compile(residual, FP32, target(residual, 1, 7)) as session:
        assert isinstance(session, NativeSession)
        assert [low.plan.dims for low in session.lowered] == [{residual.batch: 1}]
        for batch in (1, 5, 2, 3, 4, 6, 7, 1):
            feeds = random_feeds(residual, batch, batch)
            alone = {name: value[-1:] for name, value in feeds.items()}
            together = session.run(feeds)
            for name, value in session.run(alone).items():
                np.testing.assert_allclose(together[name][-1:], value, rtol=1e-4, atol=1e-5)
        assert len(session.lowered) == 7
        with pytest.raises(FeedError):
            session.run(random_feeds(residual, 8, 0))


def test_a_saved_engine_needs_no_graph(residual: Model, tmp_path: Path) -> None:
    backend = NativeBackend()
    feeds = random_feeds(residual, 2, 3)
    with backend.compile(residual, FP32, target(residual)) as session:
        backend.save(session, tmp_path)
        expected = session.run(feeds)
    gone = Model.open(residual.directory)
    object.__setattr__(gone, "directory", tmp_path / "nowhere")
    with backend.load(tmp_path, gone, FP32, target(residual)) as loaded:
        for name, value in loaded.run(feeds).items():
            np.testing.assert_array_equal(value, expected[name])


def test_an_engine_loads_without_a_kernel_that_cannot_be_restored(
    residual: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    backend, feeds = NativeBackend(), random_feeds(residual, 2, 4)
    with backend.compile(residual, FP32, target(residual)) as session:
        # A CPU's engine has none of its own.
        monkeypatch.setattr(session, "compiled_kernels", lambda: {"ABC/k.json": b"no JSON"})
        backend.save(session, tmp_path / "engine")
        expected = session.run(feeds)
    with backend.load(tmp_path / "engine", residual, FP32, target(residual)) as loaded:
        assert "Compiled again: 1 of the engine's kernels" in loaded.placement(feeds).detail
        for name, value in loaded.run(feeds).items():
            np.testing.assert_array_equal(value, expected[name])


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    model = one_node(tmp_path, "NoSuchThing", domain="elsewhere")
    support = NativeBackend().supports(model, Target())
    assert not support
    assert "elsewhere.NoSuchThing" in support.reason
    assert support.fix
    with pytest.raises(Unsupported, match="NoSuchThing"):
        NativeBackend().compile(model, FP32, Target(profile=Profile.fixed({"batch": 2})))


def test_a_precision_that_a_cpu_has_no_kernels_for_is_refused(residual: Model) -> None:
    half = Candidate("native", precision=Precision.FP16)
    with pytest.raises(Unsupported, match="fp16"):
        NativeBackend().compile(residual, half, target(residual))


def test_a_cuda_target_without_a_driver_says_so(residual: Model) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    cuda = Target("cuda:0", Profile.fixed({residual.batch: 2}))
    support = NativeBackend().supports(residual, cuda)
    assert not support
    assert "driver" in support.reason
    with pytest.raises(BackendUnavailable):
        NativeBackend().compile(residual, FP32, cuda)


def test_the_placement_tells_the_tactics(residual: Model) -> None:
    with NativeBackend().compile(residual, FP32, target(residual)) as session:
        placement = session.placement(random_feeds(residual, 2, 0))
    assert set(placement.nodes) == {"torch_ops"}
    assert not placement.fell_back


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 5])
def test_on_a_gpu(residual: Model, precision: str, batch: int, tmp_path: Path) -> None:
    from peregrine.thresholds import DEFAULTS

    candidate = Candidate("native", precision=Precision(precision))
    cuda = Target("cuda:0", Profile.fixed({residual.batch: batch}))
    backend = NativeBackend()
    with OnnxRuntimeBackend().compile(
        residual,
        Candidate("onnxruntime", "CPUExecutionProvider"),
        Target(profile=Profile.fixed({residual.batch: batch})),
    ) as session:
        feeds = random_feeds(residual, batch, 7)
        expected = session.run(feeds)
    with backend.compile(residual, candidate, cuda) as session:
        assert isinstance(session, NativeSession)
        for _ in range(5):
            outputs = session.run(feeds)
        assert session.executable.is_captured, session.executable.detail
        backend.save(session, tmp_path)
    with backend.load(tmp_path, residual, candidate, cuda) as loaded:
        again = loaded.run(feeds)
    for name, reference in expected.items():
        for found in (outputs[name], again[name]):
            error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
            assert error <= DEFAULTS[Precision(precision)].scaled_error
