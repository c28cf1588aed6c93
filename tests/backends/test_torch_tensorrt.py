"""Torch-TensorRT: what it asks for, what it says without a GPU, and what its graphs hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import small_models
from conformance import scaled_error
from peregrine.backends._nvidia import nvidia_driver
from peregrine.backends._torch_export import export
from peregrine.backends.torch_tensorrt import TorchTensorRtBackend, census
from peregrine.errors import BackendUnavailable, OptionError, Unsupported
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, DimRange, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from torch_model import bare_outputs, odd_torch_model, small_torch_model

BACKEND = TorchTensorRtBackend()
FP32 = Candidate("torch_tensorrt")
GPU = Target("cuda:0", Profile.fixed({"batch": 3}))
RANGE = Target("cuda:0", Profile({"batch": DimRange(1, 4, 8)}))

no_driver = pytest.mark.skipif(bool(nvidia_driver()), reason="there is a GPU here")
runs = pytest.mark.skipif(not BACKEND.available(), reason=BACKEND.available().reason)


def test_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)  # Python's way to block an import
    support = BACKEND.available()
    assert not support
    assert "not installed" in support.reason
    assert "env create torch-tensorrt-rtx" in support.fix


@no_driver
def test_installed_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package(tmp_path, monkeypatch, "raise RuntimeError('not to be imported without a driver')")
    support = BACKEND.available()
    assert not support
    assert "driver" in support.reason
    assert support.fix


def package(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (directory / "torch_tensorrt").mkdir()
    (directory / "torch_tensorrt" / "__init__.py").write_text(code)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(directory))


def test_a_package_that_does_not_import_names_the_clash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peregrine.backends import torch_tensorrt

    clash = "raise AttributeError('tensorrt has no attribute IAlgorithmSelector')"
    package(tmp_path, monkeypatch, clash)
    with pytest.raises(BackendUnavailable, match="does not import") as raised:
        torch_tensorrt.PACKAGE.load()
    assert "IAlgorithmSelector" in raised.value.why
    assert "env create" in raised.value.fix


def test_rows_of_every_precision_with_and_without_a_cuda_graph(tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    assert BACKEND.supports(model, GPU)
    ids = [c.id for c in BACKEND.candidates(model, GPU)]
    assert len(set(ids)) == len(ids) == 8
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        assert f"torch_tensorrt {precision}" in ids
        assert f"torch_tensorrt {precision} cuda_graph" in ids
    later = [c for c in BACKEND.candidates(model, GPU) if BACKEND.refines(c, GPU)]
    assert [c for c in later if c.options.get("cuda_graph")] == []
    assert len(later) == 4
    assert [c.id for c in BACKEND.candidates(model, Target())] == ["torch_tensorrt fp32"]


def test_a_cpu_cannot_run_it(tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(BackendUnavailable, match="cannot run on cpu") as raised:
        BACKEND.compile(model, FP32, Target(profile=GPU.profile))
    assert raised.value.why
    assert raised.value.fix == "--device cuda"


@no_driver
def test_without_a_driver_it_says_so(tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    (tmp_path / "torch_tensorrt.pt2").touch()
    for attempt in (
        lambda: BACKEND.compile(model, FP32, GPU),
        lambda: BACKEND.load(tmp_path, model, FP32, GPU),
    ):
        with pytest.raises(BackendUnavailable, match="cannot run here") as raised:
            attempt()
        assert "driver" in raised.value.why
        assert raised.value.fix


@pytest.mark.parametrize(
    "options",
    [{"x": 1}, {"min_block_size": 0}, {"min_block_size": True}, {"workspace_mb": -1}],
)
def test_options_are_checked(options: dict[str, int], tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(OptionError) as raised:
        BACKEND.compile(model, Candidate("torch_tensorrt", options=options), GPU)
    assert raised.value.fix


def test_int8_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(Unsupported, match="does not run int8"):
        BACKEND.compile(model, Candidate("torch_tensorrt", precision=Precision.INT8), GPU)


@pytest.mark.parametrize("name", ["conv", "int_input", "attention"])
def test_the_program_that_it_gets_is_open_in_the_profiles_ranges(name: str, tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, name)
    module = small_models.SMALL[name]().module
    ranges = {**{n: DimRange(s, s, s) for n, s in model.sizes(4).items()}, **RANGE.profile.dims}
    program = export(module, model, Precision.FP32, Target(profile=Profile(ranges)))
    for batch in (1, 3, 8):
        feeds = random_feeds(model, batch, seed=batch)
        found = program.module()(*(torch.from_numpy(feeds[s.name]) for s in model.inputs))
        expected = bare_outputs(module, model, feeds)
        outputs = found if isinstance(found, tuple) else (found,)
        for spec, output in zip(model.outputs, outputs, strict=True):
            assert scaled_error(output.detach().numpy(), expected[spec.name]) < 1e-5


class TorchTensorRTModule(nn.Module):
    """Stands where Torch-TensorRT puts an engine, under the name of its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Partitioned(nn.Module):
    """As a partitioner leaves it: an engine, operators of PyTorch, another engine."""

    def __init__(self, *, computes: bool) -> None:
        super().__init__()
        self.first, self.second = TorchTensorRTModule(), TorchTensorRTModule()
        self.computes = computes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.aten.clone.default(self.first(x))
        if self.computes:
            y = torch.ops.aten.mm.default(torch.ops.aten.cumsum.default(y, 0), y)
        return self.second(y)


