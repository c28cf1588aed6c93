import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.errors import OptionError, RunDirectoryError
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory, default_path, slug
from peregrine.objective import Objective


def _request(**fields):
    return Request(source="m", **fields)


def test_a_request_comes_back_as_it_was(tmp_path):
    request = _request(
        objective=Objective.throughput(max_latency_ms=50), batches=(1, 8), dims={"width": 320}
    )
    run = RunDirectory.create(tmp_path / "run", request)
    assert RunDirectory.read(run.path).request == request


def test_a_half_written_last_row_is_dropped_and_the_next_one_is_whole(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    run.append("a", {"n": 1})
    run.append("b", {"n": 2})
    run.release()
    rows = run.path / "results.jsonl"
    whole = rows.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        rows.write_bytes(whole[:-cut])
        again = RunDirectory.resume(run.path)
        assert list(again.rows()) == [("a", {"n": 1})]
        again.append("c", {"n": 3})
        again.release()
        assert list(again.rows()) == [("a", {"n": 1}), ("c", {"n": 3})]


def test_each_row_says_when_it_was_written_and_one_that_does_not_is_read(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    rows = run.path / "results.jsonl"
    rows.write_text('{"kind": "old", "record": {}}\n')
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(milliseconds=1)
    run.append("new", {})
    written = json.loads(rows.read_text().splitlines()[1])["written"]
    assert before <= datetime.datetime.fromisoformat(written) <= datetime.datetime.now(datetime.UTC)
    assert [kind for kind, _ in run.rows()] == ["old", "new"]


def test_nan_becomes_null_rather_than_broken_json(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    run.append("a", {"x": float("nan"), "y": [float("inf"), 1.5]})
    assert list(run.rows()) == [("a", {"x": None, "y": [None, 1.5]})]


def test_a_damaged_middle_row_is_named(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    run.append("a", {})
    with (run.path / "results.jsonl").open("a") as file:
        file.write("garbage\n")
    run.append("b", {})
    with pytest.raises(RunDirectoryError, match="line 2"):
        list(run.rows())


def test_an_existing_run_is_not_overwritten(tmp_path):
    RunDirectory.create(tmp_path / "run", _request()).release()
    with pytest.raises(RunDirectoryError, match="already holds a run") as caught:
        RunDirectory.create(tmp_path / "run", _request())
    assert "--resume" in caught.value.fix


def test_somebody_elses_directory_is_not_used(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(RunDirectoryError, match="not empty"):
        RunDirectory.create(tmp_path, _request())


def test_two_processes_do_not_resume_the_same_run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    with pytest.raises(RunDirectoryError, match="Another process"):
        RunDirectory.resume(run.path)
    run.release()
    RunDirectory.resume(run.path).release()


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        RunDirectory.read(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        run = RunDirectory.create(disk / "run", _request())
        run.append("first", {"kept": True})
        (disk / "filler").write_bytes(b"x" * (180 << 10))
        with pytest.raises(RunDirectoryError, match="cannot be written") as caught:
            run.append("big", {"samples": ["x" * (200 << 10)]})
        assert "No space left" in caught.value.why
        assert "--resume" in caught.value.fix
        run.release()
        (disk / "filler").unlink()
        again = RunDirectory.resume(run.path)
        assert next(again.rows()) == ("first", {"kept": True})
        again.release()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_place_is_a_clear_error():
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create(Path("/proc/run"), _request())
    assert "--out" in caught.value.fix


def test_default_paths_do_not_collide(tmp_path):
    first = default_path("a/b", tmp_path)
    first.mkdir(parents=True)
    assert default_path("a/b", tmp_path) != first
    assert slug("onnxruntime[CPU] fp32 threads=2") == "onnxruntime-CPU-fp32-threads=2"


@pytest.mark.parametrize("fields", [{"batches": ()}, {"batches": (0,)}, {"batches": (1, -4)}])
def test_impossible_batches_are_refused(fields):
    with pytest.raises(OptionError):
        _request(**fields)


def test_rows_are_json_lines_for_any_tool(tmp_path):
    run = RunDirectory.create(tmp_path / "run", _request())
    run.append("a", {"text": "line\nbreak"})
    script = "import json,sys; print([json.loads(l)['kind'] for l in open(sys.argv[1])])"
    out = subprocess.run(
        [sys.executable, "-c", script, str(run.path / "results.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout.replace("'", '"')) == ["a"]
