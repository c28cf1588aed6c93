"""Kernels kept with an engine are found by a process in which Triton's hashes are others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_PROGRAM = """
import json, sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compiler.tactics.operations import H200, image
from peregrine.compiler.operation import Operation
from peregrine.compiler.tactics import _triton, _triton_cache, registry

pooled = Operation(
    "ai.onnx.GlobalAveragePool",
    inputs=(image("float16", (2, 64, 7, 7)),),
    outputs=(image("float16", (2, 64, 1, 1)),),
    opset=17,
)
tactic, kernels = registry.get("triton_global_pool"), []
_triton.compile_ahead = lambda made, device: kernels.extend(made)
tactic.compile(pooled, tactic.configs(pooled, H200)[:1], H200)

engine = Path(sys.argv[2])
if sys.argv[1] == "load":
    _triton_cache.restore(
        {f"{path.parent.name}/{path.name}": path.read_bytes() for path in engine.glob("*/*")}
    )
made = _triton.specialise(kernels[0], H200)
with _triton.CacheWatch() as watch:  # what a launch asks for
    found = triton.compile(
        ASTSource(kernels[0].function, made["signature"], dict(made["constants"]),
                  dict(made["attributes"])),
        target=GPUTarget(*made["target"]), options=made["options"])
if sys.argv[1] == "build":
    for name, data in _triton_cache.collect([found]).items():
        (engine / name).parent.mkdir(exist_ok=True)
        (engine / name).write_bytes(data)
print(json.dumps([found.hash, watch.hits, watch.misses]))
"""


def _run(step: str, engine: Path, cache: Path, **environment: str) -> tuple[str, int, int]:
    """(the kernel's hash, hits, misses) of a process that interprets nothing."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, step, str(engine)],
        env={
            **kept,
            "TRITON_CACHE_DIR": str(cache),
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
    assert (hits, misses) == (0, 1)
    return home, built


def test_a_kept_kernel_is_found_in_an_empty_cache(engine, tmp_path):
    home, built = engine
    assert _run("load", home, tmp_path) == (built, 1, 0)


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


def test_a_kept_kernel_is_found_where_another_libdevice_would_be_linked(engine, tmp_path):
    home, built = engine
    library = tmp_path / "libdevice.10.bc"
    library.write_bytes(b"another")
    found, hits, misses = _run("load", home, tmp_path / "c", TRITON_LIBDEVICE_PATH=str(library))
    assert found != built
    assert (hits, misses) == (1, 0)


def test_a_kept_kernel_is_not_used_where_other_code_is_asked_for(engine, tmp_path):
    home, built = engine
    found, hits, misses = _run("load", home, tmp_path, TRITON_DISABLE_LINE_INFO="1")
    assert found != built
    assert (hits, misses) == (0, 1)
