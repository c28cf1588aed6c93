"""Fingerprints tell what differs in plain words; the machine's facts are read from the system."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from peregrine import fingerprint, hardware, processor
from peregrine.model.model import Model
from peregrine.types import Candidate, DimRange, Precision, Profile, Target

MODEL = Model(name="m", directory=Path("m"), inputs=(), outputs=(), sha256="ab" * 32)
CANDIDATE = Candidate("onnxruntime", "CPUExecutionProvider", options={"threads": 2})
TARGET = Target(profile=Profile({"batch": DimRange(1, 2, 4)}))


@pytest.fixture
def here() -> fingerprint.Fingerprint:
    return fingerprint.current(MODEL, CANDIDATE, TARGET, distributions=["numpy", "no-such-thing"])


def test_current_tells_this_place(here: fingerprint.Fingerprint) -> None:
    assert here.versions == {"numpy": metadata.version("numpy"), "no-such-thing": ""}
    assert here.python == platform.python_version().rpartition(".")[0]
    assert here.arch == platform.machine()
    assert here.profile == {"batch": (1, 2, 4)}
    assert here.options == {"threads": 2}
    assert here.gpu == here.driver == ""
    again = fingerprint.current(MODEL, CANDIDATE, TARGET, distributions=["numpy", "no-such-thing"])
    assert fingerprint.differences(here, again) == []


def test_it_survives_json(here: fingerprint.Fingerprint) -> None:
    text = json.dumps(here.to_json())
    assert fingerprint.Fingerprint.from_json(json.loads(text)) == here


@pytest.mark.parametrize("spoil", [{"cpu_flags": None}, {"profile": {"batch": [1]}}, {"extra": 1}])
def test_other_json_is_refused(here: fingerprint.Fingerprint, spoil: dict) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        fingerprint.Fingerprint.from_json({**here.to_json(), **spoil})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"versions": {"numpy": "0.9", "no-such-thing": ""}}, "numpy 0.9 there, {numpy} here"),
        ({"versions": {"numpy": ""}}, "numpy not installed there, {numpy} here"),
        ({"python": "2.7"}, "Python 2.7 there, {python} here"),
        ({"os": "Plan 9"}, "operating system Plan 9 there, {os} here"),
        ({"arch": "pdp11"}, "architecture pdp11 there, {arch} here"),
        ({"cpu": "Z80"}, "CPU Z80 there, {cpu} here"),
        ({"model_sha256": "cd" * 32}, "model sha256 cdcdcdcdcdcd there, abababababab here"),
        ({"precision": "int8"}, "precision int8 there, fp32 here"),
        ({"options": {}}, "options none there, {{'threads': 2}} here"),
        (
            {"profile": {"batch": (8, 8, 8)}},
            "profile batch 8 there, batch 1 to 4 (best 2) here",
        ),
    ],
)
def test_differences_are_sentences(
    here: fingerprint.Fingerprint, change: dict, sentence: str
) -> None:
    saved = dataclasses.replace(here, **change)
    facts = {**here.to_json(), "numpy": here.versions["numpy"]}
    wanted = sentence.format(**facts)
    # A version that neither place has is no difference.
    assert fingerprint.differences(saved, here) == [wanted]


def test_missing_extensions_are_named(here: fingerprint.Fingerprint) -> None:
    saved = dataclasses.replace(here, cpu_flags=("sve", "sve2"))
    there = dataclasses.replace(here, cpu_flags=("avx2", "sve"))
    assert fingerprint.differences(saved, there) == [
        "CPU extensions sve2 there, missing here",
        "CPU extensions avx2 here, missing there",
    ]


def test_a_gpu_engine_depends_on_the_gpu_and_not_the_cpu(here: fingerprint.Fingerprint) -> None:
    saved = dataclasses.replace(
        here, device="cuda", gpu="H200", capability="9.0", driver="580", cuda="13.0"
    )
    there = dataclasses.replace(saved, cpu="Z80", cpu_flags=(), capability="8.0", driver="535")
    assert fingerprint.differences(saved, there) == [
        "compute capability 9.0 there, 8.0 here",
        "driver 580 there, 535 here",
    ]
    assert fingerprint.differences(saved, here) == ["device cuda there, cpu here"]


def test_precision_and_given_versions() -> None:
    half = dataclasses.replace(CANDIDATE, precision=Precision.FP16)
    made = fingerprint.current(MODEL, half, TARGET, versions={"x": "1"}, python="3.12")
    assert (made.precision, made.versions, made.python) == ("fp16", {"x": "1"}, "3.12")


def test_the_machine() -> None:
    machine = fingerprint.machine()
    assert machine.cpu
    assert 1 <= machine.physical_cores <= machine.logical_cores <= (os.cpu_count() or 1)
    assert 64 < machine.memory_mb <= psutil.virtual_memory().total / 2**20
    assert platform.machine() in machine.os
    assert platform.python_version() in machine.python
    assert set(machine.cpu_flags) <= processor.VECTOR_FLAGS
    assert list(machine.cpu_flags) == sorted(machine.cpu_flags)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells flags by /proc")
def test_flags_are_the_processors() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert set(processor.cpu_flags()) == processor.VECTOR_FLAGS & words


def test_a_cgroup_limit_bounds_memory(tmp_path: Path) -> None:
    """Both layouts, as a file tree: the limit of any group above this process counts."""
    for path, text in {
        "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu:/\n0::/slice/unit\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "2097152000\n",
        "sys/fs/cgroup/slice/unit/memory.max": "max\n",
        "sys/fs/cgroup/slice/memory.max": "1048576000\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    limits = sorted(hardware._cgroup_limits(tmp_path))
    assert limits == [1048576000.0, 2097152000.0, 9223372036854771712.0]
    assert list(hardware._cgroup_limits(tmp_path / "nowhere")) == []


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from peregrine import fingerprint; fingerprint.machine(); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


SMI = """#!/bin/sh
case "$*" in
  *query-gpu*) cat <<'END'
