import subprocess
import sys

import numpy as np
import pytest
import torch

from peregrine.errors import ModelNotFound
from peregrine.model import zoo
from peregrine.model.inputs import random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.model.probe import OnnxRunner


def test_names():
    assert set(zoo.names()) == {
        *("efficientnet_lite0", "mobilenet_v2", "squeezenet1_0", "squeezenet1_1"),
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    }
    with pytest.raises(ModelNotFound, match="'resnet50'"):
        zoo.entry("resnet-50")


def test_listing_names_imports_no_torch():
    code = "import sys, peregrine.model.zoo as z; z.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_random_weights_follow_the_seed(name):
    one, same, other = (
        zoo.build(name, weights="random", seed=seed)[0].state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_building_leaves_the_callers_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    zoo.build("squeezenet1_1", weights="random")
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_loads_as_a_model(tmp_path, name):
    model = load(name, tmp_path, weights="random", seed=1)
    assert str(model.inputs[0]) == "x:float32:batchx3x224x224"
    assert str(model.outputs[0]) == "logits:float32:batchx1000"
    # Random weights have no classes worth comparing.
    assert (model.batch, model.classifier, model.notes) == ("batch", False, ())
    assert model.weights.startswith("random, seed 1, ")
    assert model.preprocessing["size"] == 224
    assert model.parameters == {"squeezenet1_1": 1235496, "resnet18": 11689512}[name]
    opened = Model.open(tmp_path)
    feeds = random_feeds(opened, 2, seed=9)
    with torch.inference_mode():
        want = opened.load_module()(torch.from_numpy(feeds["x"])).numpy()
    (got,) = OnnxRunner(opened.onnx_path).run(feeds)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.names() if n not in ("squeezenet1_1", "resnet18")])
def test_the_others_load_too(tmp_path, name):
    model = load(name, tmp_path, weights="random")
    assert model.onnx
    assert not model.notes


def test_efficientnet_lite0_is_the_trained_network(tmp_path, shared_data):
    model = load("efficientnet_lite0", tmp_path)
    assert model.weights.startswith("pretrained (ImageNet")
    x = random_feeds(model, 2, seed=3)["x"] * 2 - 1
    (want,) = OnnxRunner(shared_data / "models" / "efficientnet_lite0.onnx").run({"input": x})
    (got,) = OnnxRunner(model.onnx_path).run({"x": x})
    with torch.inference_mode():
        module = model.load_module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(module, want, atol=1e-4)


def test_a_missing_package_shows_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(Exception, match="not installed") as caught:
        zoo.build("efficientnet_lite0", weights="random")
    assert "pip install efficientnet-lite-pytorch==0.1.0" in caught.value.fix
