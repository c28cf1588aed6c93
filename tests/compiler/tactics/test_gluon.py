"""The tactics of kernels with specialised warps: what they take and offer, that it fits the chip,
and on a GPU that it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.kernels.test_conv import branches
from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import (
    H200,
    IDENTITY,
    TOLERANCE,
    activation,
    conv,
    empty,
    linear,
    relative_error,
    tensors,
)
from peregrine.compiler.operators import ActivationKind, Window
from peregrine.compiler.tactics import _gluon
from peregrine.compiler.tactics.gluon_pointwise import GluonPointwise, Slab
from peregrine.compiler.tactics.gluon_rows import GluonRows, Strip
from peregrine.compiler.torch_ops.fused import reference

SAME = Window((3, 3), (1, 1), (1, 1, 1, 1))
ONE = Window((1, 1))
HALF = {"dtype": "float16"}
SILU = activation(ActivationKind.SILU)
ROWS = [
    conv((256, 64, 56, 56), 64, SAME, **HALF),
    conv((256, 64, 56, 56), 64, SAME, residual=True, **HALF),
    conv((16, 64, 56, 56), 64, SAME, slice_of=128, **HALF),
    conv((256, 64, 27, 27), 256, SAME, **HALF),
    branches((256, 16, 54, 54), (64, 64), SAME),
    branches((256, 48, 27, 27), (192, 192), SAME),
    branches((256, 64, 13, 13), (256, 256), SAME),
]
POINTWISE = [
    conv((256, 24, 56, 56), 144, ONE, **HALF),
    conv((256, 256, 14, 14), 1024, ONE, residual=True, **HALF),
    conv((256, 64, 14, 14), 384, ONE, **HALF),
    linear((65536, 96), 200, dtype="bfloat16"),
]
EVERY = [
    *((GluonRows(), operation) for operation in ROWS),
    *((GluonPointwise(), operation) for operation in POINTWISE),
]


@pytest.fixture(autouse=True)
def the_version_of_the_kernels(monkeypatch):
    """As if the kernels could run: they can't be interpreted, and nothing here is launched."""
    if not cases.DEVICE.is_cuda:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(_gluon, "version", lambda: (3, 6))


@pytest.mark.parametrize(("tactic", "operation"), EVERY)
def test_what_is_offered_fits_and_differs(tactic, operation):
    support = tactic.supports(operation, H200)
    assert support, support.reason
    configs = [dict(config) for config in tactic.configs(operation, H200)]
    assert 1 <= len(configs) <= 3
    assert len({json.dumps(config) for config in configs}) == len(configs)
    for config in configs:
        assert json.loads(json.dumps(config)) == config
        assert 0 < config["programs"] <= H200.multiprocessors
        assert 1e-6 < tactic.predict(operation, config, H200) < 1e-3
        assert _bytes(tactic, operation, config) <= _gluon.SHARED_MEMORY


def _bytes(tactic, operation, config) -> int:
    """Of shared memory, as the tactic counts them."""
    from peregrine.compiler.tactics._layers import read_layer
    from peregrine.compiler.tactics.gluon_rows import _Sizes

    if isinstance(tactic, GluonRows):
        sizes = _Sizes.read(operation)
        return Strip.read(config).shared_memory(sizes.padded, sizes.branch > 0)
    return Slab.read(config).shared_memory(read_layer(operation))


@pytest.mark.parametrize(
    ("tactic", "operation", "reason"),
    [
        (GluonRows(), conv((256, 64, 56, 56), 64, ONE, **HALF), "not 3x3"),
        (
            GluonRows(),
            conv((256, 64, 56, 56), 64, replace(SAME, strides=(2, 2)), **HALF),
            "strides",
        ),
        (GluonRows(), conv((256, 72, 56, 56), 64, SAME, **HALF), "over 64 channels"),
        (GluonRows(), conv((256, 64, 56, 56), 72, SAME, **HALF), "no multiple of 64"),
        (GluonRows(), conv((256, 20, 9, 9), 64, SAME, **HALF), "16 bytes apart"),
        (GluonRows(), conv((1, 64, 56, 56), 64, SAME, **HALF), "too few images"),
        (GluonRows(), conv((256, 64, 56, 56), 64, SAME), "float16 or bfloat16"),
        (GluonRows(), conv((256, 64, 9, 9), 64, SAME, group=2, **HALF), "grouped"),
        (GluonRows(), branches((256, 16, 54, 54), (64, 128), SAME), "different numbers"),
        (GluonRows(), linear((4, 8), 8), "not peregrine.Linear"),
        (GluonPointwise(), conv((256, 64, 56, 56), 64, SAME, **HALF), "no 1x1"),
        (GluonPointwise(), conv((1, 64, 56, 56), 64, ONE, **HALF), "under 16384 pixels"),
        (GluonPointwise(), conv((256, 320, 14, 14), 64, ONE, **HALF), "over 256 channels"),
        (
            GluonPointwise(),
            conv((256, 64, 56, 56), 64, replace(ONE, strides=(2, 2)), **HALF),
            "no 1x1",
        ),
    ],
)
def test_what_they_refuse(tactic, operation, reason):
    answer = tactic.supports(operation, H200)
    assert not answer
    assert reason in answer.reason


def test_where_they_run(monkeypatch):
    tactic, operation = GluonRows(), ROWS[0]
    assert "9.0" in tactic.supports(operation, replace(H200, capability=(10, 0))).reason
    monkeypatch.setattr(_gluon, "version", lambda: (3, 7))
    assert "Gluon" in tactic.supports(operation, H200).reason
    assert GluonPointwise().supports(POINTWISE[0], H200)
    monkeypatch.setattr(_gluon, "version", lambda: (3, 5))
    assert "Gluon" in GluonPointwise().supports(POINTWISE[0], H200).reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in GluonPointwise().supports(POINTWISE[0], H200).reason


