"""Scripts that reproduce, the picture, and all files at once."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.errors import OptionError, RunDirectoryError
from peregrine.report.png import write_png
from peregrine.report.render_all import write_all
from peregrine.report.reproduce import file_names, write_scripts
from peregrine.results import Report


def run_script(path: Path, tmp_path: Path) -> list[str]:
    """Run it with a `peregrine` on PATH that writes its arguments to a file."""
    tool = tmp_path / "bin" / "peregrine"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$ARGUMENTS"\n')
    tool.chmod(0o755)
    said = tmp_path / "arguments"
    env = os.environ | {"PATH": f"{tool.parent}:{os.environ['PATH']}", "ARGUMENTS": str(said)}
    subprocess.run([path, "--runs", "60"], env=env, check=True, cwd=tmp_path)
    return said.read_text().split("\0")[:-1]


def test_a_script_races_just_its_row(report: Report, tmp_path: Path) -> None:
    asked = dataclasses.replace(
        report,
        command="peregrine bench 'my model.onnx' --batch 1,8 --only x --only='y z' --out=a "
        "--skip q --resume-not b --json --out c",
    )
    paths = write_scripts(asked, tmp_path)
    for path, result in zip(paths, report.candidates, strict=True):
        assert run_script(path, tmp_path) == [
            "bench", "my model.onnx", "--batch", "1,8", "--resume-not", "b",
            "--only", result.id, "--runs", "60",
        ]  # fmt: skip
    text = paths[0].read_text()
    assert "torch==2.13.0" in text
    assert "#   python -m pip install numpy==2.4.0" in text


def test_any_id_is_quoted(hostile: Report, tmp_path: Path) -> None:
    (path, *_) = write_scripts(hostile, tmp_path)
    assert run_script(path, tmp_path)[-3] == hostile.candidates[0].id


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(report: Report, hostile: Report, tmp_path: Path) -> None:
    paths = write_scripts(report, tmp_path / "a") + write_scripts(hostile, tmp_path / "b")
    subprocess.run(["shellcheck", *paths], check=True)


def test_local_versions_are_left_out(report: Report, tmp_path: Path) -> None:
    row = dataclasses.replace(report.candidates[0], versions={"torch": "2.13.0+cpu"})
    (path,) = write_scripts(dataclasses.replace(report, candidates=(row,)), tmp_path)
    assert "pip install torch==2.13.0\n" in path.read_text()


def test_ids_that_look_alike_as_file_names_are_told_apart(report: Report) -> None:
    row = report.candidates[0]
    ids = ("a b", "a-b", "A b", "///", "é", "x" * 300)
    rows = tuple(dataclasses.replace(row, id=id) for id in ids)
    names = file_names(dataclasses.replace(report, candidates=rows))
    assert len({n.lower() for n in names}) == len(ids)
    assert all(n and len(n) < 200 and not n.startswith((".", "-")) for n in names)


def test_a_race_from_python_says_how_to_start_it_again(report: Report, tmp_path: Path) -> None:
    (path, *_) = write_scripts(dataclasses.replace(report, command=""), tmp_path)
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"only=({report.candidates[0].id!r},)" in done.stderr


def test_a_command_line_that_cannot_be_split_is_not_guessed(report: Report, tmp_path: Path) -> None:
    odd = dataclasses.replace(report, command="peregrine bench 'unclosed")
    (path, *_) = write_scripts(odd, tmp_path)
    assert "exec peregrine" not in path.read_text()


def test_everything_is_written(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_all(report, tmp_path)
    assert {p.name for p in written} >= {"report.json", "report.html", "report.png"}
    assert all(p.stat().st_size for p in written)
    assert sum(p.suffix == ".sh" for p in written) == len(report.candidates)
    assert all(os.access(p, os.X_OK) for p in written if p.suffix == ".sh")


def test_everything_is_written_of_next_to_nothing(
    edge_cases: dict[str, Report], hostile: Report, tmp_path: Path
) -> None:
    for number, report in enumerate((*edge_cases.values(), hostile)):
        for path in write_all(report, tmp_path / str(number)):
            assert path.is_file()


def test_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_png(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_the_error_has_the_command(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "matplotlib.figure", None
    )  # what import does where it is absent
    with pytest.raises(OptionError) as caught:
        write_png(report, tmp_path / "a.png")
    assert shlex.split(caught.value.fix)[-1] == "peregrine-inference[report]"
    assert not (tmp_path / "a.png").exists()


def test_an_unwritable_run_directory_is_an_error_of_ours(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_all(report, tmp_path / "file" / "run")


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, peregrine.report.table, peregrine.report.progress, peregrine.report.store;"
        "print([m for m in ('torch', 'matplotlib', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
