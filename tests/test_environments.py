"""Environments are listed, used and removed for real; failures leave nothing. `test_cli` makes one
from the package index and races in it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from peregrine import environments
from peregrine.environments import making
from peregrine.errors import EnvironmentFailure, OptionError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEREGRINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def broken_set(monkeypatch: pytest.MonkeyPatch) -> environments.VersionSet:
    """A version set that pip cannot satisfy; nothing is asked of the network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    broken = environments.VersionSet(
        name="broken",
        summary="",
        backends=("openvino",),
        packages=("no-such-distribution==1.0",),
        imports=("json",),
        tested="",
    )
    monkeypatch.setattr(making, "version_sets", lambda: {"broken": broken})
    return broken


def test_by_default_a_worker_runs_here() -> None:
    assert environments.list_all() == []
    found = environments.interpreter_for("openvino")
    assert found == environments.Interpreter(Path(sys.executable))


def test_home_without_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PEREGRINE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environments.home().is_relative_to(tmp_path)
    assert environments.home().name == "peregrine"


def test_version_sets_are_pinned_and_serve_known_backends() -> None:
    from peregrine.backends import registry

    sets = environments.version_sets()
    assert {"openvino", "onnxruntime", "onnxruntime-openvino", "torch", "tensorrt"} <= set(sets)
    for chosen in sets.values():
        assert chosen.summary
        assert chosen.imports
        assert set(chosen.backends) <= set(registry.names())
        for package in chosen.packages:
            assert "==" in package, f"{chosen.name}: {package} is not pinned"
        needed = {package.partition("==")[0] for package in chosen.packages}
        assert {"numpy", "ml-dtypes", "psutil"} <= needed
    assert "torch==2.13.0" in sets["torch"].packages


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(EnvironmentFailure, match="Did you mean 'openvino'"):
        environments.create("openvinno", report=print)


def test_a_failed_create_leaves_nothing(home: Path, broken_set: environments.VersionSet) -> None:
    lines: list[str] = []
    with pytest.raises(EnvironmentFailure, match="no-such-distribution") as caught:
        environments.create("broken", report=lines.append)
    assert "No matching distribution" in caught.value.why
    assert "peregrine env add" in caught.value.fix
    assert any("no-such-distribution" in line for line in lines)
    assert not (home / "environments" / "broken").exists()
    assert environments.list_all() == []


def test_an_observer_that_fails_stops_it(home: Path, broken_set: environments.VersionSet) -> None:
    def report(line: str) -> None:
        if "Installing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.create("broken", report=report)
    assert not (home / "environments" / "broken").exists()


SLOW_SET = """
import os
from peregrine import environments
from peregrine.environments import making

step = "time, os; print('pid', os.getpid(), flush=True); time.sleep(float(os.environ['SECONDS']))"
# pip is in every new environment, so that installing it needs no network.
chosen = environments.VersionSet("slow", "", ("openvino",), ("pip",), (step,), "")
making.version_sets = lambda: {"slow": chosen}
making.WORKER_NEEDS = ("sys",)
environments.create("slow", report=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_in_the_middle(home: Path, sent: signal.Signals) -> None:
    """Ctrl-C cleans up at once; after SIGKILL the leftover does not count, and is swept."""
    command = [sys.executable, "-c", SLOW_SET]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SECONDS": "60"},
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    with process:
        pid = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid "))
        process.send_signal(sent)
    assert process.returncode != 0
    assert environments.list_all() == []
    directory = home / "environments" / "slow"
    if sent is signal.SIGINT:
        assert not directory.exists()
        assert not psutil.pid_exists(pid)
        return
    os.kill(pid, signal.SIGKILL)
    assert directory.exists()
    again = subprocess.check_output(command, text=True, env={**os.environ, "SECONDS": "0"})
    assert "interrupted `env create slow` left" in again
    assert [env.name for env in environments.list_all()] == ["slow"]


def test_two_processes_do_not_make_the_same(
    home: Path, broken_set: environments.VersionSet
) -> None:
    locks = home / "environments" / ".locks"
    locks.mkdir(parents=True)
    with (locks / "broken").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentFailure, match="Another process"):
            environments.create("broken", report=print)


def test_an_unwritable_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEREGRINE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailure, match="PEREGRINE_HOME"):
        environments.add("mine", ["openvino"], python=Path(sys.executable))


def test_add_a_site_directory(home: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "only_there.py").write_text("answer = 42\n")
    added = environments.add("mine", ["openvino", "onnxruntime"], site=site)
    assert not added.made
    found = environments.interpreter_for("onnxruntime")
    assert found.search_path == (str(site),)
    assert found.python == Path(sys.executable)
    script = f"import sys; sys.path[:0] = {found.search_path!r}; import only_there"
    subprocess.run([found.python, "-c", script], check=True)
    environments.remove("mine")
    assert (site / "only_there.py").exists()


def test_add_an_interpreter_keeps_its_environment(home: Path) -> None:
    """A venv's python is a link: following it would leave the venv."""
    environments.add("mine", ["pytorch"], python=Path(sys.executable))
    assert environments.interpreter_for("pytorch").python == Path(sys.executable)


