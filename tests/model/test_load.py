import json
import os
import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from peregrine.errors import (
    FeedError,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
    OptionError,
    RunDirectoryError,
)
from peregrine.model.inputs import parse_input
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.model.probe import OnnxRunner


def test_a_file_a_proto_and_what_they_say_of_themselves(tmp_path, linear_graph):
    path = tmp_path / "nets" / "linear.onnx"
    path.parent.mkdir()
    onnx.save(linear_graph, path)
    from_file = load(path, tmp_path / "a")
    assert (from_file.name, from_file.source) == ("linear", str(path))
    assert from_file.weights == "from the file"
    assert from_file.parameters == 12
    from_memory = load(linear_graph, tmp_path / "b", name="mine")
    assert from_memory.name == "mine"
    assert from_memory.inputs == from_file.inputs
    assert from_memory.sha256 == from_file.sha256


PHOTOS = {"size": 8, "resize": "short side 10, bilinear", "scale": "0..1"}


@pytest.mark.parametrize("said", [PHOTOS, {"preprocessing": PHOTOS, "source": "elsewhere"}])
def test_a_json_file_beside_says_how_photos_become_inputs(tmp_path, linear_graph, said):
    onnx.save(linear_graph, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps(said))
    assert load(tmp_path / "m.onnx", tmp_path / "a").preprocessing == PHOTOS


@pytest.mark.parametrize(
    ("said", "noted"), [({"size": 8, "crop": "left"}, True), ({"epochs": 3}, False), ([], True)]
)
def test_a_json_file_beside_that_says_something_else(tmp_path, linear_graph, said, noted):
    onnx.save(linear_graph, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps(said))
    model = load(tmp_path / "m.onnx", tmp_path / "a")
    assert not model.preprocessing
    assert any("m.json" in note for note in model.notes) is noted


def test_the_directory_stands_without_the_file(tmp_path, linear_graph):
    path = tmp_path / "m.onnx"
    onnx.save(linear_graph, path)
    load(str(path), tmp_path / "a")
    path.unlink()
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = Model.open(tmp_path / "b")
    (y,) = OnnxRunner(moved.onnx_path).run({"x": np.eye(4, dtype=np.float32)})
    assert y.shape == (4, 3)


def test_equal_models_have_equal_hashes(tmp_path, linear_graph):
    one, two = (load(linear_graph, tmp_path / n).sha256 for n in "ab")
    linear_graph.graph.initializer[0].raw_data = bytes(48)
    assert one == two != load(linear_graph, tmp_path / "c").sha256


def program(path, module, args, **how):
    torch.export.save(torch.export.export(module, args, **how), path)
    return path


class Two(nn.Module):
    def forward(self, a, *, c):
        return {"total": a + c, "twice": c * 2}


def test_a_program_with_keyword_inputs_and_named_outputs(tmp_path):
    batch = torch.export.Dim("b")
    path = program(
        tmp_path / "m.pt2",
        Two(),
        (torch.rand(2, 4),),
        kwargs={"c": torch.rand(2, 4)},
        dynamic_shapes={"a": {0: batch}, "c": {0: batch}},
    )
    model = load(path, tmp_path / "out")
    path.unlink()
    assert [s.shape for s in model.inputs] == [("batch", 4)] * 2
    assert [s.name for s in model.outputs] == ["total", "twice"]
    module = Model.open(tmp_path / "out").load_module()
    total, twice = module.eval()(torch.ones(5, 4), torch.full((5, 4), 2.0))
    assert (total.sum(), twice.sum()) == (60, 80)


def test_a_program_of_open_width_asks_for_it(tmp_path):
    path = program(
        tmp_path / "m.pt2",
        nn.Conv2d(3, 4, 3),
        (torch.rand(2, 3, 9, 9),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},),
    )
    with pytest.raises(OptionError, match="width"):
        load(path, tmp_path / "out")
    model = load(path, tmp_path / "out", dims={"width": 20})
    assert model.inputs[0].shape == ("batch", 3, 9, "width")
    assert model.outputs[0].shape[:3] == ("batch", 4, 7)


def test_a_program_of_fixed_sizes(tmp_path):
    path = program(tmp_path / "m.pt2", nn.Linear(3, 4), (torch.rand(2, 3),))
    model = load(path, tmp_path / "out")
    assert (model.batch, model.inputs[0].shape) == ("", (2, 3))


