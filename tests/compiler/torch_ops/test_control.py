"""Control flow: bodies as functions, and the same graphs by ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compiler.one_operator import generator
from peregrine.compiler.torch_ops.registry import Call, find
from peregrine.errors import Unsupported

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def run(op_type: str, call: Call, *inputs: Any) -> tuple[torch.Tensor | None, ...]:
    entry = find(f"ai.onnx.{op_type}", call.opset)
    assert entry is not None
    result = entry.function(call, *inputs)
    return result if isinstance(result, tuple) else (result,)


def by_onnxruntime(
    node: onnx.NodeProto,
    inputs: dict[str, np.ndarray],
    outputs: dict[str, list[int | str | None]],
) -> list[np.ndarray]:
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in inputs.items()
        ],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def value(name: str, kind: int, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("condition", [False, True])
def test_if(condition: bool) -> None:
    def then_branch() -> tuple[torch.Tensor, ...]:
        return torch.ones(2), torch.zeros(3)

    def else_branch() -> tuple[torch.Tensor, ...]:
        return torch.zeros(1), torch.ones(1)

    call = Call({"then_branch": then_branch, "else_branch": else_branch}, 21, 2)
    results = run("If", call, torch.tensor([condition]))
    for result, expected in zip(results, (else_branch, then_branch)[condition](), strict=True):
        assert result is not None
        assert torch.equal(result, expected)


# carried' = carried * 2 + iteration; goes on while its sum is below 100; gives carried as well.
def loop_body(
    iteration: torch.Tensor, going: torch.Tensor, carried: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    after = carried * 2 + iteration.float()
    return after.sum() < 100, after, carried


LOOP_BODY = helper.make_graph(
    [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["limit"], value_float=100.0),
        helper.make_node("Mul", ["carried", "two"], ["doubled"]),
        helper.make_node("Cast", ["iteration"], ["step"], to=FLOAT),
        helper.make_node("Add", ["doubled", "step"], ["after"]),
        helper.make_node("ReduceSum", ["after"], ["total"], keepdims=0),
        helper.make_node("Less", ["total", "limit"], ["again"]),
        helper.make_node("Identity", ["carried"], ["shown"]),
    ],
    "body",
    [value("iteration", INT64, []), value("going", BOOL, []), value("carried", FLOAT, [3])],
    [value("again", BOOL, []), value("after", FLOAT, [3]), value("shown", FLOAT, [3])],
)


@pytest.mark.parametrize("trips", [1, 3, 50, None])
@pytest.mark.parametrize("condition", [True, None])
def test_loop(trips: int | None, condition: bool | None) -> None:
    start = generator().uniform(0, 2, 3).astype(np.float32)
    names = ["trips" if trips is not None else "", "going" if condition is not None else ""]
    node = helper.make_node("Loop", [*names, "start"], ["last", "all"], body=LOOP_BODY)
    feeds: dict[str, np.ndarray] = {"start": start}
    if trips is not None:
        feeds["trips"] = np.array(trips)
    if condition is not None:
        feeds["going"] = np.array(condition)
    expected = by_onnxruntime(node, feeds, {"last": [3], "all": ["n", 3]})
    given = [torch.from_numpy(feeds[name]) if name else None for name in names]
    results = run("Loop", Call({"body": loop_body}, 21, 2), *given, torch.from_numpy(start))
    for result, wanted in zip(results, expected, strict=True):
        assert result is not None
        np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize(("trips", "going"), [(0, True), (5, False)])
def test_a_loop_of_no_iteration_gives_what_it_was_given(trips: int, going: bool) -> None:
    body: Callable[..., tuple[torch.Tensor, ...]] = lambda i, c, x: (c, x + 1)  # noqa: E731
    inputs = torch.tensor(trips), torch.tensor(going), torch.ones(2)
    (result,) = run("Loop", Call({"body": body}, 21, 1), *inputs)
    assert result is not None
    assert torch.equal(result, torch.ones(2))
    with pytest.raises(Unsupported, match="Loop of no iteration"):
        run("Loop", Call({"body": loop_body}, 21, 2), *inputs)


# state' = state + first * second's column; gives state' and state' twice as long.
def scan_body(
    state: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    after = state + first * second
    return after, after, torch.cat((after, after))


SCAN_BODY = helper.make_graph(
    [
        helper.make_node("Mul", ["first", "second"], ["product"]),
        helper.make_node("Add", ["state", "product"], ["after"]),
        helper.make_node("Identity", ["after"], ["shown"]),
        helper.make_node("Concat", ["after", "after"], ["twice"], axis=0),
    ],
    "body",
    [value(name, FLOAT, [3]) for name in ("state", "first", "second")],
    [value("after", FLOAT, [3]), value("shown", FLOAT, [3]), value("twice", FLOAT, [6])],
)


@pytest.mark.parametrize("input_directions", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("output_directions", [(0, 0), (0, 1)])
@pytest.mark.parametrize("output_axes", [(0, 0), (1, 0), (-1, 1)])
def test_scan(
    input_directions: tuple[int, int],
    output_directions: tuple[int, int],
    output_axes: tuple[int, int],
) -> None:
    random = generator()
    inputs = {
        "state": random.normal(size=3).astype(np.float32),
        "first": random.normal(size=(5, 3)).astype(np.float32),
        "second": random.normal(size=(3, 5)).astype(np.float32),
    }
    attributes: dict[str, Any] = {
        "num_scan_inputs": 2,
        "scan_input_axes": (0, 1),
        "scan_input_directions": input_directions,
        "scan_output_axes": output_axes,
        "scan_output_directions": output_directions,
    }
    node = helper.make_node(
        "Scan", list(inputs), ["last", "shown", "twice"], body=SCAN_BODY, **attributes
    )
    shapes: dict[str, list[int | str | None]] = {
        "last": [3],
        "shown": [None, None],
        "twice": [None, None],
    }
    expected = by_onnxruntime(node, inputs, shapes)
    call = Call({**attributes, "body": scan_body}, 21, 3)
    results = run("Scan", call, *map(torch.from_numpy, inputs.values()))
    for result, wanted in zip(results, expected, strict=True):
        assert result is not None
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [5, 2, 1]])
@pytest.mark.parametrize("directions", [None, (1,)])
def test_a_scan_of_a_batch_is_one_scan_each(
    lengths: list[int] | None, directions: tuple[int, ...] | None
) -> None:
    torch.manual_seed(20261121)

    def body(state: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return state * 2 + x, state + x

    states, sequences = torch.randn(3, 4), torch.randn(3, 5, 4)
    attributes: dict[str, Any] = {"num_scan_inputs": 1, "body": body}
    old = Call({**attributes, **({"directions": directions} if directions else {})}, 8, 2)
    new = Call({**attributes, "scan_input_directions": directions}, 9, 2)
    given = None if lengths is None else torch.tensor(lengths)
    finals, scanned = run("Scan", old, given, states, sequences)
    assert finals is not None
    assert scanned is not None
    assert scanned.shape == (3, 5, 4)
    for item, length in enumerate(lengths or [5] * 3):
        final, alone = run("Scan", new, states[item], sequences[item, :length])
        assert final is not None
        assert alone is not None
        assert torch.equal(finals[item], final)
        assert torch.equal(scanned[item, :length], alone)
        assert not scanned[item, length:].any()


def test_a_scan_of_no_inputs_is_refused() -> None:
    call = Call({"body": scan_body, "num_scan_inputs": 2}, 21, 3)
    with pytest.raises(Unsupported, match="Scan of no iteration"):
        run("Scan", call, torch.ones(3), torch.ones(0, 3), torch.ones(0, 3))
