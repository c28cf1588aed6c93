"""The engine's directory: what was saved comes back, and what was damaged does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
import torch

from peregrine.compiler import engine, fingerprint
from peregrine.compiler.engine import differences, load, save
from peregrine.compiler.tactics.base import Device
from peregrine.errors import BundleCorrupt, BundleError
from small_plan import FINGERPRINT, small_plan

_H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)


def _weights(seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    return {
        "w": draw(16, 8, 3, 3).contiguous(memory_format=torch.channels_last),
        "bias": draw(16),
        "head": draw(16, 10).T,
        "axes": torch.tensor([2, 3]),
    }


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    kernels = {"gemm.cubin": b"\x7fELF" * 50, "deep/gemm.json": b"{}"}
    home = tmp_path / "engine"
    save(home, [small_plan()], [_weights()], FINGERPRINT, kernels, device=_H200)
    return home


def test_an_engine_comes_back_as_it_was(saved):
    found = load(saved)
    assert found.plans == (small_plan(),)  # infinities, tuples and absent inputs too
    assert found.plans[0].steps[0].operation.key() == small_plan().steps[0].operation.key()
    assert found.fingerprint == FINGERPRINT
    assert found.device == _H200
    assert sorted(found.kernels) == ["deep/gemm.json", "gemm.cubin"]
    assert found.kernel("gemm.cubin") == b"\x7fELF" * 50
    with pytest.raises(KeyError):
        found.kernel("../plan.json")
    (weights,) = found.weights()
    assert weights.keys() == _weights().keys()
    for name, made in _weights().items():
        assert _same(weights[name], made), name
    assert sorted(p.name for p in saved.iterdir()) == [
        "kernels",
        "plan.json",
        "weights.safetensors",
    ]
    assert [p.name for p in saved.parent.iterdir()] == ["engine"]  # no drafts are left


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8,
     torch.uint8, torch.bool, torch.float8_e4m3fn],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (4, 3), (2, 5, 3, 3)])
def test_weights_of_every_kind(tmp_path, dtype, shape):
    made = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    weights = {**_weights(), "extra": made, "odd/name: 'x'": made[..., None].transpose(0, -1)}
    save(tmp_path / "e", [small_plan()], [weights], {})
    (found,) = load(tmp_path / "e").weights()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].stride() == tensor.stride() or not tensor.numel()
        assert torch.equal(found[name].double(), tensor.double()), name


def test_views_and_numpy_arrays_are_weights_too(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    weights = {
        **_weights(),
        "base": base, "flat": base.view(-1), "row": base[1], "column": base[:, 2],
        "gaps": base[::2, ::3], "wide": base[:, :1].expand(4, 5),
        "numpy": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "bf16": np.arange(5).astype(ml_dtypes.bfloat16), "scalar": np.float32(2.5).reshape(()),
    }  # fmt: skip
    save(tmp_path / "e", [small_plan()], [weights], {})
    (found,) = load(tmp_path / "e").weights()
    for name in ("base", "flat", "row", "column", "gaps", "wide"):
        assert _same(found[name], weights[name]), name
    np.testing.assert_array_equal(found["numpy"].numpy(), weights["numpy"])
    assert found["bf16"].dtype == torch.bfloat16
    assert found["bf16"].tolist() == [0, 1, 2, 3, 4]
    assert found["scalar"].shape == ()


def test_plans_share_the_weights_that_are_equal(tmp_path):
    plans = [small_plan(batch=1), small_plan(batch=4)]
    first, second = _weights(), _weights()
    second["bias"] = first["bias"] + 1
    second["also"] = first["w"].clone()
    save(tmp_path / "two", plans, [first, second], {})
    save(tmp_path / "one", plans[:1], [first], {})
    size = [(tmp_path / n / "weights.safetensors").stat().st_size for n in ("one", "two")]
    assert size[1] - size[0] < first["bias"].nbytes + 200
    found = load(tmp_path / "two")
    assert [plan.dims for plan in found.plans] == [{"batch": 1}, {"batch": 4}]
    one, two = found.weights()
    assert one["w"] is two["w"] is two["also"]
    assert _same(one["bias"], first["bias"])
    assert _same(two["bias"], second["bias"])


def test_equal_bytes_of_another_type_shape_or_order_are_not_equal(tmp_path):
    zeros = torch.zeros(6)
    weights = {
        **_weights(), "f": zeros, "i": zeros.int(), "m": zeros.reshape(2, 3),
        "t": torch.zeros(3, 2).T,
    }  # fmt: skip
    save(tmp_path / "e", [small_plan()], [weights], {})
    (found,) = load(tmp_path / "e").weights()
    assert all(_same(found[name], weights[name]) for name in weights)


def test_reading_imports_neither_the_compiler_nor_what_made_the_model(saved):
    code = (
        "import sys\n"
        "from peregrine.compiler.engine import load\n"
        f"engine = load({str(saved)!r})\n"
        "light = 'torch' not in sys.modules\n"
        "engine.weights()\n"
        "heavy = ('onnx', 'onnx_ir', 'onnxscript', 'triton', 'peregrine.compiler.autotune',\n"
        "         'peregrine.compiler.lower', 'peregrine.compiler.importing')\n"
        "print(light, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "True []"


def test_nothing_in_it_is_a_pickle(saved):
    for path in saved.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80", b"PK"))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "kernels/gemm.cubin"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "grow", "remove"])
def test_damage_is_told(saved, name, damage):
    path = saved / name
    size = path.stat().st_size
    if damage == "flip":
        _flip(path, size // 2)
    elif damage == "remove":
        path.unlink()
    else:
        data = path.read_bytes()
        changed = {"truncate": data[: size // 2], "empty": b"", "grow": data + b"x"}[damage]
        path.write_bytes(changed)
    expected = BundleError if (name, damage) == ("plan.json", "remove") else BundleCorrupt
    with pytest.raises(expected) as caught:
        load(saved)
    assert path.name in str(caught.value)
    assert caught.value.why
    assert caught.value.fix


def test_any_changed_byte_of_the_plan_is_told(saved):
    path = saved / "plan.json"
    whole = path.read_bytes()
    step = max(1, len(whole) // 300)
    for at in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError) as caught:
            load(saved)
        assert caught.value.fix, at


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 99, "other": []}', "format 99"),
        ('{"words": 1}', "no plan of an engine"),
        ('{"format": "one"}', "damaged"),
        ('{"format": 1}', "damaged"),
        ("[]", "damaged"),
        ("\x00", "damaged"),
    ],
)
def test_another_version_and_another_file_are_told_apart(saved, text, words):
    (saved / "plan.json").write_text(text)
    with pytest.raises(BundleError, match=words) as caught:
        load(saved)
    assert caught.value.fix


def test_a_plan_that_names_files_outside_is_refused(saved):
    """Whoever can rewrite the plan can rewrite its hash, and still reads nothing else."""
    import hashlib

    sealed = json.loads((saved / "plan.json").read_bytes())
    secret = saved.parent / "secret"
    secret.write_text("x")
    sealed["contents"]["files"]["../secret"] = {
        "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()
    }  # fmt: skip
    contents = msgspec.json.encode(sealed["contents"])
    sealed["sha256"] = hashlib.sha256(contents).hexdigest()
    (saved / "plan.json").write_bytes(
        msgspec.json.encode({**sealed, "contents": msgspec.Raw(contents)})
    )
    with pytest.raises(BundleCorrupt):
        load(saved)


def test_no_engine_is_told(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="is no engine") as caught:
            load(place)
        assert caught.value.fix


def test_what_differs_is_named(saved):
    found = load(saved)
    assert differences(found, FINGERPRINT) == []
    here = {**FINGERPRINT, "gpu": "NVIDIA L4", "cudnn": "9.19"}
    del here["triton"]
    assert differences(found, here) == [
        ("gpu", "NVIDIA H200", "NVIDIA L4"),
        ("triton", "3.6.0", ""),
        ("cudnn", "", "9.19"),
    ]


def test_other_code_of_the_compiler_is_a_difference(saved, monkeypatch):
    """Its tactics may read packed weights another way."""
    found = load(saved)
    was = fingerprint.code()
    monkeypatch.setattr(fingerprint, "code", lambda: "another")
    assert differences(found, FINGERPRINT) == [("code of Peregrine's compiler", was, "another")]


def test_an_engine_replaces_an_engine_and_nothing_else(saved, tmp_path):
    save(saved, [small_plan("another")], [_weights(6)], {})
    assert load(saved).plans[0].name == "another"
    assert load(saved).kernels == ()
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]
    empty = tmp_path / "empty"
    empty.mkdir()
    save(str(empty), [small_plan()], [_weights()], {})
    assert load(str(empty)).plans
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").write_text("diary")
    with pytest.raises(BundleError, match="is no engine"):
        save(tmp_path / "letters", [small_plan()], [_weights()], {})
    assert (tmp_path / "letters" / "dear").read_text() == "diary"


def test_a_save_that_fails_leaves_the_old_engine(saved, monkeypatch):
    monkeypatch.setattr(engine, "PLAN", "no/such/directory/plan.json")
    with pytest.raises(BundleError):
        save(saved.parent / "new", [small_plan("another")], [_weights()], {})
    monkeypatch.undo()
    assert load(saved).plans[0].name == "small"
    assert [p.name for p in saved.parent.iterdir()] == ["engine"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written") as caught:
        save(tmp_path / "file" / "engine", [small_plan()], [_weights()], {})
    assert caught.value.fix


def test_a_directory_is_as_others_make_it(tmp_path):
    save(tmp_path / "e", [small_plan()], [_weights()], {})
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "e").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_no_engine_can_be_made_of_is_refused(tmp_path):
    lost = _weights()
    del lost["axes"]
    with pytest.raises(ValueError, match="axes"):
        save(tmp_path / "e", [small_plan()], [lost], {})
    with pytest.raises(ValueError, match="at least one"):
        save(tmp_path / "e", [], [], {})
    for name in ("../x", "/x", "", "a/../../x"):
        with pytest.raises(ValueError, match="out of the engine"):
            save(tmp_path / "e", [small_plan()], [_weights()], {}, {name: b""})
    assert not (tmp_path / "e").exists()