NVIDIA H200, GPU-aaaa, 9.0, 143771, 580.159.04, 700.00, 1980
NVIDIA L4, GPU-bbbb, 8.9, [N/A], 580.159.04, [N/A], [N/A]
END
  ;;
  *) echo "| NVIDIA-SMI 580.159.04  Driver Version: 580.159.04  CUDA Version: 13.0  |" ;;
esac
"""
BROKEN_SMI = "#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'; exit 9\n"


@pytest.fixture
def path_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def put_smi(directory: Path, script: str) -> None:
    tool = directory / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)


def test_gpus_by_the_drivers_tool(path_of_tools: Path) -> None:
    """What nvidia-smi printed on a machine with an H200, and a second card beside it."""
    put_smi(path_of_tools, SMI)
    first, second = hardware._gpus_from_smi()
    assert str(first) == (
        "NVIDIA H200 (capability 9.0, 143771 MiB, at most 700 W, SM clock up to 1980 MHz, "
        "driver 580.159.04, CUDA 13.0)"
    )
    assert str(second) == "NVIDIA L4 (capability 8.9, 0 MiB, driver 580.159.04, CUDA 13.0)"
    assert (second.capability, second.memory_mb) == ("8.9", 0.0)


def test_a_tool_without_a_driver(path_of_tools: Path) -> None:
    put_smi(path_of_tools, BROKEN_SMI)
    assert list(hardware._gpus_from_smi()) == []


@pytest.mark.parametrize(
    ("visible", "index", "name"),
    [
        (None, 0, "NVIDIA H200"),
        (None, 1, "NVIDIA L4"),
        (None, 2, None),
        ("1", 0, "NVIDIA L4"),
        ("1,0", 1, "NVIDIA H200"),
        ("GPU-bb", 0, "NVIDIA L4"),
        ("1,7,0", 1, None),
        ("", 0, None),
    ],
)
def test_visible_gpus_are_cudas(
    path_of_tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    index: int,
    name: str | None,
) -> None:
    put_smi(path_of_tools, SMI)
    found = tuple(hardware._gpus_from_smi())
    monkeypatch.setattr(hardware, "gpus", lambda: found)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = hardware.visible_gpu(index)
    assert (gpu.name if gpu else None) == name


@pytest.mark.gpu
def test_nvml_and_the_tool_agree() -> None:
    """So that installing nvidia-ml-py does not change a fingerprint."""
    nvml = pytest.importorskip("pynvml")
    by_tool = tuple(hardware._gpus_from_smi())
    assert by_tool
    assert tuple(hardware._gpus_from_nvml(nvml)) == by_tool
