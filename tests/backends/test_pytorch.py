"""Eager PyTorch against the bare module: right, no copies of feeds, outputs the caller's own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import odd_modules
import small_models
from conformance import scaled_error
from peregrine.backends import _torch
from peregrine.backends.base import Session
from peregrine.backends.pytorch import PyTorchBackend
from peregrine.errors import BackendUnavailable, FeedError, OptionError, Unsupported, UsageError
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from torch_model import bare_outputs, odd_torch_model, small_torch_model

BACKEND = PyTorchBackend()
EAGER = Candidate("pytorch", "eager")
RECORDED = Candidate("pytorch", "eager", options={"cuda_graph": True})


def target_of(model: Model, batch: int = 2) -> Target:
    return Target(profile=Profile.fixed(model.sizes(batch)))


def open_odd(directory, name: str) -> tuple[Model, Session]:
    model = odd_torch_model(directory, name)
    return model, BACKEND.compile(model, EAGER, target_of(model))


@pytest.mark.parametrize("name", small_models.SMALL)
def test_agrees_with_the_module(name, tmp_path):
    model = small_torch_model(tmp_path, name)
    module = small_models.SMALL[name]().module
    for candidate in BACKEND.candidates(model, target_of(model)):
        if candidate.precision is not Precision.FP32:
            continue  # test_lower_precisions_on_a_cpu
        with BACKEND.compile(model, candidate, target_of(model)) as session:
            for seed, batch in enumerate((1, 3, 7)):
                feeds = random_feeds(model, batch, seed=seed)
                assert session.profile.covers(model.sizes(batch))
                expected = bare_outputs(module, model, feeds)
                outputs = session.run(feeds)
                assert list(outputs) == [spec.name for spec in model.outputs]
                for spec in model.outputs:
                    assert outputs[spec.name].dtype.name == spec.dtype
                    np.testing.assert_allclose(
                        outputs[spec.name], expected[spec.name], rtol=1e-4, atol=1e-6
                    )


def test_channels_last_only_for_images(tmp_path):
    def variants(name: str, device: str = "cpu") -> list[tuple[str, str]]:
        model = small_torch_model(tmp_path / f"{name}-{device[:4]}", name)
        target = dataclasses.replace(target_of(model), device=device)
        offered = BACKEND.candidates(model, target)
        return [(c.variant, str(c.precision)) for c in offered if not c.options]

    assert variants("conv") == [
        ("channels_last", "fp32"),
        ("eager", "fp32"),
        ("channels_last", "bf16"),
        ("channels_last", "fp16"),
    ]
    assert variants("lstm") == [("eager", "fp32"), ("eager", "bf16"), ("eager", "fp16")]
    on_gpu = variants("int_input", "cuda:0")
    assert on_gpu == [("eager", p) for p in ("fp32", "tf32", "fp16", "bf16")]


def test_on_cuda_each_precision_has_a_row_with_a_cuda_graph(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    recorded = [
        (c.variant, str(c.precision))
        for c in BACKEND.candidates(model, Target("cuda:0"))
        if c.options.get("cuda_graph")
    ]
    assert recorded == [
        ("eager", "fp32"),
        ("channels_last", "tf32"),
        ("channels_last", "fp16"),
        ("channels_last", "bf16"),
    ]
    assert not any(c.options for c in BACKEND.candidates(model, target_of(model)))
    gpu = Target("cuda:0")
    always = [c for c in BACKEND.candidates(model, gpu) if not BACKEND.refines(c, gpu)]
    assert len(always) == len(recorded) + 1
    assert Candidate("pytorch", "eager") in always  # what all are measured by


def test_a_cuda_graph_is_no_option_of_a_cpu(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(OptionError, match="no CUDA graphs on cpu") as raised:
        BACKEND.compile(model, RECORDED, target_of(model))
    assert "cuda_graph" in raised.value.fix


def test_channels_last_changes_the_layout(tmp_path):
    model = small_torch_model(tmp_path, "depthwise")
    layouts = {}
    for variant in ("channels_last", "eager"):
        session = BACKEND.compile(model, Candidate("pytorch", variant), target_of(model))
        session.run(random_feeds(model, 2, seed=0))
        layouts[variant] = session._result.is_contiguous(memory_format=torch.channels_last)
    assert layouts == {"channels_last": True, "eager": False}


@pytest.mark.parametrize("name", ["conv", "depthwise", "lstm", "attention", "int_input"])
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_lower_precisions_on_a_cpu(name, precision, tmp_path):
    """Near the module, not equal to it, and every layer with weights computes in 16 bits."""
    model = small_torch_model(tmp_path, name)
    feeds = random_feeds(model, 3, seed=0)
    expected = bare_outputs(small_models.SMALL[name]().module, model, feeds)
    limit = DEFAULTS[precision].scaled_error
    rows = [c for c in BACKEND.candidates(model, target_of(model)) if c.precision is precision]
    assert rows
    for candidate in rows:
        with BACKEND.compile(model, candidate, target_of(model, 3)) as session:
            outputs = session.run(feeds)
            layers = session.placement(feeds).precisions
        assert set(layers) == {precision.replace("fp", "f")}
        assert sum(layers.values()) > 0
        for spec in model.outputs:
            assert outputs[spec.name].dtype.name == spec.dtype
            assert 0 < scaled_error(outputs[spec.name], expected[spec.name]) <= limit


def test_a_module_that_writes_to_its_input(tmp_path):
    model, session = open_odd(tmp_path, "writes_to_input")
    feeds = random_feeds(model, 4, seed=5)
    kept = {name: value.copy() for name, value in feeds.items()}
    expected = bare_outputs(odd_modules.writes_to_input(), model, feeds)
    session.bind(feeds)
    for _ in range(3):
        session.enqueue()
        session.synchronize()
        np.testing.assert_allclose(session.fetch()["output_0"], expected["output_0"], rtol=1e-6)
    np.testing.assert_array_equal(feeds["x"], kept["x"])


def test_outputs_belong_to_the_caller(tmp_path):
    model, session = open_odd(tmp_path, "returns_views")
    feeds = random_feeds(model, 3, seed=1)
    x = feeds["x"].copy()
    expected = {"same": x, "rest_0": x[:, 1:], "rest_1": np.arange(6, dtype=np.float32)}
    outputs = session.run(feeds)
    for value in outputs.values():
        assert value.flags.writeable
        value[...] = -1
    np.testing.assert_array_equal(feeds["x"], x)
    for again in (session.fetch(), session.run(feeds)):
        assert list(again) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(again[name], value)


def test_a_later_inference_leaves_earlier_outputs_alone(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    session = BACKEND.compile(model, EAGER, target_of(model))
    first = session.run(random_feeds(model, 2, seed=0))["output_0"]
    kept = first.copy()
    second = session.run(random_feeds(model, 2, seed=1))["output_0"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)


def test_feeds_are_not_copied():
    array = np.random.default_rng(0).random((3, 4), np.float32)
    assert _torch.as_tensor(array).data_ptr() == array.ctypes.data
    array.setflags(write=False)  # torch warns of these; pytest makes that an error
    assert _torch.as_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4)[::-1, ::2],
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.broadcast_to(np.float32(2), (2, 2)),
        np.asarray(np.float64(3)),
        np.array([True, False]),
        np.arange(5, dtype=np.uint16),
        np.zeros((0, 3), np.float16),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_every_array_becomes_its_tensor(array):
    tensor = _torch.as_tensor(array)
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_bfloat16_both_ways():
    array = np.array([1.5, -2, 3.140625], ml_dtypes.bfloat16)
    array.setflags(write=False)
    tensor = _torch.as_tensor(array)
    assert tensor.dtype is torch.bfloat16
    assert tensor.tolist() == [1.5, -2, 3.140625]
    back = _torch.as_array(tensor, torch.bfloat16)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_runs_inside_the_callers_inference_mode(tmp_path):
    model, session = open_odd(tmp_path, "writes_to_input")
    feeds = random_feeds(model, 2, seed=0)
    expected = bare_outputs(odd_modules.writes_to_input(), model, feeds)["output_0"]
    with torch.inference_mode():
        for _ in range(2):
            np.testing.assert_allclose(session.run(feeds)["output_0"], expected, rtol=1e-6)


def test_placement_counts_operators(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    session = BACKEND.compile(model, EAGER, target_of(model))
    placement = session.placement(random_feeds(model, 2, seed=0))
    assert placement.device == "cpu"
    assert set(placement.nodes) == {"cpu"}
    # Two convolutions, two ReLUs, two pools and a linear layer; views add a few.
    assert 7 <= placement.nodes["cpu"] <= 12
    assert not placement.fell_back
    assert placement.copies == 0
    assert placement.precisions == {"f32": 3}


def test_threads(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    before = torch.get_num_threads()
    try:
        for asked, got in ((1, 1), (2, 2)):
            BACKEND.compile(
                model, EAGER, dataclasses.replace(target_of(model), threads=asked)
            ).close()
            assert torch.get_num_threads() == got
    finally:
        torch.set_num_threads(before)


def test_a_model_without_a_module(tmp_path):
    model = dataclasses.replace(small_torch_model(tmp_path, "conv"), module=None)
    support = BACKEND.supports(model, Target())
    assert not support
    assert "ONNX" in support.reason
    assert ".pt2" in support.fix


def test_refusals(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    target = target_of(model)
    with pytest.raises(OptionError, match="channels_last"):
        BACKEND.compile(model, Candidate("pytorch", "fast"), target)
    with pytest.raises(OptionError, match="no option 'layout'"):
        BACKEND.compile(model, Candidate("pytorch", "eager", options={"layout": 1}), target)
    with pytest.raises(Unsupported, match="tf32"):
        BACKEND.compile(model, Candidate("pytorch", "eager", Precision.TF32), target)
    of_a_graph = Candidate("pytorch", "eager", Precision.FP16, graph="fp16")
    with pytest.raises(OptionError, match="the graph fp16"):
        BACKEND.compile(model, of_a_graph, target)
    session = BACKEND.compile(model, EAGER, target)
    with pytest.raises(FeedError, match="float64"):
        session.run({"x": np.zeros((1, 3, 16, 16))})
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(random_feeds(model, 1, seed=0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    target = dataclasses.replace(target_of(model), device="cuda:0")
    with pytest.raises(BackendUnavailable, match="no CUDA device"):
        BACKEND.compile(model, EAGER, target)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# torch does not flatten a bf16 LSTM's weights for cuDNN, then warns that they are not flat.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part:UserWarning")
@pytest.mark.parametrize("name", ["conv", "lstm", "int_input", "bool_input"])
def test_on_a_gpu(name, tmp_path):
    model = small_torch_model(tmp_path, name)
    module = small_models.SMALL[name]().module
    target = dataclasses.replace(target_of(model), device="cuda:0")
    feeds = random_feeds(model, 3, seed=0)
    expected = bare_outputs(module, model, feeds)
    tolerance = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}
    for candidate in BACKEND.candidates(model, target):
        session = BACKEND.compile(model, candidate, target)
        outputs = session.run(feeds)
        for spec in model.outputs:
            assert outputs[spec.name].dtype.name == spec.dtype
            error = np.abs(outputs[spec.name] - expected[spec.name]).max()
            assert error <= tolerance[candidate.precision] * np.abs(expected[spec.name]).max()
        placement = session.placement(feeds)
        assert set(placement.nodes) == {"cuda:0"}
        assert placement.copies == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_session_serves_other_sizes_and_keeps_no_outputs(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    module = small_models.SMALL["conv"]().module
    target = dataclasses.replace(target_of(model), device="cuda:0")
    with BACKEND.compile(model, RECORDED, target) as session:
        feeds = [random_feeds(model, batch, seed=batch) for batch in (2, 5, 2, 1)]
        outputs = [session.run(f) for f in feeds]  # all kept until the last replay is done
        for fed, found in zip(feeds, outputs, strict=True):
            expected = bare_outputs(module, model, fed)
            for name, value in expected.items():
                assert scaled_error(found[name], value) < 1e-5
        session.bind(feeds[1])
        first = session.cuda_stream()
        for _ in range(3):
            session.enqueue()
        session.synchronize()
        assert session.cuda_stream() == first
        for name, value in session.fetch().items():
            np.testing.assert_array_equal(value, outputs[1][name])
        assert "CUDA graph" in session.placement(feeds[1]).detail


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_module_may_write_to_its_inputs(tmp_path):
    model = odd_torch_model(tmp_path, "writes_to_input")
    target = dataclasses.replace(target_of(model), device="cuda:0")
    feeds = random_feeds(model, 2, seed=0)
    expected = bare_outputs(odd_modules.writes_to_input(), model, feeds)
    with BACKEND.compile(model, RECORDED, target) as session:
        session.bind(feeds)
        for _ in range(3):
            session.enqueue()
            session.synchronize()
            for name, value in session.fetch().items():
                assert scaled_error(value, expected[name]) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_branch_on_a_computed_value_is_not_recorded(tmp_path):
    model = odd_torch_model(tmp_path, "branches")
    target = dataclasses.replace(target_of(model), device="cuda:0")
    stream = torch.cuda.current_stream()
    with pytest.raises(Unsupported, match="cannot be recorded as a CUDA graph") as raised:
        BACKEND.compile(model, RECORDED, target)
    assert raised.value.why
    assert "cuda_graph" in raised.value.fix
    assert torch.cuda.current_stream() == stream  # the process is as it was
    assert torch.rand(4, device="cuda:0").isfinite().all()
    with BACKEND.compile(model, EAGER, target) as session:
        assert session.run(random_feeds(model, 2, seed=0))


def test_asking_imports_no_torch():
    code = (
        "import sys\n"
        "from peregrine.backends.pytorch import PyTorchBackend as A\n"
        "from peregrine.backends.torch_compile import TorchCompileBackend as B\n"
        "print(bool(A().available()), B().available().reason, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "CXX": sys.executable}  # some program that exists
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["True", "False"]


def test_torch_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # Python's way to block an import
    support = BACKEND.available()
    assert not support
    assert "pip install" in support.fix
