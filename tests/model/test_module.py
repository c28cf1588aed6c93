import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import small_models
from peregrine.errors import ModelCorrupt, ModelError, ModelNotFound, Unsupported
from peregrine.model import weights
from peregrine.model.inputs import parse_input
from peregrine.model.load import load
from peregrine.model.module import (
    Positional,
    call_factory,
    is_plain,
    keyword_inputs,
    named_tensors,
    parameter_count,
    to_array,
    to_tensor,
)

TESTS = Path(small_models.__file__).parent
X = parse_input("x:float32:Bx3x16x16")

Pair = namedtuple("Pair", "first second")


def test_results_flatten_in_order_with_the_names_they_have():
    a, b, c, d = (torch.tensor(float(n)) for n in range(4))
    nested = {"y": a, "more": (b, {"z": c}), "none": None, "pair": Pair(d, a)}
    assert [(n, t.item()) for n, t in named_tensors(nested)] == [
        ("y", 0),
        ("more_0", 1),
        ("more_1_z", 2),
        ("pair_first", 3),
        ("pair_second", 0),
    ]
    assert [n for n, _ in named_tensors((a, b))] == ["", ""]
    assert is_plain((a, b))
    assert is_plain(a)
    assert not is_plain([a, b])
    assert not is_plain(Pair(a, b))


def test_results_that_are_no_tensors_are_refused():
    with pytest.raises(ModelError, match="returned a float"):
        list(named_tensors((torch.zeros(1), 3.0)))


class Keyworded(nn.Module):
    def forward(self, ids, other=None, *, mask):
        return {"y": ids * 2 + mask}


def test_inputs_go_by_keyword_only_where_they_must():
    assert keyword_inputs(Keyworded(), ["ids", "mask"]) == ("ids", "mask")
    assert keyword_inputs(Keyworded(), ["ids", "other"]) == ()
    assert keyword_inputs(Keyworded(), ["anything"]) == ()
    assert keyword_inputs(nn.Sequential(), ["input"]) == ()
    wrapped = Positional(Keyworded(), ["ids", "mask"])
    assert wrapped(torch.tensor(3.0), torch.tensor(1.0)).item() == 7


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool", "uint8"])
def test_arrays_and_tensors_convert_both_ways(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    array = np.array([[0, 1], [1, 0]]).astype(kind).T
    back = to_array(to_tensor(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert to_tensor(np.array(5)).shape == ()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("view", torch.arange(6.0).view(2, 3).T)


def test_shared_tensors_are_stored_once_and_come_back_shared(tmp_path):
    module, other = Tied(), Tied()
    weights.save(module, tmp_path / "w.safetensors")
    one_matrix = 4 * 16
    assert (tmp_path / "w.safetensors").stat().st_size < 2 * one_matrix + 800
    weights.load(other, tmp_path / "w.safetensors")
    assert other.b.weight is other.a.weight
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert parameter_count(module) == 16 + 4 + 4


def test_weights_of_another_module_are_refused(tmp_path):
    weights.save(nn.Linear(3, 4), tmp_path / "w.safetensors")
    with pytest.raises(ModelCorrupt):
        weights.load(nn.Linear(3, 5), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"random")
    with pytest.raises(ModelCorrupt):
        weights.load(nn.Linear(3, 4), tmp_path / "w.safetensors")


def test_a_factory_is_found_in_the_search_path(tmp_path, monkeypatch):
    (tmp_path / "peregrine_test_nets.py").write_text(
        "import torch\n"
        "class Holder:\n    make = staticmethod(lambda: torch.nn.Linear(2, 3))\n"
        "def broken():\n    raise KeyError('lost')\n"
        "def number():\n    return 3\n"
        "constant = 5\n"
    )
    before = list(sys.path)
    found = call_factory("peregrine_test_nets:Holder.make", [str(tmp_path)])
    assert isinstance(found, nn.Linear)
    assert sys.path == before
    for ref, error, said in [
        ("peregrine_test_nets:brokn", ModelNotFound, "'broken'"),
        ("peregrine_test_nets:broken", ModelError, "KeyError: 'lost'"),
        ("peregrine_test_nets:number", ModelError, "returned a int"),
        ("peregrine_test_nets:constant", ModelError, "not callable"),
        ("peregrine_no_such_module:f", ModelNotFound, "no Python module"),
    ]:
        with pytest.raises(error) as caught:
            call_factory(ref, [str(tmp_path)])
        assert said in str(caught.value)


def run_elsewhere(directory, cwd):
    """Outputs' sums of the module in `directory`, rebuilt by a fresh process."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom peregrine.model.model import Model\n"
        "m = Model.open(Path(sys.argv[1])).load_module()\n"
        "x = torch.linspace(0, 1, 2*3*16*16).view(2, 3, 16, 16)\n"
        "with torch.inference_mode(): print(float(m(x).abs().sum()), m.training)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    total, training = done.stdout.split()
    assert training == "False"
    return float(total)


@pytest.mark.parametrize("kind", ["factory", "memory"])
def test_another_process_rebuilds_the_same_module(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(TESTS)
    source = "small_models:residual" if kind == "factory" else small_models.residual()
    model = load(source, tmp_path / "m", inputs=[X])
    x = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    with torch.inference_mode():
        here = float(small_models.residual()(x).abs().sum())
    assert run_elsewhere(model.directory, tmp_path) == pytest.approx(here, rel=1e-5)


def test_a_graph_has_no_module(tmp_path, linear_graph):
    with pytest.raises(Unsupported, match="no PyTorch module"):
        load(linear_graph, tmp_path).load_module()
