"""OpenVINO's INT8: what is quantised, what is kept, and that nothing is sent or printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from conformance import BATCH, scaled_error
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import IR_FILE, Job, Made
from peregrine.conversion.nncf import has_attention, layers_of, make_nncf
from peregrine.conversion.prepare import prepare
from peregrine.conversion.untracked import import_openvino
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.types import Array, Precision
from peregrine.validate import DEFAULTS
from small_models import SMALL

pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return SMALL["residual"]().load(tmp_path_factory.mktemp("residual"))


def quantised(
    model: Model, out: Path, keep: Sequence[str] = (), prepared: onnx.ModelProto | None = None
) -> Made:
    feeds = [random_feeds(model, BATCH, seed) for seed in range(4)]
    data = out / "data"
    data.mkdir(parents=True)
    calibration = Calibration.write(data, model, feeds, "random inputs", random=True)
    graph = prepared or prepare(model)
    return make_nncf(Job(model, graph, Graph.NNCF, out, calibration, frozenset(keep)))


def run(path: Path, feeds: dict[str, Array]) -> list[Array]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(path, "CPU", settings)
    answer = compiled(feeds)
    return [answer[output] for output in compiled.outputs]


def in_int8(path: Path) -> dict[str, bool]:
    """Friendly name of each convolution and product -> whether its weights are 8 bits wide."""
    found = {}
    for operator in import_openvino().Core().read_model(path).get_ops():
        if operator.get_type_name() in ("Convolution", "MatMul"):
            source = operator.input_value(1).get_node()
            while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
                source = source.input_value(0).get_node()
            found[operator.get_friendly_name()] = source.get_element_type().get_type_name() == "i8"
    return found


@pytest.mark.parametrize("name", ["residual", "depthwise", "lstm", "attention", "multi_input"])
def test_a_small_network_is_quantised_and_nearly_right(name: str, tmp_path: Path) -> None:
    model = SMALL[name]().load(tmp_path / "model")
    made = quantised(model, tmp_path / "out")
    assert made.file == IR_FILE
    assert made.converted
    assert "nncf" in made.by
    feeds = random_feeds(model, BATCH + 2, 99)  # another batch: open sizes stay open
    found, expected = run(tmp_path / "out" / IR_FILE, feeds), run(model.onnx_path, feeds)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    errors = [scaled_error(*pair) for pair in zip(found, expected, strict=True)]
    assert 0 < max(errors) <= DEFAULTS[Precision.INT8].scaled_error


def test_what_is_converted_and_left_is_what_the_file_holds(residual: Model, tmp_path: Path) -> None:
    made = quantised(residual, tmp_path)
    assert made.converted == {"Conv": 3, "Gemm": 1}
    assert made.left == {}
    assert all(in_int8(tmp_path / IR_FILE).values())


def test_a_grouped_convolution_computes_in_int8(tmp_path: Path) -> None:
    """Its weights pass through a Reshape in OpenVINO. Quantised behind that, it runs in fp32."""
    model = SMALL["depthwise"]().load(tmp_path / "model")
    made = quantised(model, tmp_path / "out")
    assert made.converted == {"Conv": 3}
    assert made.left == {}
    compiled = import_openvino().Core().compile_model(tmp_path / "out" / IR_FILE, "CPU")
    info = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    ran = [
        str(i["runtimePrecision"].astype(str))
        for i in info
        if i["layerType"].astype(str) == "Convolution"
    ]
    assert len(ran) == 3
    assert set(ran) <= {"u8", "i8"}


def test_a_recurrent_layer_is_left_and_told(tmp_path: Path) -> None:
    """OpenVINO would run it in INT8, and lose the negative half of its state."""
    model = SMALL["lstm"]().load(tmp_path / "model")
    made = quantised(model, tmp_path / "out")
    assert made.converted == {"Gemm": 1}
    assert made.left == {"LSTM": 1}
    feeds = random_feeds(model, BATCH, 99)
    state = run(tmp_path / "out" / IR_FILE, feeds)[1]
    np.testing.assert_allclose(state, run(model.onnx_path, feeds)[1], atol=1e-6)


def test_kept_nodes_stay_in_fp32(residual: Model, tmp_path: Path) -> None:
    """The last one goes by the name of the network's output in OpenVINO."""
    prepared = prepare(residual)
    nodes = [node.name for node in prepared.graph.node if node.op_type in ("Conv", "Gemm")]
    for number, keep in enumerate((nodes[:1], nodes[1:2], nodes[-1:])):
        out = tmp_path / str(number)
        made = quantised(residual, out, keep, prepared)
        assert sum(made.left.values()) == 1
        float_layers = [name for name, narrow in in_int8(out / IR_FILE).items() if not narrow]
        assert float_layers == [f"{keep[0]}/WithoutBiases"]


def test_every_node_is_known_by_openvinos_names(residual: Model) -> None:
    prepared = prepare(residual)
    graph = import_openvino().Core().read_model(residual.onnx_path)
    layers = layers_of(prepared, graph)
    assert layers.keys() == {node.name for node in prepared.graph.node}
    assert all(layers.values())
    operators = [name for names in layers.values() for name in names]
    assert len(operators) == len(set(operators))


def test_a_network_with_nothing_left_to_quantise_is_refused(
    residual: Model, tmp_path: Path
) -> None:
    prepared = prepare(residual)
    with pytest.raises(Unsupported, match="nothing to quantise") as raised:
        quantised(residual, tmp_path, [node.name for node in prepared.graph.node], prepared)
    assert "3 Conv" in raised.value.why
    assert not (tmp_path / IR_FILE).exists()


def test_a_graph_that_openvino_does_not_read_is_refused_with_its_reason(
    residual: Model, tmp_path: Path
) -> None:
    prepared = prepare(residual)
    prepared.graph.node[-1].op_type = "Frobnicate"
    with pytest.raises(Unsupported) as raised:
        quantised(residual, tmp_path, prepared=prepared)
    assert "Frobnicate" in raised.value.why
    assert ".cpp" not in raised.value.why


def test_attention_is_told_from_a_classifier_that_ends_in_softmax(tmp_path: Path) -> None:
    assert has_attention(prepare(SMALL["attention"]().load(tmp_path / "attention")))
    assert not has_attention(prepare(SMALL["int_input"]().load(tmp_path / "int_input")))
    classifier = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[2, 4] x) => (float[2, 3] y) <float[4, 3] w = {0,0,0,0,0,0,0,0,0,0,0,0}>
        { s = Softmax(x)  y = MatMul(s, w) }"""
    )
    assert not has_attention(classifier)


def test_nothing_is_sent_or_printed(residual: Model, tmp_path: Path) -> None:
    """In a fresh interpreter, where a socket that opens is an error. nncf itself is silent under
    pytest, so that a test here would not tell."""
    script = """
import logging, os, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    os.write(2, b"a connection was attempted")
    os._exit(1)

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import Job
from peregrine.conversion.nncf import make_nncf
from peregrine.conversion.prepare import prepare
from peregrine.model.graphs import Graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model

model, out = Model.open(Path(sys.argv[1])), Path(sys.argv[2])
feeds = [random_feeds(model, 2, 0)]
calibration = Calibration.write(out, model, feeds, "random inputs", random=True)
make_nncf(Job(model, prepare(model), Graph.NNCF, out, calibration))
assert logging.getLoggerClass() is logging.Logger
assert not [name for name in sys.modules if name.partition(".")[0] == "openvino_telemetry"]
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(residual.directory), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / IR_FILE).exists()
