import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from peregrine.errors import ModelCorrupt, ModelNotFound, Unsupported
from peregrine.model import onnx_file
from peregrine.model.load import load
from peregrine.model.probe import OnnxRunner

F = TensorProto.FLOAT


def test_reads_specs_with_a_symbol_for_each_unknown_dimension(tmp_path, make_graph):
    graph = make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.INT32, [None, "?", "n", 4])],
        [("y", TensorProto.INT32, ["?", "?", "n", 4])],
    )
    (x,), (y,) = onnx_file.specs(graph)
    assert (x.dtype, x.shape) == ("int32", ("?x:0", "?x:1", "n", 4))
    assert y.shape == ("?y:0", "?y:1", "n", 4)


def test_missing_file(tmp_path):
    with pytest.raises(ModelNotFound):
        onnx_file.read(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02random" * 50, b"not onnx at all", b"\x08\x07"]
)
def test_other_bytes_are_corrupt(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt) as caught:
        onnx_file.read(path)
    assert caught.value.why
    assert caught.value.fix


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ModelCorrupt, match="Git LFS"):
        onnx_file.read(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_corrupt(tmp_path, linear_graph, kept):
    blob = linear_graph.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(blob[: int(len(blob) * kept)])
    with pytest.raises(ModelCorrupt):
        onnx_file.read(path)


def test_a_graph_that_fails_the_checker_is_corrupt(tmp_path, make_graph):
    graph = make_graph(
        [helper.make_node("Relu", ["nobody"], ["y"])], [("x", F, [1])], [("y", F, [1])]
    )
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(ModelCorrupt, match="checker") as caught:
        onnx_file.read(tmp_path / "m.onnx")
    assert "nobody" in caught.value.why


def test_an_operator_that_onnx_does_not_have_is_named(tmp_path, make_graph):
    graph = make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"])], [("x", F, [1])], [("y", F, [1])]
    )
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(ModelCorrupt) as caught:
        onnx_file.read(tmp_path / "m.onnx")
    assert "Frobnicate" in caught.value.why
    assert "opset" in caught.value.fix


def test_operators_of_a_vendor_are_read_and_named(tmp_path, make_graph):
    graph = make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.acme")],
        [("x", F, ["N", 4])],
        [("y", F, ["N", 4])],
        extra_domains=["com.acme"],
    )
    onnx.save(graph, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx", tmp_path / "out")
    assert any("com.acme (Frobnicate)" in note for note in model.notes)


def test_inputs_that_are_no_tensors_of_numbers_are_unsupported(tmp_path, make_graph):
    graph = make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, [3])],
        [("y", TensorProto.STRING, [3])],
    )
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="string"):
        load(tmp_path / "m.onnx", tmp_path / "out")


def external(directory, graph):
    onnx.save(
        graph,
        directory / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return directory / "m.onnx"


def test_external_data_comes_along(tmp_path, linear_graph):
    home = tmp_path / "home"
    home.mkdir()
    model = load(external(home, linear_graph), tmp_path / "out")
    for path in home.iterdir():
        path.unlink()
    (y,) = OnnxRunner(model.onnx_path).run({"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(y, np.arange(12).reshape(4, 3))
    assert model.parameters == 12


def test_the_hash_covers_external_data(tmp_path, linear_graph):
    hashes = set()
    for number in range(2):
        home = tmp_path / str(number)
        home.mkdir()
        linear_graph.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full((4, 3), number, np.float32), "w")
        )
        hashes.add(load(external(home, linear_graph), home / "out").sha256)
    assert len(hashes) == 2


def test_missing_or_cut_external_data_is_corrupt(tmp_path, linear_graph):
    path = external(tmp_path, linear_graph)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelCorrupt, match="truncated"):
        load(path, tmp_path / "out")
    data.unlink()
    with pytest.raises(ModelCorrupt, match=r"'weights\.bin' is missing"):
        load(path, tmp_path / "out")


def test_external_data_outside_the_directory_is_refused(tmp_path, linear_graph):
    home = tmp_path / "home"
    home.mkdir()
    path = external(home, linear_graph)
    (home / "weights.bin").rename(tmp_path / "weights.bin")
    graph = onnx.load(path, load_external_data=False)
    graph.graph.initializer[0].external_data[0].value = "../weights.bin"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelCorrupt, match="outside"):
        onnx_file.read(path)


def test_dimensions_are_renamed_in_the_written_graph_too(tmp_path, linear_graph):
    model = load(linear_graph, tmp_path / "out")
    (x,), (y,) = onnx_file.specs(onnx.load(model.onnx_path))
    assert x == model.inputs[0]
    assert y == model.outputs[0]
    assert (x.shape, y.shape) == (("batch", 4), ("batch", 3))


def test_unused_inputs_come_back(tmp_path, linear_graph):
    (x,), outputs = onnx_file.specs(linear_graph)
    from peregrine.types import TensorSpec

    inputs = [TensorSpec("mask", "bool", ("batch",)), TensorSpec("x", x.dtype, ("batch", 4))]
    onnx_file.write(linear_graph, tmp_path, inputs, outputs, None)
    runner = OnnxRunner(tmp_path / onnx_file.ONNX_FILE)
    feeds = {"mask": np.array([True]), "x": np.ones((1, 4), np.float32)}
    assert runner.input_names == {"mask", "x"}
    assert runner.run(feeds)[0].shape == (1, 3)
