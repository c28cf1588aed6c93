"""Kernels kept with an engine are found by a process in which Triton's hashes are others, and one
that can't be restored is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peregrine.compiler.tactics import _gluon, _triton_cache

_PROGRAM = """
import json, sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compiler.tactics.operations import H200, conv, image
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics import _triton, _triton_cache, registry

step, name, engine = sys.argv[1], sys.argv[2], Path(sys.argv[3])
operation = Operation(
    "ai.onnx.GlobalAveragePool",
    inputs=(image("float16", (2, 64, 7, 7)),),
    outputs=(image("float16", (2, 64, 1, 1)),),
    opset=17,
)
if name == "gluon_pointwise":
    from triton.experimental.gluon._runtime import GluonASTSource as ASTSource

    operation = conv((256, 24, 56, 56), 144, Window((1, 1)), dtype="float16")
tactic, kernels = registry.get(name), []
compile_ahead = _triton.compile_ahead
_triton.compile_ahead = lambda made, device: kernels.extend(made)
tactic.compile(operation, tactic.configs(operation, H200)[:1], H200)

if step == "build":
    compile_ahead(kernels, H200)
else:
    restored = _triton_cache.restore(
        {f"{path.parent.name}/{path.name}": path.read_bytes() for path in engine.glob("*/*")}
    )
    assert not restored.problems, restored.problems
made = _triton.specialise(kernels[0], H200)
with _triton.CacheWatch() as watch:  # what a launch asks for
    found = triton.compile(
        ASTSource(kernels[0].function, made["signature"], dict(made["constants"]),
                  dict(made["attributes"])),
        target=GPUTarget(*made["target"]), options=made["options"])
if step == "build":
    assert name != "gluon_pointwise" or found.metadata.num_warps != kernels[0].warps
    launched = _triton.Launched(found, kernels[0].options)
    for name, data in _triton_cache.collect([launched]).items():
        (engine / name).parent.mkdir(exist_ok=True)
        (engine / name).write_bytes(data)
print(json.dumps([found.hash, watch.hits, watch.misses]))
"""


def _run(
    step: str, engine: Path, cache: Path, tactic: str = "triton_global_pool", **environment: str
) -> tuple[str, int, int]:
    """(the kernel's hash, hits, misses) of a process that interprets nothing."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, step, tactic, str(engine)],
        env={
            **kept,
            "TRITON_CACHE_DIR": str(cache),
            "PEREGRINE_COMPILE_WORKERS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, hits, misses = json.loads(done.stdout.splitlines()[-1])
    return found, hits, misses


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    home = tmp_path_factory.mktemp("engine")
    built, hits, misses = _run("build", home, tmp_path_factory.mktemp("cache"))
    assert (hits, misses) == (1, 0)
    return home, built


@pytest.mark.slow
def test_a_kept_kernel_is_found_in_an_empty_cache(engine, tmp_path):
    home, built = engine
    assert _run("load", home, tmp_path) == (built, 1, 0)


@pytest.mark.slow
def test_a_kept_kernel_is_found_where_another_assembler_would_compile(engine, tmp_path):
    """torch.compile names one in the environment of the process that it compiles in, and children
    inherit it."""
    home, built = engine
    assembler = tmp_path / "ptxas"
    assembler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.9, V13.9.1'\n")
    assembler.chmod(0o755)
    named = dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), str(assembler))
    found, hits, misses = _run("load", home, tmp_path / "c", **named)
    assert found != built
    assert (hits, misses) == (1, 0)


@pytest.mark.slow
def test_a_kept_kernel_is_found_where_another_libdevice_would_be_linked(engine, tmp_path):
    home, built = engine
    library = tmp_path / "libdevice.10.bc"
    library.write_bytes(b"another")
    found, hits, misses = _run("load", home, tmp_path / "c", TRITON_LIBDEVICE_PATH=str(library))
    assert found != built
    assert (hits, misses) == (1, 0)


@pytest.mark.slow
def test_a_kept_kernel_is_not_used_where_other_code_is_asked_for(engine, tmp_path):
    home, built = engine
    found, hits, misses = _run("load", home, tmp_path, TRITON_DISABLE_LINE_INFO="1")
    assert found != built
    assert (hits, misses) == (0, 1)


@pytest.mark.slow
def test_a_kernel_of_specialised_warps_is_found(tmp_path):
    """Triton counts the warps of all groups in what it notes of the kernel, 12 for a launch of 4:
    no option that it would take."""
    if _gluon.version() < (3, 6):
        pytest.skip("this version of Triton has another Gluon")
    home = tmp_path / "engine"
    home.mkdir()
    built, *counted = _run("build", home, tmp_path / "first", "gluon_pointwise")
    assert counted == [1, 0]
    assert _run("load", home, tmp_path / "second", "gluon_pointwise") == (built, 1, 0)


_METADATA = json.dumps({"target": {"backend": "cuda", "arch": 90, "warp_size": 32}}).encode()
_SOURCE = {
    "module": "peregrine.compiler.kernels.pooling",
    "name": "mean_kernel",
    "signature": {},
    "constants": [],
    "attributes": [],
    "options": {"num_warps": 4, "num_stages": 3},
}
_WHOLE = {"k.cubin": b"binary", "k.json": _METADATA}


def _from(**changed) -> bytes:
    return json.dumps({**_SOURCE, **changed}).encode()


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # of Triton 3.9, once
@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({**_WHOLE, "kernel.source": _from(options={"num_warps": 12})}, "Error"),
        ({**_WHOLE, "kernel.source": _from(module="peregrine.gone")}, "No module named"),
        ({**_WHOLE, "kernel.source": _from(name="gone")}, "gone"),
        ({**_WHOLE, "kernel.source": b"{}"}, "KeyError"),
        ({**_WHOLE, "kernel.source": b"\xff no JSON"}, "Error"),
        ({**_WHOLE, "k.json": b"{"}, "JSONDecodeError"),
        ({**_WHOLE, "k.json": b"[]", "kernel.source": _from()}, "Error"),
        ({"k.json": _METADATA}, "no binary"),
        ({**_WHOLE, "other.json": _METADATA}, "too many values"),
        ({"kernel.source": _from()}, "not enough values"),
    ],
)
def test_an_odd_entry_is_left_out_and_the_others_restored(tmp_path, monkeypatch, odd, reason):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    files = {f"ODD/{name}": data for name, data in odd.items()}
    done = _triton_cache.restore({**files, "WHOLE/k.cubin": b"binary", "WHOLE/k.json": _METADATA})
    (problem,) = done.problems
    assert reason in problem
    assert done.written == 3  # with the list of the two
    assert [path.name for path in tmp_path.iterdir()] == ["WHOLE"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    place = tmp_path / "file"
    place.write_text("no directory")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(place))
    done = _triton_cache.restore({f"WHOLE/{name}": data for name, data in _WHOLE.items()})
    assert done.written == 0
    assert "NotADirectoryError" in done.problems[0]
