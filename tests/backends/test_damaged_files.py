"""What every backend that reads ONNX files says of one that is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from one_node import of_bytes, one_node, truncated
from peregrine.errors import ModelCorrupt
from peregrine.model.model import Model
from peregrine.types import Candidate, Profile, Target

THREE = Target(profile=Profile.fixed({"batch": 3}))
Reader = Callable[[Model], object]


def onnxruntime() -> Reader:
    from peregrine.backends._ort_providers import CPU
    from peregrine.backends.onnxruntime import OnnxRuntimeBackend

    return lambda model: OnnxRuntimeBackend().compile(model, Candidate("onnxruntime", CPU), THREE)


def openvino() -> Reader:
    pytest.importorskip("openvino")
    from peregrine.backends.openvino import OpenVinoBackend

    row = Candidate("openvino", "latency")
    return lambda model: OpenVinoBackend().compile(model, row, THREE)


def tensorrt() -> Reader:
    """Its builder, which needs no GPU."""
    from peregrine.backends._trt_engine import build_engine, installed_module

    if not installed_module():
        pytest.skip("TensorRT is not installed")
    return lambda model: build_engine(model, Candidate("tensorrt"), THREE)


@pytest.fixture(params=[onnxruntime, openvino, tensorrt])
def read(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param()
    return reader


def test_random_bytes_are_corrupt(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt) as raised:
        read(of_bytes(tmp_path, os.urandom(3000)))
    assert raised.value.fix


def test_a_truncated_file_is_corrupt(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt):
        read(truncated(one_node(tmp_path, "Relu")))


# TensorRT's parser does not tell this one from an operator that it lacks.
@pytest.mark.parametrize("read", [onnxruntime, openvino], indirect=True)
def test_a_node_without_its_input_is_corrupt(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="nowhere"):
        read(one_node(tmp_path, "Add", inputs=("x", "nowhere")))
