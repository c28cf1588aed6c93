import numpy as np
import pytest
import torch
from torch import nn

from peregrine.errors import ExportError, ModelError
from peregrine.model.export import disagreement
from peregrine.model.inputs import parse_input, random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.model.module import to_array, to_tensor
from peregrine.model.probe import OnnxRunner
from small_models import SMALL


def graph_and_module_agree(model, batches=(1, 2, 5)):
    """Run both on fresh inputs; the module as a worker would rebuild it."""
    runner = OnnxRunner(model.onnx_path)
    module = model.load_module()
    for batch in batches if model.batch else (1,):
        feeds = random_feeds(model, batch, seed=77)
        with torch.inference_mode():
            want = module(*map(to_tensor, feeds.values()))
        wanted = [want] if isinstance(want, torch.Tensor) else list(want)
        got = runner.run(feeds)
        assert len(got) == len(wanted) == len(model.outputs)
        for spec, a, b in zip(model.outputs, wanted, got, strict=True):
            assert not disagreement(to_array(a), b), spec
            sizes = model.sizes(batch)
            assert b.dtype.name == spec.dtype
            assert all(
                size == sizes.get(dim, size) if isinstance(dim, str) else size == dim
                for size, dim in zip(b.shape, spec.shape, strict=True)
            )


@pytest.mark.parametrize("name", SMALL)
def test_every_small_model(tmp_path, name):
    small = SMALL[name]()
    model = small.load(tmp_path)
    assert model.inputs == small.inputs
    assert model.batch == "batch"
    assert model.onnx
    assert not model.notes
    assert Model.open(tmp_path) == model
    graph_and_module_agree(model)


def test_one_file_holds_a_small_graph(tmp_path):
    model = SMALL["attention"]().load(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.json", "model.onnx", "model.pt2"}
    assert model.parameters == sum(p.numel() for p in SMALL["attention"]().module.parameters())


class OwnState(nn.Module):
    """Makes its initial state itself, of the batch's size: what exporters love to freeze."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True, num_layers=2)

    def forward(self, x):
        return self.lstm(x)[0]


def test_an_lstm_that_makes_its_own_state_keeps_its_batch(tmp_path):
    torch.manual_seed(0)
    model = load(OwnState(), tmp_path, inputs=[parse_input("x:float32:Bx6x4")])
    assert model.outputs[0].shape == ("batch", 6, 5)
    graph_and_module_agree(model)


class Awkward(nn.Module):
    """Keyword inputs, one of them unused; nested outputs, one with an input's name."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)

    def forward(self, a, b=None, *, c, unused):
        return {"y": self.inner(a) + c, "a": c * 2, "pair": (c + 1, a[:, :2])}


def test_awkward_signatures(tmp_path):
    specs = ["c:float32:Bx5", "a:float32:Bx4", "unused:int64:Bx7"]
    model = load(Awkward(), tmp_path, inputs=[parse_input(s) for s in specs])
    assert [s.name for s in model.inputs] == ["c", "a", "unused"]
    assert [s.name for s in model.outputs] == ["y", "a_out", "pair_0", "pair_1"]
    graph_and_module_agree(model)


def test_where_one_exporter_is_wrong_the_other_is_taken(tmp_path, capfd):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    model = load(
        module, tmp_path, inputs=[parse_input("x:float32:Bxlengthx16")], dims={"length": 5}
    )
    assert any("TorchScript" in note for note in model.notes)
    graph_and_module_agree(model)
    assert capfd.readouterr().out == ""


class Looped(nn.Module):
    def forward(self, x):
        return torch.stack([row.sum() * 2 for row in x])


def test_a_loop_over_the_batch_is_caught(tmp_path):
    with pytest.raises(ExportError) as caught:
        load(Looped(), tmp_path, inputs=[parse_input("x:float32:Bx4")])
    assert "factory" in caught.value.fix


def test_a_factory_that_no_exporter_takes_still_has_its_module(tmp_path, monkeypatch):
    (tmp_path / "peregrine_looped.py").write_text(
        "import torch\nclass Looped(torch.nn.Module):\n    def forward(self, x):\n"
        "        return torch.stack([row.sum() * 2 for row in x])\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load("peregrine_looped:Looped", tmp_path / "m", inputs=[parse_input("x:float32:Bx4")])
    assert model.onnx == ""
    assert "TorchScript" in model.onnx_error
    assert "torch.export" in model.onnx_error
    assert model.outputs[0].shape == ("batch",)
    assert model.load_module()(torch.ones(3, 4)).tolist() == [8, 8, 8]


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def test_a_branch_on_data_is_reported(tmp_path):
    model = load(Branching(), tmp_path, inputs=[parse_input("x:float32:Bx4")])
    assert model.module is None
    assert any("miss a branch" in note for note in model.notes)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions(tmp_path, dtype):
    module = nn.Linear(3, 4).to(getattr(torch, dtype))
    model = load(module, tmp_path, inputs=[parse_input(f"x:{dtype}:Bx3")])
    assert model.outputs[0].dtype == dtype
    graph_and_module_agree(model)


def test_a_graph_that_cannot_be_verified_is_not_kept(tmp_path):
    module = nn.Conv2d(3, 4, 3).bfloat16()
    model = load(module, tmp_path, inputs=[parse_input("x:bfloat16:Bx3x8x8")])
    assert model.onnx == ""
    assert "bfloat16" in model.onnx_error
    assert not (tmp_path / "model.onnx").exists()
    assert model.load_module()(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)).shape == (1, 4, 6, 6)


def test_a_fixed_batch_stays_fixed(tmp_path):
    model = load(nn.Conv2d(3, 4, 3), tmp_path, inputs=[parse_input("x:float32:1x3x8x8")])
    assert (model.batch, model.outputs[0].shape) == ("", (1, 4, 6, 6))
    graph_and_module_agree(model)


def test_inputs_that_the_module_cannot_take_are_its_own_words(tmp_path):
    with pytest.raises(ModelError, match="does not run") as caught:
        load(nn.Linear(3, 4), tmp_path, inputs=[parse_input("x:float32:Bx5")])
    assert "cannot be multiplied" in caught.value.why


def test_the_callers_module_stays_as_it_was(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    module[2].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    load(module, tmp_path, inputs=[parse_input("x:float32:Bx3")])
    assert [part.training for part in module.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("want", "got", "said"),
    [
        (np.float32([1, 2]), np.float32([1, 2.00001]), ""),
        (np.float32([1, 2]), np.float32([1, 2.1]), "norm"),
        (np.float32([1, 2]), np.float32([1, np.nan]), "NaN"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, 2]), np.float64([1, 2]), "instead of"),
        (np.float32([1, 2]), np.float32([[1, 2]]), "instead of"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2"),
    ],
)
def test_disagreement(want, got, said):
    found = disagreement(want, got)
    assert (said in found) if said else (found == "")
