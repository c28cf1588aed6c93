"""A residual is written over where nobody reads it any more, and nothing else is."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from compiler.fused_reference import OPERATORS
from peregrine.compiler.autotune import Autotuner
from peregrine.compiler.lifetimes import last_uses
from peregrine.compiler.lower import lower
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.plan import Place
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device
from peregrine.types import Array

SEED = 20261121
CONV = "kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1]"
RELU = 'activation = "relu", activation_alpha = 0.0, activation_beta = 0.0'
WIDE, THIN = 2 * 7 * 5 * 6 * 4, 2 * 4 * 5 * 6 * 4
"""Bytes of an image with 7 and with 4 channels."""


def blocks(before: str = "", after: str = "", outputs: str = "", residual: str = "s") -> str:
    """Two residual blocks: `y` is added to 4 channels, `t` to y; between them 7 channels.

    Args:
        before, after: more nodes, before the first block's end and at the end.
        outputs: more outputs of the graph.
        residual: what the first block adds.
    """
    return (
        '<ir_version: 10, opset_import: ["" : 21, "peregrine" : 1]>'
        f"""agraph (float[2, 4, 5, 6] x, float[4, 4, 3, 3] w, float[7, 4, 3, 3] up,
                 float[4, 7, 3, 3] down, float[3, 4, 3, 3] end)
                 => (float[2, 3, 5, 6] out{outputs})
        <float[2, 4, 5, 6] s, float[2, 4, 5, 6] r, float[2, 7, 5, 6] a, float[2, 4, 5, 6] y,
         float[2, 7, 5, 6] b, float[2, 4, 5, 6] t, float[2, 8, 5, 6] c> {{
            s = peregrine.Conv<{CONV}, {RELU}>(x, w)
            a = peregrine.Conv<{CONV}>(s, up)
            {before}
            y = peregrine.Conv<{CONV}, {RELU}>(a, down, , {residual})
            b = peregrine.Conv<{CONV}>(y, up)
            t = peregrine.Conv<{CONV}>(b, down, , y)
            {after}
            out = peregrine.Conv<{CONV}>(t, end)
        }}"""
    )


def build(text: str) -> tuple[ir.Model, Lowered]:
    proto = onnx.parser.parse_model(text)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    model = ir.from_proto(proto)
    tuner = Autotuner(Device("cpu"), tactics=[registry.torch_ops()])
    return model, lower(model, tuner, dims={}, precision="fp32", name="t")


def run_poisoned(lowered: Lowered, feeds: dict[str, Array]) -> list[Array]:
    """Step by step; before each, all of the arena that no later step reads is NaN."""
    plan = lowered.plan
    executable = Executable(plan, lowered.weights, "cpu")
    for name, buffer in executable.inputs.items():
        buffer.copy_(torch.from_numpy(feeds[name]))
    # A concatenation is made by nobody: its slices are.
    made = {name: i for i, step in enumerate(plan.steps) for name in step.outputs}
    ends = last_uses(plan.steps, plan.tensors, plan.outputs)
    fixed, arena = executable._fixed, executable._blocks["arena"]
    environment: dict[str, torch.Tensor | None] = {}
    for index, call in enumerate(executable._calls):
        alive = {
            name: fixed[name].clone()
            for name, tensor in plan.tensors.items()
            if tensor.place is Place.ARENA and made.get(name, -1) < index <= ends.get(name, -1)
        }
        arena.fill_(0xFF)
        for name, value in alive.items():
            fixed[name].copy_(value)
        call(environment)
    return [t.clone().numpy() for t in (fixed.get(n, environment.get(n)) for n in plan.outputs)]


def compared(text: str) -> Lowered:
    """The plan of a graph, after it gave what ONNX's reference gives."""
    model, lowered = build(text)
    numbers = np.random.default_rng(SEED)
    feeds = {
        str(value.name): numbers.normal(0, 0.3, tuple(value.shape or ())).astype(np.float32)
        for value in model.graph.inputs
    }
    expected = ReferenceEvaluator(ir.to_proto(model), new_ops=OPERATORS).run(None, feeds)
    for found, wanted in zip(run_poisoned(lowered, feeds), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return lowered


def over(lowered: Lowered) -> dict[str, str]:
    return {step.outputs[0]: step.over for step in lowered.plan.steps if step.over}


def test_a_chain_of_residual_blocks_has_one_place():
    lowered = compared(blocks())
    plan = lowered.plan
    assert over(lowered) == {"y": "s", "t": "y"}
    assert len({plan.tensors[name].offset for name in "syt"}) == 1
    padded = -(-THIN // 256) * 256
    assert plan.memory.lower_bound == THIN + WIDE
    assert plan.memory.arena <= padded + -(-WIDE // 256) * 256
    assert plan.memory.sum_of_tensors == 3 * THIN + 2 * WIDE


def test_what_another_step_reads_later_is_kept():
    lowered = compared(blocks(after="late = Flatten<axis = 1>(s)", outputs=", float[2, 120] late"))
    assert over(lowered) == {"t": "y"}


def test_what_a_view_may_still_show_is_kept():
    text = blocks(
        before="flat = Flatten<axis = 1>(s)",
        after="late = Neg(flat)",
        outputs=", float[2, 120] late",
    )
    lowered = compared(text)
    assert lowered.plan.tensors["flat"].place is Place.STEP
    assert over(lowered) == {"t": "y"}


def test_what_the_step_also_slides_its_window_over_is_kept():
    text = blocks().replace("(b, down, , y)", "(y, w, , y)")
    lowered = compared(text)
    assert over(lowered) == {"y": "s"}


def test_a_slice_of_a_concatenation_is_kept():
    text = blocks(
        before=f"r = peregrine.Conv<{CONV}>(x, w)\n            c = Concat<axis = 1>(s, r)\n"
        f"            d = peregrine.Conv<{CONV}>(c, both)",
        outputs=", float[2, 3, 5, 6] d",
    ).replace("float[3, 4, 3, 3] end)", "float[3, 4, 3, 3] end, float[3, 8, 3, 3] both)")
    lowered = compared(text)
    tensors = lowered.plan.tensors
    assert tensors["s"].strides == tensors["c"].strides
    assert over(lowered) == {"t": "y"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (blocks(residual="x"), {"t": "y"}),
        (blocks(outputs=", float[2, 4, 5, 6] y").replace("float[2, 4, 5, 6] y,", "", 1), {}),
        (
            blocks(outputs=", float[2, 4, 5, 6] t").replace("float[2, 4, 5, 6] t,", "", 1),
            {"y": "s"},
        ),
    ],
    ids=["the graph's input", "an output read again", "an output"],
)
def test_what_the_caller_holds_is_kept(text, written):
    assert over(compared(text)) == written


def test_a_tactic_that_promises_nothing_writes_beside():
    class Beside(type(registry.torch_ops())):
        name = "torch_ops"

        def writes_over(self, operation, config):
            return frozenset()

    class Chooser(Autotuner):
        def choose(self, operation):
            choice = super().choose(operation)
            return type(choice)(Beside(), choice.chosen)

    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(blocks()))
    tuner = Chooser(Device("cpu"), tactics=[registry.torch_ops()])
    lowered = lower(ir.from_proto(proto), tuner, dims={}, precision="fp32", name="t")
    assert not over(lowered)
    assert lowered.plan.memory.lower_bound == 2 * THIN + WIDE
