"""The native engine on real networks of all kinds, in every precision the device has, against the
graph as written by ONNX Runtime on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conformance import SEED, Reference, assert_close, target
from peregrine.backends import registry
from peregrine.backends.native import NativeBackend, NativeSession
from peregrine.model.inputs import InputSpec, random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.thresholds import DEFAULTS
from peregrine.types import Candidate, Precision, TensorSpec
from real_networks import AS_WRITTEN, NETWORKS, load_network
from small_models import Attention

BATCH = 3


class Encoder(nn.Module):
    """A BERT-like encoder: six blocks of six heads and width 384, ids to one vector a token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, 384), nn.Embedding(64, 384)
        self.norm = nn.LayerNorm(384)
        self.blocks = nn.Sequential(*(Attention(384, 6) for _ in range(6)))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.blocks(self.norm(self.words(ids) + self.places(places)))


@pytest.fixture(scope="module", params=[*NETWORKS, "encoder"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "encoder":
        torch.manual_seed(0)
        ids = InputSpec(TensorSpec("ids", "int64", ("batch", 48)), (0, 1000))
        return load(Encoder().eval(), directory, inputs=[ids], name="encoder")
    return load_network(request.param, directory)


def assert_right(model: Model, device: str, precision: Precision, engine: Path) -> None:
    """As built and as loaded again, over new inputs, launched one by one and as a CUDA graph."""
    backend = NativeBackend()
    aim = replace(target(model), device=device)
    candidate = Candidate("native", precision=precision)
    limit = DEFAULTS[precision].scaled_error
    with registry.get("onnxruntime").compile(model, AS_WRITTEN, target(model)) as exact:
        with backend.compile(model, candidate, aim) as built:
            backend.save(built, engine)
            assert_runs_right(built, exact.run, model, limit)
        with backend.load(engine, model, candidate, aim) as loaded:
            assert_runs_right(loaded, exact.run, model, limit)


def assert_runs_right(
    session: NativeSession, reference: Reference, model: Model, limit: float
) -> None:
    for salt in range(6):
        feeds = random_feeds(model, BATCH, SEED + salt)
        assert_close(session.run(feeds), reference(feeds), limit, f"run {salt}")


def test_on_a_cpu(model: Model, tmp_path: Path) -> None:
    assert_right(model, "cpu", Precision.FP32, tmp_path)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", [Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16]
)
def test_on_a_gpu(model: Model, precision: Precision, tmp_path: Path) -> None:
    assert_right(model, "cuda:0", precision, tmp_path)
