"""A plan computes what its graph says, and its memory is shared without harm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from peregrine.compiler.autotune import Autotuner
from peregrine.compiler.lower import lower
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.plan import Place
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device
from peregrine.errors import Unsupported
from peregrine.types import Array

SEED = 20261121


def build(text: str, renamed: Mapping[str, str] | None = None) -> tuple[ir.Model, Lowered]:
    """Args: renamed: values whose names the text format cannot say."""
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [(renamed or {}).get(name, name) for name in names]
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    model = ir.from_proto(proto)
    for node in model.graph:  # what the passes guarantee: fused operators have types
        if node.domain == "peregrine":
            for value in node.outputs:
                assert value.shape is not None
    tuner = Autotuner(Device("cpu"), tactics=[registry.torch_ops()])
    return model, lower(model, tuner, dims={}, precision="fp32", name="t")


def run(lowered: Lowered, feeds: dict[str, Array]) -> list[Array]:
    executable = Executable(lowered.plan, lowered.weights, "cpu")
    for name, buffer in executable.inputs.items():
        buffer.copy_(torch.from_numpy(feeds[name]))
    outputs: list[Array] = []
    for _ in range(2):  # the second finds what the first left in the arena
        executable.start()
        outputs = [tensor.clone().numpy() for tensor in executable.outputs()]
    executable.close()
    return outputs


def random_feeds(model: ir.Model) -> dict[str, Array]:
    numbers = np.random.default_rng(SEED)
    return {
        str(value.name): numbers.standard_normal(tuple(value.shape or ())).astype(np.float32)
        for value in model.graph.inputs
    }


def compare(text: str, renamed: Mapping[str, str] | None = None) -> Lowered:
    model, lowered = build(text, renamed)
    feeds = random_feeds(model)
    expected = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    for found, wanted in zip(run(lowered, feeds), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    return lowered


HEAD = '<ir_version: 10, opset_import: ["" : 21, "peregrine" : 1]>'


def test_a_value_that_is_called_as_a_weight_would_be() -> None:
    """TensorFlow's exporter calls the first output of node `n` `n:0`; so did this engine the
    constant that is its first input."""
    compare(
        HEAD
        + """agraph (float[2, 3] x) => (float[2, 3] y) <float[1] c = {3.0}> {
            [n] a = Mul(c, x)
            [m] y = Add(c, a)
        }""",
        renamed={"a": "n:0"},
    )


def test_standard_operators_allocate_their_own_outputs() -> None:
    lowered = compare(
        HEAD
        + """agraph (float[2, 3, 4] x) => (float[2, 12] y) {
            a = Relu(x)
            b = Flatten<axis = 1>(a)
            y = Sigmoid(b)
        }"""
    )
    assert {t.name: t.place for t in lowered.plan.tensors.values()} == {
        "x": Place.INPUT,
        "a": Place.STEP,
        "b": Place.STEP,
        "y": Place.OUTPUT,
    }
    assert lowered.plan.capturable


def test_an_output_that_is_an_input_or_a_constant_or_twice_the_same() -> None:
    compare(
        HEAD
        + """agraph (float[2, 3] x) => (float[2, 3] x, float[2, 3] y, float[2] c)
        <float[2] c = {1.0, 2.0}> {
            y = Neg(x)
        }"""
    )


def test_shapes_are_read_from_host_memory() -> None:
    lowered = compare(
        HEAD
        + """agraph (float[2, 6] x) => (float[3, 4] y) <int64[2] s = {3, -1}> {
            y = Reshape(x, s)
        }"""
    )
    (host,) = [t for t in lowered.plan.tensors.values() if t.place is Place.HOST]
    assert host.shape == (2,)


def test_a_size_that_depends_on_values_is_no_cuda_graph() -> None:
    model, lowered = build(
        HEAD
        + """agraph (float[2, 3] x) => (int64[2, n] y) {
            y = NonZero(x)
        }"""
    )
    feeds = random_feeds(model)
    feeds["x"][0] = 0
    (found,) = run(lowered, feeds)
    np.testing.assert_array_equal(found, np.array(np.nonzero(feeds["x"])))
    (tensor,) = [t for t in lowered.plan.tensors.values() if t.name == "y"]
    assert tensor.place is Place.STEP
    assert not lowered.plan.capturable


def test_control_flow_captures_outer_values() -> None:
    lowered = compare(
        HEAD
        + """agraph (float[2] x) => (float[2] y) <float[1] zero = {0.0}> {
            total = ReduceSum<keepdims = 0>(x)
            positive = Greater(total, zero)
            flag = Squeeze(positive)
            twice = Add(x, x)
            y = If (flag) <
                then_branch = yes () => (float[2] a) { a = Mul(twice, x) },
                else_branch = no () => (float[2] b) { b = Sub(twice, x) }
            >
        }"""
    )
    assert not lowered.plan.capturable


CONV = "kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1]"


def fire(inner: str = "") -> str:
    """Two convolutions that write into one concatenation, which a third reads."""
    return (
        '<ir_version: 10, opset_import: ["" : 21, "peregrine" : 1]>'
        f"""agraph (float[2, 4, 5, 6] x, float[3, 4, 3, 3] w1, float[5, 4, 3, 3] w2,
                 float[2, 8, 3, 3] w3) => (float[2, 2, 5, 6] y)
        <float[2, 3, 5, 6] a, float[2, 5, 5, 6] b, float[2, 8, 5, 6] c> {{
            a = peregrine.Conv<{CONV}, activation = "relu", activation_alpha = 0.0,
                activation_beta = 0.0>(x, w1)
            b = peregrine.Conv<{CONV}>(x, w2)
            c = Concat<axis = 1>(a, b)
            {inner}
            y = peregrine.Conv<{CONV}>(c, w3)
        }}"""
    )


def test_producers_write_into_slices_of_a_concatenation() -> None:
    _, lowered = build(fire())
    plan = lowered.plan
    assert [step.operation.operator for step in plan.steps] == ["peregrine.Conv"] * 3
    a, b, c = (plan.tensors[name] for name in "abc")
    assert a.strides == b.strides == c.strides == (240, 1, 48, 8)
    assert a.offset == c.offset
    assert b.offset == c.offset + 3 * 4
    numbers = np.random.default_rng(SEED)
    feeds = {
        name: numbers.standard_normal(tensor.shape).astype(np.float32)
        for name in plan.inputs
        if (tensor := plan.tensors[name]).shape is not None
    }
    (found,) = run(lowered, feeds)

    def conv(x: torch.Tensor, w: Array) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, torch.from_numpy(w).double(), padding=1)

    x = torch.from_numpy(feeds["x"]).double()
    both = torch.cat([conv(x, feeds["w1"]).relu(), conv(x, feeds["w2"])], 1)
    np.testing.assert_allclose(found, conv(both, feeds["w3"]).numpy(), rtol=1e-5, atol=1e-5)


def test_memory_that_a_view_may_show_is_not_used_again() -> None:
    # `flat` may be a view of `c`; the convolution after it must not be given c's memory.
    text = fire("flat = Flatten<axis = 1>(c)\n            late = Neg(flat)").replace(
        "=> (float[2, 2, 5, 6] y)", "=> (float[2, 2, 5, 6] y, float[2, 240] late)"
    )
    _, lowered = build(text)
    plan = lowered.plan
    assert plan.tensors["flat"].place is Place.STEP
    feeds = {
        name: np.random.default_rng(SEED).standard_normal(t.shape).astype(np.float32)
        for name in plan.inputs
        if (t := plan.tensors[name]).shape is not None
    }
    y, late = run(lowered, feeds)
    assert y.shape == (2, 2, 5, 6)
    x = torch.from_numpy(feeds["x"]).double()
    a = torch.nn.functional.conv2d(x, torch.from_numpy(feeds["w1"]).double(), padding=1).relu()
    np.testing.assert_allclose(late[:, : 3 * 30], -a.reshape(2, -1).numpy(), rtol=1e-5, atol=1e-5)


def test_an_unknown_operator_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="NoSuchThing"):
        build(
            '<ir_version: 10, opset_import: ["" : 21, "elsewhere" : 1]>'
            "agraph (float[2] x) => (float[2] y) { y = elsewhere.NoSuchThing(x) }"
        )
