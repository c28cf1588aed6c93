"""Kept engines: an entry is whole and fits, or it is none; a miss says what differs."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from peregrine import api, engines, fingerprint
from peregrine.backends import registry
from peregrine.cli.app import app
from peregrine.engines import Engines, Kept, Missed, Wanted
from peregrine.model.model import Model
from peregrine.store import Store, cache_directory
from peregrine.types import Candidate, DimRange, Profile, Target
from tiny_model import make_tiny

MODEL = Model(name="m", directory=Path("m"), inputs=(), outputs=(), sha256="ab" * 32)
CANDIDATE = Candidate("openvino", "CPU", options={"streams": 1})
TARGET = Target(profile=Profile({"batch": DimRange(1, 2, 4)}))


def _wanted(**changes: object) -> Wanted:
    here = fingerprint.current(MODEL, CANDIDATE, TARGET, versions={"openvino": "1"})
    wanted = Wanted.of(MODEL, CANDIDATE, TARGET, here)
    return dataclasses.replace(wanted, fingerprint=dataclasses.replace(here, **changes))


def _cuda(driver: str) -> Wanted:
    return _wanted(device="cuda", gpu="A", driver=driver, cpu=f"beside driver {driver}")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "saved" / "deep").mkdir(parents=True)
    (tmp_path / "saved" / "engine").write_bytes(b"engine" * 100)
    (tmp_path / "saved" / "deep" / "kernels").write_bytes(b"kernels")
    return tmp_path / "saved"


@pytest.fixture
def kept(tmp_path: Path) -> Engines:
    return Engines(tmp_path / "engines")


def test_a_kept_engine_comes_back_with_the_time_of_its_build(kept, artifact, tmp_path):
    assert kept.fetch(_wanted(), tmp_path / "out") == Missed()
    assert kept.keep(_wanted(), artifact, 12.5)
    hit = kept.fetch(_wanted(), tmp_path / "out")
    assert isinstance(hit, Kept)
    assert hit.build_s == 12.5
    assert (tmp_path / "out" / "engine").read_bytes() == b"engine" * 100
    assert (tmp_path / "out" / "deep" / "kernels").read_bytes() == b"kernels"


def test_nothing_saved_is_nothing_kept(kept, tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert not kept.keep(_wanted(), tmp_path / "empty", 1.0)
    assert not (tmp_path / "engines").exists()


def test_what_is_built_at_once_is_not_kept(kept, artifact, tmp_path):
    assert not kept.keep(_wanted(), artifact, 1e-9)
    assert kept.fetch(_wanted(), tmp_path / "out") == Missed()


def test_a_miss_names_the_field_that_differs(kept, artifact, tmp_path):
    kept.keep(_cuda("580.1"), artifact, 1.0)
    assert kept.fetch(_cuda("581.0"), tmp_path / "out") == Missed(
        ("driver 580.1 there, 581.0 here",)
    )
    assert isinstance(
        kept.fetch(dataclasses.replace(_cuda("580.1"), threads=3), tmp_path / "out"), Missed
    )


def test_a_miss_compares_with_the_nearest_entry(kept, artifact, tmp_path):
    kept.keep(_wanted(versions={"openvino": "2"}, python="3.0"), artifact, 1.0)
    kept.keep(_wanted(versions={"openvino": "3"}), artifact, 1.0)
    assert kept.fetch(_wanted(), tmp_path / "out") == Missed(("openvino 3 there, 1 here",))


def test_entries_of_another_version_are_passed_over(kept, artifact, tmp_path):
    record = {**_wanted().to_json(), "build_s": 1.0, "built": ""}
    store = Store(cache_directory("engines"))
    for number, changes in enumerate(
        ({"fingerprint": {}}, {"fingerprint": "x"}, {"threads": None, "precision": "int3"})
    ):
        store.put(str(number), artifact, ["engine"], {**record, **changes})
    del record["fingerprint"]["cpu"]
    store.put("3", artifact, ["engine"], record)
    found = Engines(cache_directory("engines"))
    assert found.fetch(_wanted(), tmp_path / "out") == Missed()
    assert sorted(entry.candidate for entry in engines.kept())[:3] == ["", "", ""]


def test_another_model_or_candidate_is_no_neighbour(kept, artifact, tmp_path):
    kept.keep(_wanted(), artifact, 1.0)
    other = dataclasses.replace(CANDIDATE, graph="int8")
    assert kept.fetch(_wanted(model_sha256="cd"), tmp_path / "out") == Missed()
    assert kept.fetch(_wanted(options={"streams": 2}), tmp_path / "out") == Missed()
    assert kept.fetch(dataclasses.replace(_wanted(), candidate=other), tmp_path / "out") == Missed()


def test_every_field_makes_another_engine():
    changes = [
        {},
        {"os": "x"},
        {"cpu": "x"},
        {"cpu_flags": ("x",)},
        {"versions": {"openvino": "9"}},
        {"model_sha256": "x"},
        {"precision": "x"},
        {"profile": {"batch": (1, 1, 1)}},
        {"options": {}},
    ]
    wanted = [_wanted(**change) for change in changes]
    wanted += [dataclasses.replace(wanted[0], threads=7), dataclasses.replace(wanted[0], ir="x")]
    wanted += [dataclasses.replace(wanted[0], code="x")]
    assert len({w.key for w in wanted}) == len(wanted)
    assert _cuda("1").key == dataclasses.replace(_cuda("1"), model="another name").key


def test_the_host_processor_does_not_matter_to_an_engine_on_a_gpu():
    there = _wanted(device="cuda", gpu="A", cpu="x", cpu_flags=("x",))
    assert there.key == _wanted(device="cuda", gpu="A").key


@pytest.mark.parametrize("name", ["engine", "deep/kernels", "entry.json"])
def test_one_flipped_byte_makes_it_void(kept, artifact, tmp_path, name):
    kept.keep(_wanted(), artifact, 1.0)
    path = tmp_path / "engines" / _wanted().key / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    assert isinstance(kept.fetch(_wanted(), tmp_path / "out"), Missed)
    assert kept.keep(_wanted(), artifact, 2.0)
    assert kept.fetch(_wanted(), tmp_path / "out").build_s == 2.0


def _keep_and_fetch(root: str, number: int) -> None:
    kept = Engines(Path(root) / "engines", limit=4000)
    saved = Path(root) / f"saved{number}"
    saved.mkdir()
    (saved / "engine").write_bytes(b"e" * 1000)
    for turn in range(20):
        wanted = _wanted(python=str(turn % 3))
        kept.keep(wanted, saved, 1.0)
        if isinstance(kept.fetch(wanted, Path(root) / f"out{number}"), Kept):
            assert (Path(root) / f"out{number}" / "engine").read_bytes() == b"e" * 1000


def test_two_processes_do_not_fight(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_keep_and_fetch, args=(str(tmp_path), n)) for n in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


def _keep_for_ever(root: str) -> None:
    kept = Engines(Path(root) / "engines")
    saved = Path(root) / "big"
    saved.mkdir()
    for name in range(40):
        (saved / str(name)).write_bytes(os.urandom(1 << 18))
    while True:
        kept.keep(_wanted(), saved, 1.0)
        kept.drop(_wanted())


def test_a_kill_in_the_middle_leaves_nothing_half_trusted(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_keep_for_ever, args=(str(tmp_path),))
    process.start()
    root = tmp_path / "engines"
    deadline = time.monotonic() + 60
    while not (root.is_dir() and any(root.glob(".draft-*/1*"))):
        assert time.monotonic() < deadline
        assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = Engines(root).fetch(_wanted(), tmp_path / "out")
    if isinstance(found, Kept):  # killed between two puts: then it is whole
        assert len(list((tmp_path / "out").iterdir())) == 40
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "engine").write_bytes(b"new")
    Engines(root).drop(_wanted())
    Engines(root).keep(_wanted(), tmp_path / "saved", 3.0)
    assert Engines(root).fetch(_wanted(), tmp_path / "out").build_s == 3.0


def test_prune_keeps_what_was_used_last(artifact, tmp_path):
    root = cache_directory("engines")
    kept = Engines(root)
    for age in range(3):
        wanted = _wanted(python=str(age))
        kept.keep(wanted, artifact, 1.0)
        os.utime(root / wanted.key / "entry.json", (1000 - age, 1000 - age))
    Store(cache_directory("graphs")).put(
        "g" * 64, artifact, ["engine"], {"made": {"by": "a converter"}}
    )
    listed = api.kept()
    assert [entry.kind for entry in listed] == ["graphs", "engines", "engines", "engines"]
    assert (listed[1].model, listed[1].candidate) == ("m", CANDIDATE.id)
    gone = api.prune(listed[0].size + listed[1].size)
    assert [entry.key for entry in gone] == [_wanted(python=age).key for age in "12"]
    assert [entry.key for entry in api.kept()] == ["g" * 64, _wanted(python="0").key]


def test_the_command_line_lists_and_prunes(artifact):
    say = CliRunner().invoke
    assert "Nothing is kept" in say(app, ["cache", "list"]).output
    Engines(cache_directory("engines")).keep(_wanted(), artifact, 1.0)
    listed = say(app, ["cache", "list"]).output
    assert "engines" in listed
    assert "openvino" in listed
    assert say(app, ["cache", "prune"]).exit_code != 0
    assert say(app, ["cache", "prune", "--all", "--max-size", "1GiB"]).exit_code != 0
    assert "Dropped 0" in say(app, ["cache", "prune", "--max-size", "1GiB"]).output
    assert "Dropped 1" in say(app, ["cache", "prune", "--all"]).output
    assert engines.kept() == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_kept_engine_gives_the_outputs_of_the_one_built(kept, tmp_path, backend):
    pytest.importorskip(backend)
    model = make_tiny(tmp_path / "model")
    runtime = registry.get(backend)
    target = Target(profile=Profile.fixed(model.sizes(2)), threads=1)
    candidate = next(iter(runtime.candidates(model, target)))
    here = fingerprint.current(model, candidate, target, distributions=runtime.distributions)
    wanted = Wanted.of(model, candidate, target, here)
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}
    saved, back = tmp_path / "saved", tmp_path / "back"
    saved.mkdir()
    built = runtime.compile(model, candidate, target)
    runtime.save(built, saved)
    expected = built.run(feeds)["y"].copy()
    built.close()
    assert kept.keep(wanted, saved, 1.0)
    assert isinstance(kept.fetch(wanted, back), Kept)
    loaded = runtime.load(back, model, candidate, target)
    np.testing.assert_array_equal(loaded.run(feeds)["y"], expected)
    loaded.close()
