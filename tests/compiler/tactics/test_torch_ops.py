"""Any operator by plain PyTorch, through the contract of a tactic."""

from __future__ import annotations

import pytest
import torch

from compiler.tactics.operations import H200, RELU, conv, error_of, linear, relative_error
from peregrine.compiler.attributes import torch_dtype
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.tactics.torch_ops import TorchOps
from peregrine.compiler.torch_ops import resize
from peregrine.errors import Unsupported

_TACTIC = TorchOps()
_CPU = Device("cpu")


def _operation(name: str, *shapes: tuple[int, ...], opset: int = 20, **attributes) -> Operation:
    """Of float32 tensors; the last shape is the output's."""
    kinds = [TensorType.contiguous("float32", shape) for shape in shapes]
    return Operation(f"ai.onnx.{name}", attributes, tuple(kinds[:-1]), (kinds[-1],), opset=opset)


def test_a_fused_operator_writes_where_it_is_told():
    for operation in (
        conv((2, 5, 9, 7), 6, Window((3, 3), (2, 1), (1, 0, 2, 1)), residual=True, slice_of=11),
        linear((3, 4, 5), 6, activation=RELU),
    ):
        assert _TACTIC.supports(operation, _CPU)
        assert error_of(_TACTIC, operation, {}) < 2e-6


def test_a_standard_operator_by_its_opset():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    old = _operation("Softmax", (2, 3, 4), (2, 3, 4), opset=12)
    new = _operation("Softmax", (2, 3, 4), (2, 3, 4), opset=13)
    assert torch.equal(_TACTIC.evaluate(new, [x])[0], torch.softmax(x, -1))
    flattened = torch.softmax(x.reshape(2, 12), 1).reshape(2, 3, 4)
    assert relative_error(_TACTIC.evaluate(old, [x])[0], flattened) < 1e-6


def test_an_operator_that_is_missing_is_named():
    operation = _operation("NoSuchThing", (2,), (2,), opset=17)
    support = _TACTIC.supports(operation, _CPU)
    assert not support
    assert "operator NoSuchThing (opset 17)" in support.reason
    with pytest.raises(Unsupported, match="NoSuchThing"):
        _TACTIC.bind(operation, {}, [torch.zeros(2)], [torch.zeros(2)], None, None)
    with pytest.raises(Unsupported, match="NoSuchThing"):
        _TACTIC.evaluate(operation, [torch.zeros(2)])


def test_an_operator_that_came_later_is_missing_before():
    assert _TACTIC.supports(_operation("LayerNormalization", (2, 3), (3,), (2, 3), opset=17), _CPU)
    before = _operation("LayerNormalization", (2, 3), (3,), (2, 3), opset=16)
    assert "opset 16" in _TACTIC.supports(before, _CPU).reason


@pytest.mark.parametrize("dtype", ["object", "int4", "uint4", "int2", "float4_e2m1fn"])
def test_types_that_torch_has_not_are_refused(dtype):
    kind = TensorType.contiguous(dtype, (2,))
    operation = Operation("ai.onnx.Identity", {}, (kind,), (kind,), opset=25)
    assert dtype in _TACTIC.supports(operation, _CPU).reason
    with pytest.raises(Unsupported, match=dtype):
        torch_dtype(dtype)


def test_sizes_that_are_not_known_are_taken():
    unknown = TensorType("float32", None, None)
    operation = Operation("ai.onnx.Relu", {}, (unknown,), (unknown,), opset=16)
    assert _TACTIC.supports(operation, _CPU)
    assert _TACTIC.predict(operation, {}, H200) > 0
    for size in (1, 4):
        (result,) = _TACTIC.evaluate(operation, [torch.full((size,), -1.0)])
        assert result.shape == (size,)
        assert not result.any()


def test_as_many_outputs_as_are_asked_for():
    x = torch.arange(5.0)
    whole, three, two = (TensorType.contiguous("float32", (size,)) for size in (5, 3, 2))
    attributes = {"axis": 0, "num_outputs": 2}
    split = Operation("ai.onnx.Split", attributes, (whole, None), (three, two), opset=18)
    first, second = _TACTIC.evaluate(split, [x, None])
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [3, 4]
    # An optional second output that nobody asked for is left out.
    image = TensorType.contiguous("float32", (1, 1, 4))
    pool = Operation("ai.onnx.MaxPool", {"kernel_shape": (2,)}, (image,), (image,), opset=18)
    assert len(_TACTIC.evaluate(pool, [x[:4].reshape(1, 1, 4)])) == 1


