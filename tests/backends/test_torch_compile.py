"""TorchInductor against the bare module. Each build takes seconds of a C++ compiler, so that
one build serves several questions."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import odd_modules
import small_models
from conformance import scaled_error
from peregrine.backends._torch_inductor import inductor
from peregrine.backends.base import Session
from peregrine.backends.torch_compile import TorchCompileBackend
from peregrine.errors import FeedError, OptionError, Unsupported
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model, ModuleSource
from peregrine.types import Array, Candidate, DimRange, Feeds, Precision, Profile, Target
from peregrine.validate import DEFAULTS
from torch_model import bare_outputs, odd_torch_model, small_torch_model

BACKEND = TorchCompileBackend()
INDUCTOR = Candidate("torch_compile", "inductor")
FIXED = Target(profile=Profile.fixed({"batch": 3}))
DYNAMIC = Target(profile=Profile({"batch": DimRange(1, 4, 8)}))

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)

LOAD_ELSEWHERE = """
import sys, time
from pathlib import Path
import numpy as np
from peregrine.backends.torch_compile import TorchCompileBackend
from peregrine.model.model import Model
from peregrine.types import Candidate, DimRange, Profile, Target
import torch
model, artifact, feeds, out = map(Path, sys.argv[1:])
started = time.perf_counter()
session = TorchCompileBackend().load(
    artifact, Model.open(model), Candidate("torch_compile", "inductor"),
    Target(profile=Profile({"batch": DimRange(1, 4, 8)})))