def test_the_newest_environment_of_a_backend_is_used(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        environments.add(name, ["openvino"], site=tmp_path / name)
    assert [env.name for env in environments.list_all()] == ["b", "a"]
    assert environments.interpreter_for("openvino").search_path == (str(tmp_path / "a"),)
    environments.remove("a")
    assert environments.interpreter_for("openvino").search_path == (str(tmp_path / "b"),)


def test_what_cannot_be_added(tmp_path: Path) -> None:
    here = Path(sys.executable)
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho I am no Python; exit 3\n")
    fake.chmod(0o755)
    with pytest.raises(EnvironmentFailure, match="I am no Python") as caught:
        environments.add("mine", ["openvino"], python=fake)
    assert "pip install numpy" in caught.value.fix
    with pytest.raises(EnvironmentFailure, match="No such file"):
        environments.add("mine", ["openvino"], python=tmp_path / "nowhere")
    with pytest.raises(EnvironmentFailure, match="no directory"):
        environments.add("mine", ["openvino"], site=tmp_path / "nowhere")
    with pytest.raises(EnvironmentFailure, match="cannot name"):
        environments.add("../mine", ["openvino"], python=here)
    with pytest.raises(OptionError, match="Did you mean 'openvino'"):
        environments.add("mine", ["openvin"], python=here)
    with pytest.raises(OptionError, match="Nothing to point at"):
        environments.add("mine", ["openvino"])
    with pytest.raises(OptionError, match="No backend"):
        environments.add("mine", [], python=here)
    assert environments.list_all() == []
    environments.add("mine", ["openvino"], python=here)
    with pytest.raises(EnvironmentFailure, match="already"):
        environments.add("mine", ["openvino"], python=here)


def test_an_interpreter_without_what_a_worker_needs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    with pytest.raises(EnvironmentFailure, match="No module named 'numpy'"):
        environments.add("mine", ["openvino"], python=tmp_path / "bare" / "bin" / "python")


def test_an_environment_whose_files_are_gone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    environments.add("mine", ["openvino"], site=site)
    site.rmdir()
    assert environments.list_all()[0].problem == f"{site} is gone."
    with pytest.raises(EnvironmentFailure, match="env remove mine"):
        environments.interpreter_for("openvino")
    assert environments.interpreter_for("onnxruntime").python == Path(sys.executable)
    environments.remove("mine")


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    environments.add("mine", ["openvino"], python=Path(sys.executable))
    with pytest.raises(EnvironmentFailure, match="Did you mean 'mine'"):
        environments.remove("mime")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "mine"}', "\x00"])
def test_a_spoilt_record_is_named(home: Path, content: str) -> None:
    directory = home / "environments" / "mine"
    directory.mkdir(parents=True)
    (directory / "environment.json").write_text(content)
    with pytest.raises(EnvironmentFailure, match=r"environment\.json cannot be read"):
        environments.list_all()


def test_records_are_json_that_a_person_can_read(home: Path) -> None:
    environments.add("mine", ["openvino"], python=Path(sys.executable))
    record = json.loads((home / "environments" / "mine" / "environment.json").read_text())
    assert record["backends"] == ["openvino"]
    assert record["created"] <= time.strftime("%Y-%m-%dT%H:%M:%S~", time.gmtime())
