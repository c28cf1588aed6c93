"""Writing and loading bundles, with a plugin backend found by entry point."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluator_backend import ENGINE, LARGEST_BATCH, EvaluatorBackend, EvaluatorSession
from peregrine import bundle, engines, fingerprint
from peregrine.bundle import BundleSession, BundleWarning
from peregrine.errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    FeedError,
    FingerprintMismatch,
    OptionError,
)
from peregrine.model.model import Model
from peregrine.store import Store
from peregrine.types import Candidate, DimRange, Profile, Target
from tiny_onnx import tiny_feeds, tiny_model

CANDIDATE = Candidate("evaluator", options={"level": 2})
TARGET = Target(profile=Profile({"batch": DimRange(1, 2, 4)}))


@pytest.fixture(autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The evaluator, installed the way pip would: by its metadata on the import path."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "evaluator_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: evaluator-backend\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[peregrine.backends]\nevaluator = evaluator_backend:EvaluatorBackend\n"
        "absent = no_such_module:Backend\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return tiny_model(tmp_path / "tiny")


@pytest.fixture
def artifact(tmp_path: Path, model: Model) -> Path:
    directory = tmp_path / "artifact"
    directory.mkdir()
    backend = EvaluatorBackend()
    backend.save(backend.compile(model, CANDIDATE, TARGET), directory)
    return directory


def write(
    out: Path,
    model: Model,
    artifact: Path | None,
    *,
    candidate: Candidate = CANDIDATE,
    force: bool = False,
    report_json: Path | None = None,
    **changes: object,
) -> Path:
    made = fingerprint.current(model, candidate, TARGET, distributions=["onnx"])
    return bundle.write(
        out,
        model=model,
        candidate=candidate,
        target=TARGET,
        fingerprint=dataclasses.replace(made, **changes),  # type: ignore[arg-type]
        artifact=artifact,
        report_json=report_json,
        force=force,
    )


def expected(model: Model, batch: int) -> np.ndarray:
    session = EvaluatorBackend().compile(model, CANDIDATE, Target(profile=Profile()))
    return session.run(tiny_feeds(batch))["y"]


def first_of(session: BundleSession) -> EvaluatorSession:
    first = session._first
    assert isinstance(first, EvaluatorSession)
    return first


def test_the_engine_comes_back_and_agrees(tmp_path: Path, model: Model, artifact: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text('{"winner": {"id": "evaluator fp32"}}')
    path = write(tmp_path / "deep" / "tiny.bundle", model, artifact, report_json=report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = bundle.load(path)
    with session:
        assert session.how == "engine"
        assert first_of(session).origin == "loaded"
        assert session.inputs == model.inputs
        assert session.outputs == model.outputs
        assert session.candidate == CANDIDATE
        assert session.report == {"winner": {"id": "evaluator fp32"}}
        np.testing.assert_array_equal(session.run(tiny_feeds(3))["y"], expected(model, 3))
    assert first_of(session).closed
    with pytest.raises(BundleError, match="closed"):
        session.run(tiny_feeds(3))


def test_a_bundle_moves(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "tiny.bundle", model, artifact)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    for file in model.directory.iterdir():
        file.unlink()
    assert bundle.load(moved).run(tiny_feeds(2))["y"].shape == (2, 4)


def test_without_an_artefact_it_is_compiled(tmp_path: Path, model: Model) -> None:
    session = bundle.load(write(tmp_path / "b", model, None))
    assert session.how == "rebuilt"
    assert session.report is None


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_round_trip_keeps_outputs(
    tmp_path_factory: pytest.TempPathFactory, batch: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("round")
    model = tiny_model(root / "tiny", seed=seed)
    feeds = tiny_feeds(batch, seed=seed)
    with bundle.open_session(model, "evaluator") as direct:
        wanted = direct.run(feeds)
    with bundle.load(write(root / "b", model, None)) as session:
        for name, value in session.run(feeds).items():
            np.testing.assert_array_equal(value, wanted[name])


# What does not fit


def test_another_version_is_rebuilt(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact, versions={"onnx": "0.0.1"})
    with pytest.warns(BundleWarning, match=r"onnx 0\.0\.1 there, .* here.*compiled again"):
        session = bundle.load(path)
    assert session.how == "rebuilt"
    assert first_of(session).origin == "compiled"
    np.testing.assert_array_equal(session.run(tiny_feeds(1))["y"], expected(model, 1))


def test_what_was_rebuilt_is_not_built_a_second_time(
    tmp_path: Path, model: Model, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = write(tmp_path / "b", model, artifact, versions={"onnx": "0.0.1"})

    def origin(words: str, **options: bool) -> str:
        with pytest.warns(BundleWarning, match=words):
            session = bundle.load(path, **options)
        with session:
            assert session.how == "rebuilt"
            np.testing.assert_array_equal(session.run(tiny_feeds(1))["y"], expected(model, 1))
            return first_of(session).origin

    assert origin("compiled again", engine_cache=False) == "compiled"
    assert origin("compiled again") == "compiled"
    assert origin("compiled here before") == "loaded"
    assert origin("compiled again", engine_cache=False) == "compiled"
    (kept,) = engines.kept()
    home = Path(os.environ["PEREGRINE_CACHE"]) / "engines" / kept.key
    (home / ENGINE).write_text("refuses")  # not what was put there
    assert origin("compiled again") == "compiled"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_kept_engine_that_its_runtime_refuses_is_built(
    tmp_path: Path, model: Model, artifact: Path
) -> None:
    path = write(tmp_path / "b", model, artifact, versions={"onnx": "0.0.1"})
    with pytest.warns(BundleWarning):
        bundle.load(path).close()
    store = Store(Path(os.environ["PEREGRINE_CACHE"]) / "engines")
    (entry,) = store.entries()
    store.drop(entry.key)
    (artifact / ENGINE).write_text("refuses")
    store.put(entry.key, artifact, [ENGINE], entry.record)
    for words, origin in (("again", "compiled"), ("here before", "loaded")):
        with pytest.warns(BundleWarning, match=f"compiled {words}"):
            session = bundle.load(path)
        assert first_of(session).origin == origin
        session.close()


def test_another_machine_can_be_an_error(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact, cpu="Zilog Z80", cpu_flags=("sve2",))
    with pytest.raises(FingerprintMismatch, match="CPU Zilog Z80 there") as caught:
        bundle.load(path, on_mismatch="error")
    assert "sve2 there, missing here" in caught.value.why
    assert "rebuild" in caught.value.fix


def test_another_machine_can_fall_back(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact, arch="pdp11")
    with pytest.warns(BundleWarning, match=r"pdp11 there.*CPUExecutionProvider"):
        session = bundle.load(path, on_mismatch="fallback")
    assert session.how == "fallback"
    assert session.candidate.backend == "onnxruntime"
    for batch in (1, 3, 7):
        np.testing.assert_allclose(
            session.run(tiny_feeds(batch))["y"], expected(model, batch), rtol=1e-5
        )


def test_another_device_does_not_fit(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact)
    with pytest.raises(FingerprintMismatch, match="device cpu there, cuda here"):
        bundle.load(path, device="cuda:0", on_mismatch="error")


def test_an_engine_that_will_not_load_is_rebuilt(
    tmp_path: Path, model: Model, artifact: Path
) -> None:
    (artifact / ENGINE).write_text("refuses")
    path = write(tmp_path / "b", model, artifact)
    with pytest.warns(BundleWarning, match="engine refused"):
        assert bundle.load(path).how == "rebuilt"
    with pytest.warns(BundleWarning, match="engine refused"):
        assert bundle.load(path, on_mismatch="fallback").how == "fallback"
    with pytest.raises(BundleError, match="engine refused"):
        bundle.load(path, on_mismatch="error")


@pytest.mark.parametrize("backend", ["absent", "never_registered"])
def test_a_missing_backend_falls_back(tmp_path: Path, model: Model, backend: str) -> None:
    path = write(tmp_path / "b", model, None, candidate=Candidate(backend))
    with pytest.warns(BundleWarning, match=f"'{backend}' is not installed here"):
        session = bundle.load(path)
    assert session.how == "fallback"
    with pytest.raises(BackendUnavailable, match=backend):
        bundle.load(path, on_mismatch="error")


def test_nothing_can_run(tmp_path: Path, model: Model) -> None:
    bare = dataclasses.replace(model, onnx="", onnx_error="the exporter gave up")
    bare.save()
    path = write(tmp_path / "b", bare, None, candidate=Candidate("absent"))
    with pytest.raises(BundleError, match=r"absent.*\n?.*the exporter gave up"):
        bundle.load(path)


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rebuild, fallback, error"):
        bundle.load(tmp_path, on_mismatch="perhaps")  # type: ignore[arg-type]


# Running


def test_other_sizes_are_compiled_and_kept(tmp_path: Path, model: Model, artifact: Path) -> None:
    session = bundle.load(write(tmp_path / "b", model, artifact))
    before = EvaluatorBackend.compiled
    for batch in (1, 4, 2):
        session.run(tiny_feeds(batch))
    assert EvaluatorBackend.compiled == before
    for batch in (5, 6, 5, 6, 5):
        np.testing.assert_array_equal(session.run(tiny_feeds(batch))["y"], expected(model, batch))
    mine = before + 2 + 5  # expected() compiles once a call
    assert EvaluatorBackend.compiled == mine
    extras = list(session._extra.values())  # 6, 5: the least recently used first
    for batch in (7, 8, 9):
        session.run(tiny_feeds(batch))
    assert EvaluatorBackend.compiled == mine + 3
    # Of 5 sizes 4 are kept.
    assert [s.closed for s in extras if isinstance(s, EvaluatorSession)] == [True, False]
    session.close()
    session.close()
    assert all(s.closed for s in extras if isinstance(s, EvaluatorSession))


def test_a_size_that_cannot_be_compiled(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact)
    feeds = tiny_feeds(LARGEST_BATCH + 1)
    with (
        bundle.load(path) as session,
        pytest.warns(BundleWarning, match="at most 64.*onnxruntime"),
    ):
        assert session.run(feeds)["y"].shape == (LARGEST_BATCH + 1, 4)
    with (
        bundle.load(path, on_mismatch="error") as session,
        pytest.raises(BackendError, match="at most 64"),
    ):
        session.run(feeds)


def test_bad_feeds_are_refused(tmp_path: Path, model: Model, artifact: Path) -> None:
    session = bundle.load(write(tmp_path / "b", model, artifact))
    good = tiny_feeds(2)
    bad = {
        "no input 'z'": {**good, "z": good["x"]},
        "'offset' is missing": {"x": good["x"]},
        "has dtype float64": {**good, "x": good["x"].astype(np.float64)},
        r"has shape \(2, 7\)": {**good, "x": good["x"][:, :7]},
        "sizes so far": {**good, "offset": np.zeros((3, 1), np.int64)},
        "size zero": {name: value[:0] for name, value in good.items()},
    }
    for message, feeds in bad.items():
        with pytest.raises(FeedError, match=message):
            session.run(feeds)
    not_finite = {**good, "x": np.full((2, 8), np.nan, np.float32)}
    with pytest.raises(FeedError, match="16"):
        session.run(not_finite, check_finite=True)
    assert np.isnan(session.run(not_finite)["y"]).any()


def test_odd_memory_layouts_run(tmp_path: Path, model: Model, artifact: Path) -> None:
    session = bundle.load(write(tmp_path / "b", model, artifact))
    feeds = tiny_feeds(3)
    odd = {"x": np.asfortranarray(feeds["x"]).astype(">f4"), "offset": feeds["offset"][::-1][::-1]}
    np.testing.assert_array_equal(session.run(odd)["y"], session.run(feeds)["y"])


def test_threads_take_turns(tmp_path: Path, model: Model, artifact: Path) -> None:
    session = bundle.load(write(tmp_path / "b", model, artifact))
    failures: list[BaseException] = []

    def work(batch: int) -> None:
        wanted = expected(model, batch)
        try:
            for _ in range(20):
                np.testing.assert_array_equal(session.run(tiny_feeds(batch))["y"], wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Without a bundle


def test_one_backend_without_a_race(model: Model) -> None:
    with bundle.open_session(model, "evaluator") as session:
        assert session.how == "compiled"
        assert session.candidate == Candidate("evaluator")
        np.testing.assert_array_equal(session.run(tiny_feeds(3))["y"], expected(model, 3))
    chosen = bundle.open_session(model, "evaluator", candidate_id="evaluator[slow] fp32")
    assert chosen.candidate.variant == "slow"


def test_one_backend_refusals(model: Model) -> None:
    with pytest.raises(OptionError, match="Did you mean 'evaluator'"):
        bundle.open_session(model, "evaluater")
    with pytest.raises(OptionError, match=r"Did you mean 'evaluator\[slow\] fp32'"):
        bundle.open_session(model, "evaluator", candidate_id="evaluator[slo] fp32")
    with pytest.raises(BackendError, match="no ONNX graph"):
        bundle.open_session(dataclasses.replace(model, onnx=""), "evaluator")
    wide = dataclasses.replace(
        model, inputs=(dataclasses.replace(model.inputs[0], shape=("batch", "width")),)
    )
    with pytest.raises(OptionError, match="width"):
        bundle.open_session(wide, "evaluator")


# Writing


def test_nothing_is_overwritten_unasked(tmp_path: Path, model: Model, artifact: Path) -> None:
    path = write(tmp_path / "b", model, artifact)
    stamp = (path / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="--force"):
        write(path, model, None)
    assert (path / "manifest.json").read_bytes() == stamp
    write(path, model, None, force=True)
    assert bundle.load(path).how == "rebuilt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "b", "tiny"]


@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_bundle_is_never_touched(tmp_path: Path, model: Model, force: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name in ("photos", "notes.txt", "link"):
        with pytest.raises(BundleError, match="not a bundle"):
            write(tmp_path / name, model, None, force=force)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"


def test_an_unwritable_place(tmp_path: Path, model: Model) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(BundleError, match="could not be written") as caught:
        write(tmp_path / "file" / "b", model, None)
    assert caught.value.fix


def test_a_missing_artefact_is_said(tmp_path: Path, model: Model) -> None:
    with pytest.raises(BundleError, match="No such file"):
        write(tmp_path / "b", model, tmp_path / "nowhere")
    assert not (tmp_path / "b").exists()


FULL = """
import resource, signal, sys
from pathlib import Path
import test_bundle
from peregrine.errors import BundleError
from peregrine.model.model import Model

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    test_bundle.write(Path(sys.argv[1]), Model.open(Path(sys.argv[2])), Path(sys.argv[3]))
except BundleError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path, model: Model, artifact: Path) -> None:
    """A limit on file sizes makes a write fail midway, as a full disk does."""
    arguments = [str(p) for p in (tmp_path / "b", model.directory, artifact)]
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert "could not be written" in done.stdout, done.stderr
    assert "Free disk space" in done.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_the_manifest_is_readable_and_checkable(
    tmp_path: Path, model: Model, artifact: Path
) -> None:
    path = write(tmp_path / "b", model, artifact)
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=path, check=True)
    record = json.loads((path / "manifest.json").read_text())
    assert record["candidate"]["id"] == CANDIDATE.id
    assert record["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["batch", 8]}
    assert {"model/model.onnx", "model/weights.bin", f"artifact/{ENGINE}"} <= set(record["files"])
    manifest = bundle.read(path)
    assert manifest.to_json() == record
    assert manifest.target == TARGET