seconds = time.perf_counter() - started
np.savez(out, **session.run(dict(np.load(feeds))))
print(seconds, any(name.startswith("torch._inductor.") for name in sys.modules))
"""


def compare(outputs: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-6)


def leftovers() -> list[str]:
    prefixes = ("peregrine-", "aotinductor_")
    return sorted(
        f.name for f in Path(tempfile.gettempdir()).iterdir() if f.name.startswith(prefixes)
    )


@needs_compiler
class TestOneGraph:
    """The recurrent network, two inputs and two outputs, its batch left open."""

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory) -> Model:
        return small_torch_model(tmp_path_factory.mktemp("lstm"), "lstm")

    @pytest.fixture(scope="class")
    def session(self, model):
        before = leftovers()
        session = BACKEND.compile(model, INDUCTOR, DYNAMIC)
        assert leftovers() == before
        assert psutil.Process().children(recursive=True) == []
        yield session
        session.close()
        session.close()

    @pytest.mark.parametrize("batch", [1, 3, 7, 8])
    def test_agrees_with_the_module(self, model, session, batch):
        feeds = random_feeds(model, batch, seed=batch)
        compare(session.run(feeds), bare_outputs(small_models.lstm(), model, feeds))

    def test_state_goes_round(self, model, session):
        """A fed-back output is the caller's own: three steps are three steps."""
        module = small_models.lstm()
        feeds: Feeds = random_feeds(model, 2, seed=0)
        expected_feeds = feeds
        for _ in range(3):
            outputs = session.run(feeds)
            expected = bare_outputs(module, model, expected_feeds)
            compare(outputs, expected)
            feeds = {**feeds, "state": outputs["output_1"]}
            expected_feeds = {**feeds, "state": expected["output_1"]}

    def test_sizes_outside_the_profile(self, model, session):
        with pytest.raises(FeedError, match="batch=9") as caught:
            session.run(random_feeds(model, 9, seed=0))
        assert "batch=1..8" in caught.value.why

    def test_placement(self, model, session):
        placement = session.placement(random_feeds(model, 2, seed=0))
        assert placement.device == "cpu"
        assert placement.graph_breaks == 0
        assert placement.nodes["cpu"] > 3
        assert set(placement.precisions) == {"f32"}
        assert not placement.fell_back

    def test_comes_back_in_a_fresh_process(self, model, session, tmp_path):
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        BACKEND.save(session, artifact)
        feeds = random_feeds(model, 5, seed=9)
        np.savez(tmp_path / "feeds.npz", **feeds)
        arguments = [model.directory, artifact, tmp_path / "feeds.npz", tmp_path / "out.npz"]
        done = subprocess.run(
            [sys.executable, "-c", LOAD_ELSEWHERE, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, compiler_imported = done.stdout.split()
        assert compiler_imported == "False"
        assert float(seconds) < 2
        outputs = dict(np.load(tmp_path / "out.npz"))
        compare(outputs, bare_outputs(small_models.lstm(), model, feeds))

    def test_the_saved_library_is_bound_to_its_thread_count(self, model, session, tmp_path):
        BACKEND.save(session, tmp_path)
        before = torch.get_num_threads()
        target = Target(profile=Profile(), threads=before + 1)
        # Another count means another build, and this profile cannot be built.
        with pytest.raises(OptionError, match="batch"):
            BACKEND.load(tmp_path, model, INDUCTOR, target)


@needs_compiler
def test_bf16_on_a_cpu(tmp_path):
    model = small_torch_model(tmp_path, "residual")
    rows = [c.precision for c in BACKEND.candidates(model, FIXED)]
    assert rows == [Precision.FP32, Precision.BF16]
    feeds = random_feeds(model, 3, seed=0)
    expected = bare_outputs(small_models.residual(), model, feeds)["output_0"]
    bf16 = dataclasses.replace(INDUCTOR, precision=Precision.BF16)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    with BACKEND.compile(model, bf16, FIXED) as session:
        outputs = session.run(feeds)["output_0"]
        assert set(session.placement(feeds).precisions) == {"bf16"}
        BACKEND.save(session, artifact)
    assert outputs.dtype == np.float32
    # More than fp32's rounding: the arithmetic is what was asked for.
    assert 1e-4 < scaled_error(outputs, expected) <= DEFAULTS[Precision.BF16].scaled_error
    with BACKEND.load(artifact, model, bf16, FIXED) as session:
        np.testing.assert_array_equal(session.run(feeds)["output_0"], outputs)


def build(directory: Path, name: str, target: Target = FIXED) -> tuple[Model, Session]:
    model = odd_torch_model(directory, name)
    return model, BACKEND.compile(model, INDUCTOR, target)


@needs_compiler
def test_integers_are_compiled_with_valid_ones(tmp_path):
    """An id outside the embedding would end the process."""
    model = small_torch_model(tmp_path, "int_input")
    with BACKEND.compile(model, INDUCTOR, FIXED) as session:
        feeds = random_feeds(model, 3, seed=4)
        compare(session.run(feeds), bare_outputs(small_models.int_input(), model, feeds))
        with pytest.raises(FeedError, match="batch=4"):
            session.run(random_feeds(model, 4, seed=4))


@needs_compiler
def test_graph_breaks_are_counted(tmp_path):
    model, session = build(tmp_path, "branches", DYNAMIC)
    module = odd_modules.branches()
    hidden = []
    module.first.register_forward_hook(lambda *a: hidden.append(float(torch.tanh(a[2]).sum()) > 0))
    for batch, sign in ((1, 1), (3, 1), (3, -1), (8, -1)):
        feeds = {"x": sign * 9 * random_feeds(model, batch, seed=batch)["x"]}
        compare(session.run(feeds), bare_outputs(module, model, feeds))
    assert set(hidden) == {True, False}, "both branches must have been taken"
    placement = session.placement(feeds)
    assert placement.graph_breaks == 1
    assert placement.detail.startswith("not compiled ahead of time")
    assert psutil.Process().children(recursive=True) == []
    BACKEND.save(session, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@needs_compiler
@pytest.mark.parametrize("name", ["writes_to_input", "returns_views"])
def test_callers_arrays_stay_the_callers(name, tmp_path):
    model, session = build(tmp_path, name)
    feeds = random_feeds(model, 3, seed=2)
    kept = feeds["x"].copy()
    expected = bare_outputs(getattr(odd_modules, name)(), model, feeds)
    session.bind(feeds)
    for _ in range(2):
        session.enqueue()
        session.synchronize()
        outputs = session.fetch()
        compare(outputs, expected)
        for value in outputs.values():
            value[...] = -1
    np.testing.assert_array_equal(feeds["x"], kept)


@needs_compiler
def test_what_does_not_compile_says_why(tmp_path):
    with pytest.raises(Unsupported, match="refuses_to_compile") as caught:
        build(tmp_path, "refuses_to_compile")
    assert "not for compilers" in caught.value.why
    assert len(caught.value.why) <= 300


@needs_compiler
def test_branches_in_torchscript_do_not_compile(tmp_path):
    model = odd_torch_model(tmp_path, "branches")
    torch.jit.script(odd_modules.branches()).save(str(tmp_path / "model.pt"))
    model = dataclasses.replace(model, module=ModuleSource("torchscript", program="model.pt"))
    with pytest.raises(Unsupported, match="cannot compile branches") as caught:
        BACKEND.compile(model, INDUCTOR, FIXED)
    assert "torch.jit.script" in caught.value.why


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    support = BACKEND.available()
    assert not support
    assert "C++ compiler" in support.reason
    assert support.fix in ("apt-get install g++", "xcode-select --install")


def test_a_profile_without_a_size(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(OptionError, match="no size for batch"):
        BACKEND.compile(model, INDUCTOR, Target())


def test_on_cuda_the_modes_are_raced_but_the_slow_one(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    gpu = Target("cuda:0")
    rows = [c for c in BACKEND.candidates(model, gpu) if c.precision == "fp16"]
    assert [(c.id, BACKEND.refines(c, gpu)) for c in rows] == [
        ("torch_compile[inductor] fp16 cuda_graph", False),
        ("torch_compile[reduce-overhead] fp16", True),
        ("torch_compile[inductor] fp16", True),
    ]
    assert not any(BACKEND.refines(c, FIXED) for c in BACKEND.candidates(model, FIXED))
    assert {c.variant for c in BACKEND.candidates(model, FIXED)} == {"inductor"}
    named = [c.id for c in BACKEND.on_request(model, Target("cuda:0")) if c.precision == "fp16"]
    assert named == ["torch_compile[max-autotune] fp16", "torch_compile[aot] fp16 cuda_graph"]
    assert list(BACKEND.on_request(model, FIXED)) == []


def test_modes_of_cuda_are_no_variants_of_a_cpu(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    with pytest.raises(OptionError, match="no variant 'max-autotune'"):
        BACKEND.compile(model, Candidate("torch_compile", "max-autotune"), FIXED)
    recorded = Candidate("torch_compile", "inductor", options={"cuda_graph": True})
    with pytest.raises(OptionError, match="no CUDA graphs on cpu"):
        BACKEND.compile(model, recorded, FIXED)


def test_a_mode_with_cuda_graphs_takes_no_other(tmp_path):
    model = small_torch_model(tmp_path, "conv")
    twice = Candidate("torch_compile", "reduce-overhead", options={"cuda_graph": True})
    with pytest.raises(OptionError, match="CUDA graphs of its own"):
        BACKEND.compile(model, twice, dataclasses.replace(FIXED, device="cuda:0"))


def test_a_pool_that_compiles_is_gone_after_the_build(tmp_path):
    def pools() -> list[str]:
        children = psutil.Process().children(recursive=True)
        return [name for name in map(str, (c.cmdline() for c in children)) if "inductor" in name]

    with inductor(tmp_path, compile_threads=2):
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.warm_pool()
        assert pools()
    assert not pools()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(tmp_path):
    model = small_torch_model(tmp_path, "residual")
    target = Target(device="cuda:0", profile=Profile.fixed({"batch": 3}))
    feeds = random_feeds(model, 3, seed=0)
    expected = bare_outputs(small_models.residual(), model, feeds)["output_0"]
    for candidate in BACKEND.candidates(model, target):
        outputs = BACKEND.compile(model, candidate, target).run(feeds)["output_0"]
        limit = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}[candidate.precision]
        assert np.abs(outputs - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_mode_serves_a_range_on_a_gpu(tmp_path):
    model = small_torch_model(tmp_path, "residual")
    target = dataclasses.replace(DYNAMIC, device="cuda:0")
    named = [c for c in BACKEND.on_request(model, target) if c.variant == "max-autotune"]
    for candidate in (*BACKEND.candidates(model, target), *named):
        if candidate.precision is not Precision.FP32:
            continue
        session = BACKEND.compile(model, candidate, target)
        feeds = [random_feeds(model, batch, seed=batch) for batch in (4, 1, 8, 4)]
        outputs = [session.run(f)["output_0"] for f in feeds]  # kept while later ones run
        for fed, found in zip(feeds, outputs, strict=True):
            expected = bare_outputs(small_models.residual(), model, fed)["output_0"]
            assert scaled_error(found, expected) < 1e-5


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_package_for_a_gpu_comes_back(options, precision, tmp_path):
    model = small_torch_model(tmp_path, "residual")
    target = dataclasses.replace(FIXED, device="cuda:0")
    candidate = Candidate("torch_compile", "aot", precision, options)
    feeds = random_feeds(model, 3, seed=0)
    expected = bare_outputs(small_models.residual(), model, feeds)["output_0"]
    with BACKEND.compile(model, candidate, target) as built:
        kept = tmp_path / "kept"
        kept.mkdir()
        BACKEND.save(built, kept)
        assert (kept / "inductor.pt2").exists()
        assert set(built.placement(feeds).nodes) == {"cuda:0"}
        with BACKEND.load(kept, model, candidate, target) as loaded:
            for session in (built, loaded):
                error = scaled_error(session.run(feeds)["output_0"], expected)
                assert error < DEFAULTS[precision].scaled_error
