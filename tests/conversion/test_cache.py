"""The store of converted graphs: what it returns is what was put there, or nothing."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from peregrine.conversion import cache
from peregrine.conversion.cache import Store

RECORD = {"made": {"by": "a test"}, "seconds": 1.5}


def _files(directory: Path, content: bytes = b"graph") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(content)
    (directory / "model.bin").write_bytes(content * 2)
    return directory


NAMES = ["model.onnx", "model.bin"]


def test_what_was_put_comes_back(tmp_path):
    store = Store(tmp_path / "cache")
    assert store.fetch("key", tmp_path / "out") is None
    store.put("key", _files(tmp_path / "made"), NAMES, RECORD)
    assert store.fetch("key", tmp_path / "out") == RECORD
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"graph"
    assert (tmp_path / "out" / "model.bin").read_bytes() == b"graphgraph"
    assert store.fetch("other", tmp_path / "out") is None


@pytest.mark.parametrize("name", [*NAMES, "entry.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_entry_is_not_trusted_and_goes(name, damage, tmp_path):
    store = Store(tmp_path / "cache")
    store.put("key", _files(tmp_path / "made"), NAMES, RECORD)
    path = tmp_path / "cache" / "key" / name
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        at = content.index(b"1.5") if name == "entry.json" else 2
        path.write_bytes(content[:at] + b"9" + content[at + 1 :])
    else:
        path.unlink()
    assert store.fetch("key", tmp_path / "out") is None
    assert list((tmp_path / "cache").iterdir()) == []
    store.put("key", _files(tmp_path / "made"), NAMES, RECORD)
    assert store.fetch("key", tmp_path / "out") == RECORD


def test_what_was_used_longest_ago_goes_first(tmp_path):
    store = Store(tmp_path / "cache", limit=3000)
    source = _files(tmp_path / "made", b"x" * 300)
    for age, key in enumerate(["a", "b"]):
        store.put(key, source, NAMES, RECORD)
        os.utime(tmp_path / "cache" / key / "entry.json", (1000 + age, 1000 + age))
    assert store.fetch("a", tmp_path / "out") == RECORD  # now b is the oldest
    store.put("c", source, NAMES, RECORD)
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {"a", "c"}


def test_the_newest_stays_whatever_its_size(tmp_path):
    store = Store(tmp_path / "cache", limit=10)
    store.put("big", _files(tmp_path / "made"), NAMES, RECORD)
    assert store.fetch("big", tmp_path / "out") == RECORD


def test_a_draft_left_by_a_killed_process_goes_after_a_day(tmp_path):
    root = tmp_path / "cache"
    for name, age in (("old", 2 * 86400), ("new", 0)):
        draft = _files(root / f".draft-{name}")
        when = draft.stat().st_mtime - age
        os.utime(draft, (when, when))
    Store(root).put("key", _files(tmp_path / "made"), NAMES, RECORD)
    assert {path.name for path in root.iterdir()} == {".draft-new", "key"}


def test_no_place_to_keep_anything_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    for root in (None, blocked, blocked / "below"):
        store = Store(root)
        store.put("key", _files(tmp_path / "made"), NAMES, RECORD)
        assert store.fetch("key", tmp_path / "out") is None
    assert blocked.read_text() == "not a directory"


def _race(root: str, number: int, rounds: int) -> None:
    store = Store(Path(root) / "cache", limit=4000)
    source = _files(Path(root) / f"made{number}", b"x" * 300)
    out = Path(root) / f"out{number}"
    for turn in range(rounds):
        key = f"key{turn % 3}"
        store.put(key, source, NAMES, RECORD)
        record = store.fetch(key, out)
        if record is not None:
            assert record == RECORD
            assert (out / "model.onnx").read_bytes() == b"x" * 300


def test_processes_do_not_fight(tmp_path):
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_race, args=(str(tmp_path), n, 40)) for n in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".draft")]


def test_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path))
    assert cache.root() == tmp_path / "graphs"
    monkeypatch.delenv("PEREGRINE_CACHE")
    assert cache.root() not in (None, tmp_path / "graphs")


def test_every_fact_makes_another_key():
    facts = {"model": "a", "keep": ["x"], "calibrator": ""}
    keys = {cache.key_of(facts)}
    for change in ({"model": "b"}, {"keep": []}, {"calibrator": "minmax"}):
        keys.add(cache.key_of({**facts, **change}))
    assert len(keys) == 4
    assert cache.key_of(dict(reversed(facts.items()))) in keys