def test_the_bodies_of_control_flow_are_called():
    kind = TensorType("float32", None, None)
    condition = TensorType.contiguous("bool", ())
    x = torch.tensor([1.0, -2.0])
    branches = {"then_branch": lambda: (x + 1,), "else_branch": lambda: (x * 2,)}
    operation = Operation("ai.onnx.If", branches, (condition,), (kind,), opset=16)
    assert _TACTIC.supports(operation, _CPU)
    assert _TACTIC.evaluate(operation, [torch.tensor(True)])[0].tolist() == [2, -1]
    assert _TACTIC.evaluate(operation, [torch.tensor(False)])[0].tolist() == [2, -4]


def test_other_sizes_than_planned_are_an_error_not_a_broadcast():
    operation = _operation("Relu", (1, 3), (4, 3))
    output = torch.full((4, 3), 7.0)
    launch = _TACTIC.bind(operation, {}, [torch.ones(1, 3)], [output], None, None)
    with pytest.raises(Unsupported, match=r"\(1, 3\)"):
        launch()
    assert (output == 7).all()


def test_a_launch_reads_its_inputs_anew():
    operation = _operation("Relu", (3,), (3,))
    x, y = torch.zeros(3), torch.full((3,), float("nan"))
    launch = _TACTIC.bind(operation, {}, [x], [y], None, None)
    launch()
    assert y.tolist() == [0, 0, 0]
    x.fill_(2)
    launch()
    assert y.tolist() == [2, 2, 2]


def test_only_the_first_launch_copies_tables(monkeypatch):
    """Counts the copies of a Resize that no single kernel of torch's does."""
    made = []
    build = resize._taps_on
    monkeypatch.setattr(resize, "_taps_on", lambda *key: made.append(key) or build(*key))
    scales = TensorType.contiguous("float32", (4,))
    operation = Operation(
        "ai.onnx.Resize",
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        (TensorType.contiguous("float32", (1, 2, 5, 6)), None, scales),
        (TensorType.contiguous("float32", (1, 2, 8, 9)),),
        opset=19,
    )
    x, y = torch.randn(1, 2, 5, 6), torch.empty(1, 2, 8, 9)
    inputs = [x, None, torch.tensor([1, 1, 1.6, 1.5])]
    launch = _TACTIC.bind(operation, {}, inputs, [y], None, None)
    launch()
    assert len(made) == 2  # height and width
    launch()
    assert len(made) == 2
    _TACTIC.bind(operation, {}, inputs, [y], None, None)()
    assert len(made) == 4  # another step has its own, which it takes along when it goes


def test_one_configuration_slower_than_one_kernel():
    operation = conv((8, 64, 56, 56), 64, Window((3, 3), pads=(1, 1, 1, 1)), dtype="float16")
    assert list(_TACTIC.configs(operation, H200)) == [{}]
    assert _TACTIC.predict(operation, {}, H200) > 2 * operation.outputs[0].bytes / H200.bandwidth
    assert _TACTIC.workspace(operation, {}, H200) == _TACTIC.state(operation, {}, H200) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_launch_is_captured_in_a_cuda_graph(dtype):
    operation = conv((2, 16, 13, 11), 24, Window((3, 3), pads=(1, 1, 1, 1)), dtype=dtype)
    kinds = [k for k in operation.inputs[:3] if k is not None]
    inputs = [torch.randn(k.shape, device="cuda").to(getattr(torch, dtype)) for k in kinds]
    y = torch.empty(operation.outputs[0].shape, dtype=inputs[0].dtype, device="cuda")
    launch = _TACTIC.bind(operation, {}, inputs, [y], None, None)
    launch()
    expected = y.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    y.fill_(float("nan"))
    graph.replay()
    assert relative_error(y, expected) < 1e-3
