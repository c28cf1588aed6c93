"""What timings and engines are valid for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from peregrine.compiler import fingerprint as fingerprints
from peregrine.compiler.fingerprint import differences, fingerprint


def test_a_cpu_is_itself():
    found = fingerprint("cpu")
    assert found == fingerprint("cpu")
    assert found["device"] == "cpu"
    assert found["cpu"]
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    assert "gpu" not in found
    assert all(isinstance(value, str) for value in found.values())


@pytest.mark.gpu
def test_a_gpu_by_what_the_driver_says():
    found = fingerprint("cuda:0")
    asked = "--query-gpu=name,driver_version,compute_cap"
    said = subprocess.run(
        ["nvidia-smi", asked, "--format=csv,noheader", "--id=0"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    name, driver, capability = (word.strip() for word in said.split(","))
    assert (found["gpu"], found["driver"], found["capability"]) == (name, driver, capability)
    assert found["cuda"] == torch.version.cuda
    assert found["cudnn"].isdigit()


def test_fields_that_one_has_not_are_empty_there():
    assert differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == [
        ("a", "1", ""), ("b", "2", "3"), ("c", "", "4")
    ]  # fmt: skip
    assert differences({"a": "1"}, {"a": "1"}) == []


@pytest.mark.parametrize(
    ("name", "counts"),
    [("tactics/triton_conv.py", True), ("kernels/conv.py", True), ("runtime.py", True),
     ("explain.py", False)],
)  # fmt: skip
def test_the_code_is_what_an_engine_runs_by(tmp_path, monkeypatch, name, counts):
    home = Path(fingerprints.__file__).parent
    shutil.copytree(home, tmp_path / "compiler")
    monkeypatch.setattr(fingerprints, "__file__", str(tmp_path / "compiler" / "fingerprint.py"))
    whole = fingerprints.code.__wrapped__
    before = whole()
    assert whole() == before
    path = tmp_path / "compiler" / name
    path.write_text(path.read_text() + "\nadded = 1\n")
    assert (whole() != before) == counts
