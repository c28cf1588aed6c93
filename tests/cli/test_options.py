"""The shared options: what is typed becomes what is asked of the API."""

import dataclasses
import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peregrine.api import make_request
from peregrine.cli.app import app
from peregrine.cli.options import RaceOptions
from peregrine.cli.races import bench, build
from peregrine.errors import OptionError
from peregrine.harness.request import Request
from peregrine.objective import Objective
from peregrine.types import Precision


def test_what_is_not_typed_is_as_in_the_api():
    asked = RaceOptions().for_api(batches=(1,))
    expected = dataclasses.replace(Request("m"), device="auto", command=asked["command"])
    assert Request("m", **asked) == expected


def test_every_word_arrives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npz", "photos.json", "classes.txt", "more.npz"):
        Path(name).touch()
    Path("others").mkdir()
    typed = {
        "inputs": ["x:float32:Bx6"],
        "dims": ["width=320"],
        "weights": "random",
        "seed": 3,
        "trust": True,
        "batch": "4,8",
        "precision": "fp16",
        "device": "cuda:0",
        "jobs": 4,
        "backends": ["openvino"],
        "only": ["openvino*"],
        "skip": ["pytorch"],
        "streams": "1,4",
        "find_max_batch": True,
        "no_cache": True,
        "objective": "throughput",
        "max_latency": 50.0,
        "max_memory": "1GB",
        "images": "photos",
        "preprocessing": Path("photos.json"),
        "feeds": [Path("a.npz")],
        "thresholds": ["cosine=0.9"],
        "calibration": ["others", "more.npz"],
        "labels": Path("classes.txt"),
        "max_drop": 0.5,
        "metric": "mine:score",
        "repair_budget": 30.0,
        "allow_undecided": True,
        "allow_fallback": True,
        "runs": 7,
        "rounds": 5,
        "threads": 2,
        "timeout": 9.0,
        "worker_memory": "2GB",
        "quiet": True,
    }
    assert set(typed) == {field.name for field in dataclasses.fields(RaceOptions)}
    assert Request("m", **RaceOptions(**typed).for_api() | {"command": ""}) == Request(
        "m",
        objective=Objective.throughput(50.0, 1024.0),
        batches=(4, 8),
        streams=(1, 4),
        find_max_batch=True,
        engine_cache=False,
        precisions=(Precision.FP16,),
        backends=("openvino",),
        only=("openvino*",),
        skip=("pytorch",),
        device="cuda:0",
        jobs=4,
        threads=2,
        seed=3,
        input_specs=("x:float32:Bx6",),
        dims={"width": 320},
        weights="random",
        trust=True,
        feeds=(str(tmp_path / "a.npz"),),
        images=str(tmp_path / "photos"),
        preprocessing=str(tmp_path / "photos.json"),
        thresholds={"cosine": 0.9},
        calibration=(str(tmp_path / "others"), str(tmp_path / "more.npz")),
        labels=str(tmp_path / "classes.txt"),
        max_drop=0.5,
        metric="mine:score",
        repair_s=30.0,
        allow_undecided=True,
        allow_fallback=True,
        min_runs=7,
        timeout_s=9.0,
        worker_memory_mb=2048.0,
        final_rounds=5,
    )


def test_the_first_batch_decides_a_latency():
    assert RaceOptions(batch="8,1").for_api()["objective"].batch == 8


def test_a_file_that_is_not_there():
    with pytest.raises(OptionError, match=r"nowhere\.npz"):
        RaceOptions(feeds=[Path("nowhere.npz")]).for_api()


@pytest.mark.parametrize(
    "typed", [{"calibration": ["nowhere"]}, {"labels": Path("nowhere")}], ids=["data", "labels"]
)
def test_calibration_data_and_labels_that_are_not_there(typed):
    with pytest.raises(OptionError, match="nowhere"):
        RaceOptions(**typed).for_api()


def test_random_calibration_is_a_word_and_no_path():
    assert RaceOptions(calibration=["random"]).for_api()["calibration"] == ("random",)


def test_what_is_typed_on_a_command_line_arrives_at_the_api(tmp_path, monkeypatch):
    """The ladder's own command, through typer, up to where the race would begin."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    asked = {}

    def build(model, out, **options):
        asked.update(options, model=model)
        return out

    monkeypatch.setattr("peregrine.api.build", build)
    words = "build efficientnet_lite0 --precision auto --calibration photos/ --out m.bundle"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.output
    assert asked["model"] == "efficientnet_lite0"
    assert asked["calibration"] == (str(tmp_path / "photos"),)
    request = make_request("m", **{k: asked[k] for k in ("precisions", "calibration")})
    assert {Precision.FP32, Precision.INT8} <= set(request.precisions)


def test_the_command_means_the_same_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.npz").touch()
    for name in ("photos", "resnet50", "random"):
        Path(name).mkdir()
    typed = "bench resnet50 --images photos --calibration a.npz --calibration random --metric m:f"
    monkeypatch.setattr("sys.argv", ["peregrine", *typed.split()])
    assert RaceOptions().for_api()["command"] == (
        f"peregrine bench resnet50 --images {tmp_path}/photos --calibration {tmp_path}/a.npz "
        "--calibration random --metric m:f"
    )


@pytest.mark.parametrize("verb", [bench, build])
def test_both_verbs_take_every_shared_option(verb):
    shared = {field.name for field in dataclasses.fields(RaceOptions)}
    assert shared < set(inspect.signature(verb).parameters)
