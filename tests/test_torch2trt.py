"""The plugin for torch2trt: found by its entry point, asks for what torch2trt takes, says what is
missing."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import peregrine_torch2trt
import small_models
from conformance import scaled_error
from peregrine.backends._nvidia import nvidia_driver
from peregrine.errors import BackendUnavailable, OptionError, Unsupported
from peregrine.model.inputs import random_feeds
from peregrine.types import Candidate, DimRange, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from peregrine_torch2trt import Torch2TrtBackend, arguments
from torch_model import bare_outputs, small_torch_model

PLUGIN = Path(__file__).parents[1] / "plugins" / "torch2trt"
BACKEND = Torch2TrtBackend()
TF32 = Candidate("torch2trt", precision=Precision.TF32)
GPU = Target("cuda:0", Profile.fixed({"batch": 3}))
RANGE = Target("cuda:0", Profile({"batch": DimRange(1, 4, 8)}))

no_driver = pytest.mark.skipif(bool(nvidia_driver()), reason="there is a GPU here")
runs = pytest.mark.skipif(not BACKEND.available(), reason=BACKEND.available().reason)


def test_its_entry_point_names_the_backend():
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["peregrine.backends"].items()
    assert EntryPoint(name, value, "peregrine.backends").load() is Torch2TrtBackend
    assert name == Torch2TrtBackend.name
    root = tomllib.loads((PLUGIN.parents[1] / "pyproject.toml").read_text())["project"]
    assert f"{root['name']}=={root['version']}" in project["dependencies"]


def test_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch2trt", None)  # Python's way to block an import
    support = BACKEND.available()
    assert "not installed" in support.reason
    assert "github.com/NVIDIA-AI-IOT/torch2trt" in support.fix


def test_a_package_that_does_not_import_names_the_clash(monkeypatch, tmp_path):
    (tmp_path / "torch2trt.py").write_text("raise ImportError('no module named tensorrt')")
    monkeypatch.delitem(sys.modules, "torch2trt", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendUnavailable, match="does not import") as raised:
        peregrine_torch2trt.PACKAGE.load()
    assert "no module named tensorrt" in raised.value.why


def test_rows_of_the_precisions_that_it_has(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    assert BACKEND.supports(model, GPU)
    rows = list(BACKEND.candidates(model, GPU))
    assert [c.id for c in rows if not BACKEND.refines(c, GPU)] == [
        "torch2trt tf32 cuda_graph",
        "torch2trt fp16 cuda_graph",
    ]
    assert [c.id for c in rows if BACKEND.refines(c, GPU)] == ["torch2trt tf32", "torch2trt fp16"]
    assert [c.id for c in BACKEND.candidates(model, Target())] == ["torch2trt fp32"]


def test_what_it_asks_for_is_of_the_model_and_the_profile(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    fixed = arguments(model, Precision.FP16, GPU)
    assert fixed["fp16_mode"]
    assert fixed["input_names"] == [spec.name for spec in model.inputs]
    assert fixed["output_names"] == [spec.name for spec in model.outputs]
    assert "min_shapes" not in fixed
    between = arguments(model, Precision.TF32, RANGE)
    assert not between["fp16_mode"]
    shapes = [between[f"{edge}_shapes"] for edge in ("min", "opt", "max")]
    assert [[shape[0] for shape in each] for each in shapes] == [[1], [4], [8]]
    assert {each[0][1:] for each in shapes} == {model.inputs[0].resolve({"batch": 1})[1:]}


def test_a_cpu_cannot_run_it(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(BackendUnavailable, match="cannot run on cpu") as raised:
        BACKEND.compile(model, Candidate("torch2trt"), Target(profile=GPU.profile))
    assert raised.value.fix == "--device cuda"


@no_driver
def test_without_a_driver_it_says_so(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    (tmp_path / "engine.plan").touch()
    for attempt in (
        lambda: BACKEND.compile(model, TF32, GPU),
        lambda: BACKEND.load(tmp_path, model, TF32, GPU),
    ):
        with pytest.raises(BackendUnavailable, match="cannot run here") as raised:
            attempt()
        assert "driver" in raised.value.why


def test_options_and_precisions_are_checked(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(OptionError):
        BACKEND.compile(model, Candidate("torch2trt", "", Precision.FP16, {"x": 1}), GPU)
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
        with pytest.raises(Unsupported, match=f"does not run {precision}") as raised:
            BACKEND.compile(model, Candidate("torch2trt", precision=precision), GPU)
        assert "tf32, fp16" in raised.value.fix


@pytest.mark.gpu
@runs
@pytest.mark.parametrize("target", [GPU, RANGE], ids=["fixed", "range"])
def test_on_a_gpu(target, tmp_path):
    """Every row is right, and comes back from what it saved."""
    model = small_torch_model(tmp_path, "conv")
    module = small_models.SMALL["conv"]().module
    feeds = [random_feeds(model, n, n) for n in ((3, 3) if target is GPU else (4, 1, 8))]
    for number, candidate in enumerate(BACKEND.candidates(model, target)):
        kept = tmp_path / str(number)
        kept.mkdir()
        with BACKEND.compile(model, candidate, target) as built:
            assert built.placement(feeds[0]).nodes["TensorRT"] > 0
            BACKEND.save(built, kept)
            with BACKEND.load(kept, model, candidate, target) as loaded:
                limit = DEFAULTS[candidate.precision].scaled_error
                for session in (built, loaded):
                    for fed in feeds:
                        outputs = session.run(fed)
                        for name, expected in bare_outputs(module, model, fed).items():
                            assert scaled_error(outputs[name], expected) < limit, candidate.id
