"""The timings on disk: whole, of this device and this code, whoever writes beside."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peregrine import api
from peregrine.cli.app import app
from peregrine.compiler import timings
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.plan import Timed
from peregrine.compiler.tactics.base import Tactic
from peregrine.compiler.timings import TimingCache, tactic_version, timing_files, timing_key
from peregrine.store import cache_directory

HERE = {"gpu": "A", "capability": "9.0", "driver": "580.1", "triton": "3.6.0"}
FAST = Timed(tactic="t", config={"block": 64, "wide": True}, ms=0.5, predicted_ms=0.4, error=1e-4)
SLOW = Timed(tactic="t", config={"block": 32, "plan": "x", "f": 0.5}, ms=1.5)
OUT = Timed(tactic="t", refused="relative error 0.3")


def _only(directory: Path) -> Path:
    (path,) = directory.glob("*.jsonl")
    return path


def test_what_was_flushed_comes_back_in_another_process(tmp_path):
    cache = TimingCache.open(tmp_path / "deep" / "timings", HERE)
    assert cache.get("k") is None
    cache.put("k", [FAST, SLOW, OUT])
    cache.put("none can", [])
    assert cache.get("k") == (FAST, SLOW, OUT)
    assert not (tmp_path / "deep").exists()
    cache.flush()
    again = TimingCache.open(tmp_path / "deep" / "timings", HERE)
    assert again.get("k") == (FAST, SLOW, OUT)
    assert again.get("none can") == ()
    assert len(again) == 2


def test_a_key_that_is_put_again_is_replaced(tmp_path):
    for timed in (SLOW, FAST):
        cache = TimingCache.open(tmp_path, HERE)
        cache.put("k", [timed])
        cache.flush()
        cache.flush()
    assert TimingCache.open(tmp_path, HERE).get("k") == (FAST,)
    assert len(_only(tmp_path).read_bytes().splitlines()) == 3  # the fingerprint, and each put


@pytest.mark.parametrize("field", [*HERE, "another"])
def test_another_fingerprint_has_timings_of_its_own(tmp_path, field):
    cache = TimingCache.open(tmp_path, HERE)
    cache.put("k", [FAST])
    cache.flush()
    there = {**HERE, field: "other"}
    assert TimingCache.open(tmp_path, there).get("k") is None
    # Not even where its file is given the other's name.
    mine = _only(tmp_path)
    other = TimingCache.open(tmp_path, there)
    other.put("x", [SLOW])
    other.flush()
    (theirs,) = set(tmp_path.glob("*.jsonl")) - {mine}
    theirs.write_bytes(mine.read_bytes())
    assert TimingCache.open(tmp_path, there).get("k") is None


def test_a_damaged_line_costs_itself_alone_and_is_written_again(tmp_path):
    cache = TimingCache.open(tmp_path, HERE)
    for name in ("a", "b", "c"):
        cache.put(name, [FAST])
        cache.flush()
    path = _only(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"ms":0.5' in lines[2]
    lines[2] = lines[2].replace(b'"ms":0.5', b'"ms":0.1')  # still JSON, and a lie
    path.write_bytes(b"".join(lines))
    again = TimingCache.open(tmp_path, HERE)
    assert again.get("a") == again.get("c") == (FAST,)
    assert again.get("b") is None
    again.put("b", [SLOW])
    again.flush()
    assert TimingCache.open(tmp_path, HERE).get("b") == (SLOW,)


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_torn_last_line_does_not_swallow_the_next(tmp_path, lost):
    cache = TimingCache.open(tmp_path, HERE)
    for name in ("a", "b"):
        cache.put(name, [FAST])
        cache.flush()
    path = _only(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    again = TimingCache.open(tmp_path, HERE)
    assert again.get("a") == (FAST,)
    assert again.get("b") == ((FAST,) if lost == 1 else None)  # only its end of line was lost
    again.put("c", [SLOW])
    again.flush()
    third = TimingCache.open(tmp_path, HERE)
    assert third.get("a") == (FAST,)
    assert third.get("c") == (SLOW,)


@pytest.mark.parametrize("garbage", [b"\x00\xff" * 300, b"{}\n[]\nnull\n3\n", b"{" * 5000 + b"\n"])
def test_a_file_of_garbage_is_an_empty_one(tmp_path, garbage):
    cache = TimingCache.open(tmp_path, HERE)
    cache.put("a", [FAST])
    cache.flush()
    _only(tmp_path).write_bytes(garbage)
    again = TimingCache.open(tmp_path, HERE)
    assert len(again) == 0
    again.put("a", [SLOW])
    again.flush()
    assert TimingCache.open(tmp_path, HERE).get("a") == (SLOW,)


def _write(directory: Path, who: int) -> None:
    for n in range(60):
        cache = TimingCache.open(directory, HERE)
        timed = Timed(tactic="t", config={"n": n, "pad": "x" * 3000}, ms=float(who))
        cache.put(f"{who}.{n}", [timed])
        cache.put("shared", [timed])
        cache.flush()


def test_processes_write_side_by_side(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    cache = TimingCache.open(tmp_path, HERE)
    for who in range(4):
        for n in range(60):
            (timed,) = cache.get(f"{who}.{n}")
            assert timed.ms == who
            assert timed.config["n"] == n
    assert len(cache) == 241


def test_no_directory_and_a_full_disk_cost_the_timings_alone(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (None, tmp_path / "file" / "under"):
        cache = TimingCache.open(directory, HERE)
        cache.put("k", [FAST])
        cache.flush()
        assert cache.get("k") == (FAST,)


def test_files_are_listed_for_people(tmp_path):
    for driver, count in (("580.1", 2), ("590.2", 1)):
        cache = TimingCache.open(tmp_path, {**HERE, "driver": driver})
        for n in range(count):
            cache.put(f"k{n}", [FAST])
            cache.put(f"k{n}", [SLOW])
            cache.flush()
    os.utime(TimingCache.open(tmp_path, HERE)._path, (1, 1))
    (tmp_path / "odd.jsonl").write_text("nonsense")
    os.utime(tmp_path / "odd.jsonl", (2, 2))
    newest, odd, oldest = timing_files(tmp_path)
    assert newest.fingerprint == {**HERE, "driver": "590.2"}
    assert (newest.entries, oldest.entries) == (1, 2)
    assert oldest.fingerprint == HERE
    assert oldest.used == 1
    assert (odd.fingerprint, odd.entries) == ({}, 0)
    assert timing_files(None) == timing_files(tmp_path / "none") == []


class _Mine(Tactic):
    name = "mine"

    def supports(self, operation, device): ...
    def configs(self, operation, device): ...
    def predict(self, operation, config, device): ...
    def bind(self, operation, config, inputs, outputs, workspace, state): ...


def test_a_key_is_of_the_tactic_and_the_operation():
    relu = Operation("ai.onnx.Relu", {}, (TensorType.contiguous("float32", (3,)),))
    half = Operation("ai.onnx.Relu", {}, (TensorType.contiguous("float16", (3,)),))

    class Theirs(_Mine):
        name = "theirs"

    keys = {timing_key(tactic, of) for tactic in (_Mine(), Theirs()) for of in (relu, half)}
    assert len(keys) == 4
    assert timing_key(_Mine(), relu) in keys


_SOURCES = {
    "tactics/gemm.py": "def run():\n    from peregrine.compiler.kernels import gemm\n",
    "tactics/eager.py": "from peregrine.compiler.torch_ops.registry import find\n",
    "kernels/gemm.py": "from .shared import load\nimport peregrine.compiler.operation\n",
    "kernels/shared.py": "x = 1\n",
    "kernels/other.py": "x = 1\n",
    "torch_ops/registry.py": "x = 1\n",
    "torch_ops/pooling.py": "x = 1\n",
    "operation.py": "x = 1\n",
}


@pytest.mark.parametrize(
    ("changed", "gemm", "eager"),
    [
        ("tactics/gemm.py", True, False),
        ("kernels/gemm.py", True, False),
        ("kernels/shared.py", True, False),
        ("kernels/other.py", False, False),
        ("torch_ops/pooling.py", False, True),
        ("operation.py", False, False),
    ],
)
def test_a_version_follows_the_code_that_a_tactic_runs(tmp_path, monkeypatch, changed, gemm, eager):
    for name, source in _SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    monkeypatch.setattr(timings, "_HOME", tmp_path)

    def versions() -> list[str]:
        timings._version.cache_clear()
        return [timings._version(f"peregrine.compiler.tactics.{n}") for n in ("gemm", "eager")]

    before = versions()
    (tmp_path / changed).write_text(_SOURCES[changed] + "y = 2\n")
    after = versions()
    timings._version.cache_clear()
    assert [a != b for a, b in zip(before, after, strict=True)] == [gemm, eager]


def test_a_version_is_the_same_in_every_process():
    code = (
        "from peregrine.compiler import timings\n"
        "print(timings._version('peregrine.compiler.tactics.base'))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {timings._version("peregrine.compiler.tactics.base")}
    assert len(tactic_version(_Mine())) == 16


def test_the_command_line_counts_and_drops_timings(tmp_path, monkeypatch):
    monkeypatch.setenv("PEREGRINE_CACHE", str(tmp_path))
    directory = cache_directory("timings")
    for gpu, count in (("NVIDIA H200", 3), ("NVIDIA L4", 1)):
        cache = TimingCache.open(directory, {**HERE, "gpu": gpu})
        for n in range(count):
            cache.put(f"k{n}", [FAST])
        cache.flush()
        os.utime(cache._path, (count, count))
    say = CliRunner(env={"COLUMNS": "200"}).invoke
    listed = say(app, ["cache", "list"]).output
    assert "NVIDIA H200: 3 tactics timed" in listed
    assert "NVIDIA L4: 1 tactics timed" in listed
    newest = api.kept()[0]
    assert newest.kind == "timings"
    assert [gone.candidate for gone in api.prune(newest.size)] == ["NVIDIA L4: 1 tactics timed"]
    assert len(TimingCache.open(directory, {**HERE, "gpu": "NVIDIA H200"})) == 3
    assert "Dropped 1" in say(app, ["cache", "prune", "--all"]).output
    assert list(directory.iterdir()) == []