_COMPILE = """
import json, os
from compiler.tactics import test_gluon as cases
os.environ.pop("TRITON_INTERPRET", 0)
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from importlib import import_module
from peregrine.compiler.tactics import _gluon, _triton

for tactic, operation in cases.EVERY:
    if not tactic.supports(operation, cases.H200):
        continue
    for config in tactic.configs(operation, cases.H200)[:1]:
        kernel = _triton.specialise(tactic.kernel(operation, config), cases.H200)
        source = GluonASTSource(
            getattr(import_module(kernel["module"]), kernel["name"]),
            kernel["signature"], dict(kernel["constants"]), dict(kernel["attributes"]),
        )
        target = GPUTarget(*kernel["target"])
        made = triton.compile(source, target=target, options=kernel["options"])
        allowed = cases._bytes(tactic, operation, config)
        products = made.asm["ptx"].count("wgmma.mma_async")
        print(json.dumps([tactic.name, made.metadata.shared, allowed, products]))
"""


@pytest.mark.slow
def test_they_compile_to_what_they_count_on(tmp_path):
    """By the real compiler, in a process that interprets nothing: products of whole warp groups,
    in no more shared memory than was counted."""
    env = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert {name for name, *_ in rows} >= {"gluon_pointwise"}
    for name, used, counted, products in rows:
        assert used <= counted, name
        assert products > 0, name


def _errors(tactic, operation, seed: int) -> list[float]:
    """Of each configuration and output; outputs and their gaps are NaN before, and gaps after."""
    inputs = tensors(operation, cases.DEVICE.name, seed)
    expected = reference(operation, inputs)
    found = []
    for config in tactic.configs(operation, cases.DEVICE):
        given = [t if i in operation.constants else None for i, t in enumerate(inputs)]
        packed = tactic.pack(operation, config, given)
        bound = [
            p if i in operation.constants else t
            for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
        ]
        outputs = [empty(kind, cases.DEVICE.name) for kind in operation.outputs]
        launch = tactic.bind(operation, config, bound, outputs, None, None)
        for _ in range(3):
            for output in outputs:
                output.fill_(float("nan"))
            launch()
            found += [relative_error(y, truth) for y, truth in zip(outputs, expected, strict=True)]
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(8))
def test_rows_on_a_gpu(seed):
    shape = (24 + 7 * seed, (64, 24, 40, 8, 64, 16, 32, 48)[seed], 5 + seed, 30 + seed)
    half = {"dtype": ("float16", "bfloat16")[seed % 2]}
    if seed % 3 == 0:
        operation = branches(shape, (64 * (1 + seed % 2),) * 2, SAME, biases=(seed % 2 == 0, True))
    else:
        operation = conv(
            shape,
            128 if seed % 4 == 1 else 64,
            SAME if seed % 5 else Window((3, 3)),
            residual=seed % 2 == 0,
            bias=seed % 3 == 1,
            activation=SILU if seed % 4 == 2 else IDENTITY,
            slice_of=136 if seed > 3 else 0,
            **half,
        )
    answer = GluonRows().supports(operation, cases.DEVICE)
    if "another Gluon" in answer.reason:
        pytest.skip(answer.reason)
    assert answer, answer.reason
    assert max(_errors(GluonRows(), operation, seed)) < TOLERANCE[operation.inputs[0].dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(8))
def test_pointwise_on_a_gpu(seed):
    operation = conv(
        (40 + seed, (16, 200, 72, 256, 24, 128, 8, 96)[seed], 26, 22),
        (72, 264, 128, 512, 144, 64, 1000, 96)[seed],
        ONE,
        residual=seed % 3 == 0,
        bias=seed % 4 != 1,
        activation=SILU if seed % 4 == 2 else IDENTITY,
        slice_of=1008 if seed > 4 else 0,
        dtype=("float16", "bfloat16")[seed // 2 % 2],
    )
    assert GluonPointwise().supports(operation, cases.DEVICE)
    assert max(_errors(GluonPointwise(), operation, seed)) < TOLERANCE[operation.inputs[0].dtype]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tactic", "operation"),
    [
        (GluonRows(), conv((64, 16, 9, 24), 64, SAME, residual=True, **HALF)),
        (GluonRows(), branches((64, 16, 9, 24), (64, 64), SAME)),
        (GluonPointwise(), conv((64, 24, 16, 24), 72, ONE, **HALF)),
    ],
)
def test_an_address_the_accelerator_cannot_have(tactic, operation):
    """Another kernel of the same weights takes it."""
    import torch

    support = tactic.supports(operation, cases.DEVICE)
    if "another Gluon" in support.reason:
        pytest.skip(support.reason)
    inputs = tensors(operation, cases.DEVICE.name, 3)
    expected = reference(operation, inputs)
    config = tactic.configs(operation, cases.DEVICE)[0]
    packed = tactic.pack(operation, config, inputs)
    bound = [
        p if i in operation.constants else t
        for i, (p, t) in enumerate(zip(packed, inputs, strict=True))
    ]
    outputs = []
    for y in operation.outputs:
        elements = y.extent // y.itemsize + 1
        flat = torch.full((elements,), float("nan"), dtype=torch.float16, device="cuda")
        outputs.append(flat.as_strided(y.shape, y.strides, 1))
    tactic.bind(operation, config, bound, outputs, None, None)()
    for output, truth in zip(outputs, expected, strict=True):
        assert relative_error(output, truth) < 3 * TOLERANCE["float16"]