class Engines(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TorchTensorRTModule)


def partitioned(*, computes: bool) -> torch.fx.GraphModule:
    root = Partitioned(computes=computes)
    return torch.fx.GraphModule(root, Engines().trace(root))


def test_operators_that_compute_in_pytorch_are_a_fallback() -> None:
    placed = census(partitioned(computes=True), GPU)
    assert placed.nodes == {"TensorRT": 2, "cuda:0": 3}
    assert placed.fell_back
    assert placed.detail == "2 operators are left to PyTorch: cumsum (1), mm (1)."
    assert placed.proof


def test_copies_between_engines_are_none() -> None:
    placed = census(partitioned(computes=False), GPU)
    assert placed.nodes == {"TensorRT": 2, "cuda:0": 1}
    assert not placed.fell_back
    assert placed.detail == ""


def test_a_graph_without_an_engine_is_all_pytorchs(tmp_path: Path) -> None:
    model = small_torch_model(tmp_path, "conv")
    module = small_models.SMALL["conv"]().module
    target = Target(profile=Profile.fixed(model.sizes(3)))
    placed = census(export(module, model, Precision.FP32, target).module(), target)
    assert "TensorRT" not in placed.nodes
    assert placed.fell_back
    assert "conv2d" in placed.detail


def session_target(model: Model, fixed: bool) -> Target:
    ranges = {name: DimRange(s, s, s) for name, s in model.sizes(3).items()}
    if not fixed:
        ranges["batch"] = DimRange(1, 4, 8)
    return Target("cuda:0", Profile(ranges))


@pytest.mark.gpu
@runs
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("name", ["conv", "residual", "attention"])
def test_on_a_gpu(name: str, fixed: bool, tmp_path: Path) -> None:
    """Every row is right, comes back from what it saved, and counts its engines there too."""
    model = small_torch_model(tmp_path, name)
    module = small_models.SMALL[name]().module
    target = session_target(model, fixed)
    feeds = [random_feeds(model, batch, seed=batch) for batch in ((3, 3) if fixed else (4, 1, 8))]
    for i, candidate in enumerate(BACKEND.candidates(model, target)):
        built = BACKEND.compile(model, candidate, target)
        placed = built.placement(feeds[0])
        assert placed.nodes["TensorRT"] >= 1
        kept = tmp_path / str(i)
        kept.mkdir()
        BACKEND.save(built, kept)
        assert (kept / "torch_tensorrt.pt2").exists()
        loaded = BACKEND.load(kept, model, candidate, target)
        assert loaded.placement(feeds[0]).nodes["TensorRT"] == placed.nodes["TensorRT"]
        # TensorRT-RTX computes fp32 convolutions in TF32 whatever it is told.
        limit = max(DEFAULTS[candidate.precision].scaled_error, 1e-2)
        for session in (built, loaded):
            outputs = [session.run(f) for f in feeds]
            for fed, found in zip(feeds, outputs, strict=True):
                for output, expected in bare_outputs(module, model, fed).items():
                    assert scaled_error(found[output], expected) < limit, candidate.id
            session.close()


@pytest.mark.gpu
@runs
def test_what_does_not_export_is_refused_on_a_gpu(tmp_path: Path) -> None:
    model = odd_torch_model(tmp_path, "branches")
    with pytest.raises(Unsupported, match="cannot compile branches") as raised:
        BACKEND.compile(model, FP32, GPU)
    assert raised.value.why
    assert raised.value.fix