def test_trusted_pickles(tmp_path):
    module = nn.Linear(3, 4).eval()
    x = [parse_input("x:float32:Bx3")]
    torch.save(module, tmp_path / "module.pt")
    torch.jit.script(module).save(tmp_path / "script.pt")
    want = module(torch.ones(2, 3))
    for name in ("module", "script"):
        path = tmp_path / f"{name}.pt"
        model = load(path, tmp_path / name, inputs=x, trust=True)
        path.unlink()
        rebuilt = Model.open(tmp_path / name).load_module()
        assert torch.allclose(rebuilt(torch.ones(2, 3)), want)
        assert model.onnx


def test_a_state_dict_is_explained(tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "m.pth")
    with pytest.raises(ModelError, match="not a module") as caught:
        load(tmp_path / "m.pth", tmp_path / "out", trust=True)
    assert "weight, bias" in caught.value.why
    assert "package.module:function" in caught.value.fix


def test_a_trusted_file_of_rubbish_is_an_error_of_ours(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"rubbish" * 20)
    with pytest.raises(ModelError, match="cannot be unpickled"):
        load(tmp_path / "m.pt", tmp_path / "out", trust=True)


def test_an_example_says_what_inputs_look_like(tmp_path):
    example = {"x": np.zeros((2, 3), np.float32)}
    model = load(nn.Linear(3, 4), tmp_path, example=example)
    assert str(model.inputs[0]) == "x:float32:batchx3"


def test_without_inputs_the_flag_is_shown(tmp_path):
    with pytest.raises(OptionError) as caught:
        load(nn.Linear(3, 4), tmp_path)
    assert "--input input:float32:" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("ResNet-18", "resnet18")],
)
def test_a_misspelt_zoo_name_is_answered_with_the_nearest(tmp_path, name, near):
    with pytest.raises(ModelNotFound, match=f"Did you mean '{near}'"):
        load(name, tmp_path)


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, linear_graph):
    onnx.save(linear_graph, tmp_path / "linear.onnx")
    with pytest.raises(ModelNotFound, match=r"linear\.onnx"):
        load(tmp_path / "liner.onnx", tmp_path / "out")
    with pytest.raises(ModelNotFound, match="is a directory") as caught:
        load(tmp_path, tmp_path / "out")
    assert "linear.onnx" in caught.value.fix
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelNotFound, match="no kind"):
        load(tmp_path / "notes.txt", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "error"), [(3, ModelError), (None, ModelError), ("", ModelNotFound)]
)
def test_what_is_no_model(tmp_path, source, error):
    with pytest.raises(error):
        load(source, tmp_path)


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(OptionError, match="'best'"):
        load("resnet18", tmp_path, weights="best")


def test_an_example_that_does_not_fit_is_refused(tmp_path, linear_graph):
    with pytest.raises(FeedError):
        load(linear_graph, tmp_path, example={"x": np.zeros((2, 5), np.float32)})


def test_an_unwritable_directory_is_named(tmp_path, linear_graph):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="file"):
        load(linear_graph, tmp_path / "file" / "m")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("kind", ["graph", "module"])
def test_a_full_disk_is_named(tmp_path, linear_graph, kind):
    target = {"graph": "model.onnx", "module": "model.pt2"}[kind]
    (tmp_path / target).symlink_to("/dev/full")
    source = linear_graph if kind == "graph" else nn.Linear(4, 3)
    if kind == "graph":
        onnx.save(linear_graph, tmp_path / "source.onnx")
        source = tmp_path / "source.onnx"
    with pytest.raises(RunDirectoryError, match="could not be written") as caught:
        load(source, tmp_path, inputs=[parse_input("x:float32:Bx4")])
    assert "space" in caught.value.why


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_named(tmp_path, linear_graph):
    path = tmp_path / "m.onnx"
    onnx.save(linear_graph, path)
    path.chmod(0)
    with pytest.raises(ModelError, match="cannot be read"):
        load(path, tmp_path / "out")


def test_a_directory_that_is_no_model_is_corrupt(tmp_path):
    with pytest.raises(ModelCorrupt):
        Model.open(tmp_path)
    (tmp_path / "model.json").write_text('{"inputs": []')
    with pytest.raises(ModelCorrupt):
        Model.open(tmp_path)
