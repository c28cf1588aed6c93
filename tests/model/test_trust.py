import json
import pickle
import zipfile

import pytest
import torch

from peregrine.errors import ModelCorrupt, ModelNotFound, ModelUntrusted
from peregrine.model.load import load
from peregrine.model.trust import check_program, is_torchscript


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".bin"])
def test_a_pickle_is_refused_without_running_it(tmp_path, suffix):
    path, trace = tmp_path / f"m{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ModelUntrusted) as caught:
        load(path, tmp_path / "out")
    assert "--trust" in caught.value.fix
    assert not trace.exists()


def test_a_missing_pickle_is_missing_whether_trusted_or_not(tmp_path):
    with pytest.raises(ModelNotFound):
        load(tmp_path / "m.pt", tmp_path / "out", trust=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)

    class Halves(torch.nn.Module):
        def forward(self, x):
            return x[:, : x.shape[1] // 2] * 2

    exported = torch.export.export(Halves(), (torch.rand(3, 8),), dynamic_shapes=dynamic)
    torch.export.save(exported, path)
    return path


def repack(source, target, change):
    """Copy an archive, each payload through `change(name, payload)`; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            payload = change(name, old.read(name))
            if payload is not None:
                new.writestr(name, payload)
    return target


def test_what_torch_export_saves_is_accepted(program):
    check_program(program, trust=False)


def test_a_pickle_in_place_of_sample_inputs_is_refused_without_running_it(tmp_path, program):
    trace = tmp_path / "ran"
    path = repack(
        program,
        tmp_path / "m.pt2",
        lambda name, old: pickle.dumps(Bomb(trace)) if name.endswith(".pt") else old,
    )
    with pytest.raises(ModelUntrusted, match="more than tensors"):
        load(path, tmp_path / "out")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"path_name": "weight_0", "use_pickle": True}, "pickled tensor"),
        ({"path_name": "custom_obj_0", "use_pickle": False}, "pickled object"),
        ({"path_name": "opaque_obj_0", "use_pickle": False}, "pickled object"),
    ],
)
def test_pickled_payloads_are_refused(tmp_path, program, payload, said):
    config = json.dumps({"config": {"w": payload}})
    path = repack(
        program,
        tmp_path / "m.pt2",
        lambda name, old: config if name.endswith("constants_config.json") else old,
    )
    with pytest.raises(ModelUntrusted, match=said):
        check_program(path, trust=False)
    check_program(path, trust=True)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "exec(chr(49))",
        "Symbol('s0').func",
        "open('x')",
        "getattr(Symbol, 's')",
        "[s0 for s0 in s1]",
        "Symbol('a b')",
        "lambda: s0",
        "s0[0]",
        "(",
    ],
)
def test_sizes_that_are_code_are_refused(tmp_path, program, expression):
    def plant(name, old):
        if name.endswith("models/model.json"):
            return old.replace(
                b'"expr_str":', b'"expr_str": %s, "was":' % json.dumps(expression).encode()
            )
        return old

    path = repack(program, tmp_path / "m.pt2", plant)
    with pytest.raises(ModelUntrusted, match="no arithmetic"):
        check_program(path, trust=False)


def test_native_code_is_refused(tmp_path, program):
    path = repack(program, tmp_path / "m.pt2", lambda _, old: old)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/aotinductor/model/x.so", b"\x7fELF")
    with pytest.raises(ModelUntrusted, match="native code"):
        check_program(path, trust=False)


def test_a_damaged_archive_is_corrupt(tmp_path, program):
    for content in (b"", b"random bytes" * 30, program.read_bytes()[:-400]):
        path = tmp_path / "m.pt2"
        path.write_bytes(content)
        with pytest.raises(ModelCorrupt):
            load(path, tmp_path / "out")
    with pytest.raises(ModelNotFound):
        check_program(tmp_path / "none.pt2", trust=False)


def test_torchscript_is_told_from_a_pickle(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickle.pt")
    assert not is_torchscript(tmp_path / "pickle.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert is_torchscript(tmp_path / "script.pt")
