"""The reference's outputs for what judges, and what a run keeps of them."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from peregrine.conversion.calibration import Calibration
from peregrine.errors import OptionError
from peregrine.harness.assemble import assemble
from peregrine.harness.race import race, resume
from peregrine.harness.reference import Judging, make_judging
from peregrine.harness.request import IN_MEMORY, Request
from peregrine.harness.rundir import RunDirectory
from tiny_model import make_tiny

QUICK = {"min_runs": 5, "measure_s": 0.05, "final_rounds": 3, "backends": ("onnxruntime",)}


@pytest.fixture
def data(tmp_path):
    rows = np.random.default_rng(1).random((12, 6), np.float32)
    np.savez(tmp_path / "data.npz", x=rows)
    return tmp_path / "data.npz"


def exact(model, x):
    """What the tiny model computes, in float64."""
    w, b = (
        numpy_helper.to_array(t).astype(np.float64)
        for t in onnx.load(model.onnx_path).graph.initializer
    )
    return np.maximum(x @ w + b, 0)


def test_the_rows_that_judge_have_the_references_outputs(tmp_path, data):
    tiny = make_tiny(tmp_path / "model")
    request = Request("tiny", batches=(4,), calibration=(str(data),))
    run = RunDirectory.create(tmp_path / "run", request)
    said = []
    judging = make_judging(run, tiny, request, (), said.append)
    run.release()
    assert "computing the reference on 9 items" in said
    rows = np.load(data)["x"]
    places = [int(name.removeprefix("data.npz[").removesuffix("]")) for name in judging.images]
    got = judging.image_outputs(run)["y"]
    np.testing.assert_allclose(got, exact(tiny, rows[places]), rtol=1e-5, atol=1e-6)
    assert judging.calibration
    assert len(judging.calibrating) == 3
    record = judging.record()
    assert record.split.startswith("3 of 12 items of data.npz calibrate, the other 9 judge")
    assert record.inputs[-1] == "9 items"
    assert Judging.load(run) == judging
    kept = json.loads((run.path / "judging.json").read_text())
    assert sorted(kept["calibrating"] + kept["images"]) == sorted(
        f"data.npz[{n}]" for n in range(12)
    )


def test_a_run_of_before_there_was_a_split_is_still_read(tmp_path):
    tiny = make_tiny(tmp_path / "model")
    run = RunDirectory.create(tmp_path / "run", Request("tiny"))
    judging = make_judging(run, tiny, run.request, (), str)
    kept = json.loads((run.path / "judging.json").read_text())
    for later in ("kind", "split", "calibrating"):
        del kept[later]
    for feed_set in kept["sets"]:
        del feed_set["real"]
    (run.path / "judging.json").write_text(json.dumps(kept))
    assert Judging.load(run) == judging
    assert not judging.calibration
    assert judging.record().split == ""


def test_the_split_is_the_same_when_a_race_goes_on(tmp_path, data):
    request = Request("tiny", calibration=(str(data),), **QUICK)
    path = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(event):
        if type(event).__name__ == "CandidateDone":
            raise Stop

    with pytest.raises(Stop):
        race(request, path, loader=make_tiny, observer=stop)
    kept = (path / "judging.json").read_bytes()
    sha256 = Calibration.open(path / "calibration").sha256

    # Killed before the split was whole: it is made again, and is the same.
    (path / "judging.json").unlink()
    report = resume(path)
    assert json.loads((path / "judging.json").read_bytes()) == json.loads(kept)
    assert Calibration.open(path / "calibration").sha256 == sha256

    # Whole: it is kept, even where the data is gone.
    data.unlink()
    assert resume(path).reference == report.reference
    assert assemble(RunDirectory.read(path)).reference.split == report.reference.split


def test_data_of_a_program_is_needed_until_it_is_written(tmp_path):
    rows = np.random.default_rng(2).random((4, 6), np.float32)
    request = Request("tiny", calibration=(IN_MEMORY,), **QUICK)
    report = race(request, tmp_path / "run", loader=make_tiny, calibrating=[rows])
    assert "given items" in report.reference.split
    assert resume(tmp_path / "run").reference == report.reference
    (tmp_path / "run" / "judging.json").unlink()
    with pytest.raises(OptionError, match="is gone"):
        resume(tmp_path / "run")
