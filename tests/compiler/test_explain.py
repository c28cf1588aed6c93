"""An engine explained: its figures add up, and its memory is what the plan says."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from peregrine.compiler.cost import cost, roofline_s
from peregrine.compiler.engine import save
from peregrine.compiler.explain import (
    Span,
    arena_spans,
    config_words,
    explain,
    explain_plan,
    find_engine,
    sizes,
)
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.plan import Memory, Place, Plan, Step, Timed
from peregrine.compiler.tactics.base import Device
from peregrine.errors import BundleCorrupt, BundleError
from small_plan import FINGERPRINT, small_plan, tensor

H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)


def test_times_and_shares_add_up():
    found = explain_plan(small_plan(), H200)
    conv, pool, head = found.steps
    assert found.total_ms == pytest.approx(0.024)
    assert (conv.share, pool.share, head.share) == (
        pytest.approx(0.02 / 0.024), pytest.approx(0.004 / 0.024), None
    )  # fmt: skip
    assert found.untimed == 1
    assert found.tactics == (("triton_gemm", 2, 0.02), ("aten", 1, 0.004))
    assert [step.number for step in found.steps] == [1, 2, 3]
    assert found.longest(1) == (conv,)
    assert found.longest() == found.steps
    assert found.longest(9) == (conv, pool, head)


def test_a_step_is_held_against_its_roofline():
    plan = small_plan()
    found = explain_plan(plan, H200)
    for step, was in zip(found.steps, plan.steps, strict=True):
        least = 1e3 * roofline_s(cost(was.operation), H200)
        assert step.roofline_ms == pytest.approx(least)
    conv, _, head = found.steps
    assert conv.achieved == pytest.approx(conv.roofline_ms / 0.02)
    assert head.achieved is None
    assert conv.bound == "memory"
    slow = explain_plan(plan, Device("cuda:0", (9, 0), 1, 1e9, 1e12)).steps[0]
    assert slow.bound == "compute"
    timed = conv.roofline_ms + found.steps[1].roofline_ms
    assert found.roofline_ms == pytest.approx(timed)  # not that of a step without a time


def test_the_runner_up_is_the_best_that_may_compete():
    conv, pool, _ = explain_plan(small_plan(), H200).steps
    assert conv.runner_up is not None
    assert conv.runner_up.tactic == "cudnn"
    assert len(conv.others) == 3
    assert pool.runner_up is None
    again = Timed(tactic="triton_gemm", config={"block_m": 32}, ms=0.021)
    step = msgspec.structs.replace(small_plan().steps[0], runners_up=(again, *conv.others))
    plan = msgspec.structs.replace(small_plan(), steps=(step,))
    assert explain_plan(plan, H200).steps[0].runner_up.tactic == "cudnn"
    step = msgspec.structs.replace(step, runners_up=(again,))
    plan = msgspec.structs.replace(small_plan(), steps=(step,))
    assert explain_plan(plan, H200).steps[0].runner_up == again
    refused = Timed(tactic="wrong", ms=0.001, refused="relative error 0.5")
    step = msgspec.structs.replace(small_plan().steps[0], runners_up=(refused,))
    plan = msgspec.structs.replace(small_plan(), steps=(step,))
    assert explain_plan(plan, H200).steps[0].runner_up is None


def test_words_for_people():
    conv, pool, head = small_plan().steps
    assert sizes(conv.operation) == "2x8x16x16 → 2x16x16x16  3x3, clip"
    assert sizes(pool.operation) == "2x16x16x16 → 2x16x8x8  2x2/2"
    assert sizes(head.operation) == "2x16x8x8 → 2x10"
    image = TensorType.contiguous("float16", (1, 8, 9, 9))
    weight = TensorType.contiguous("float16", (8, 1, 3, 3))
    attributes = {
        **Window((3, 5), (2, 1), (1, 2, 1, 2), (1, 2)).attributes(), "group": 8,
        **Activation(ActivationKind.SILU).attributes(),
    }  # fmt: skip
    full = Operation(Fused.CONV, attributes, (image, weight, None, image), (image,))
    assert sizes(full) == ("1x8x9x9 → 1x8x9x9  3x5/2x1 dilated 1x2, 8 groups, + residual, silu")
    unknown = Operation("ai.onnx.NonZero", {}, (image,), (TensorType("int64", None, None),))
    assert sizes(unknown) == "1x8x9x9 → ?"
    assert (
        config_words({"block": 64, "wide": True, "split": False, "f": 0.5}) == "block=64 wide f=0.5"
    )
    assert config_words({}) == ""


def _concatenation() -> Plan:
    """Two producers write the halves of a tensor that no step makes, after another has used its
    memory: x -> a; a -> left; a -> right; (left | right) -> y."""
    x = TensorType.contiguous("float16", (1, 4, 2, 2))
    a = TensorType.channels_last("float16", (1, 16, 2, 2))
    whole = TensorType.channels_last("float16", (1, 64, 2, 2))
    half = TensorType("float16", (1, 32, 2, 2), whole.strides)
    y = TensorType.contiguous("float16", (1, 2))
    early = TensorType.channels_last("float16", (1, 64, 2, 2))

    def step(name: str, read: str, made: str, of: TensorType, to: TensorType) -> Step:
        operation = Operation("ai.onnx.Relu", {}, (of,), (to,))
        return Step(name=name, operation=operation, inputs=(read,), outputs=(made,),
                    chosen=Timed(tactic="aten", ms=1.0))  # fmt: skip

    return Plan(
        name="concat", dims={}, precision="fp16", inputs=("x",), outputs=("y",),
        tensors={
            "x": tensor("x", x, Place.INPUT), "y": tensor("y", y, Place.OUTPUT),
            "early": tensor("early", early, Place.ARENA, 0),
            "a": tensor("a", a, Place.ARENA, 512),
            "left": tensor("left", half, Place.ARENA, 0),
            "right": tensor("right", half, Place.ARENA, 64),
            "whole": tensor("whole", whole, Place.ARENA, 0),
        },
        steps=(
            step("0", "x", "early", x, early), step("1", "early", "a", early, a),
            step("2", "a", "left", a, half), step("3", "a", "right", a, half),
            step("4", "whole", "y", whole, y),
        ),
        memory=Memory(arena=768, lower_bound=640, sum_of_tensors=1152, weights=0, workspace=0),
    )  # fmt: skip


def test_slices_of_a_concatenation_are_one_block():
    plan = _concatenation()
    assert arena_spans(plan) == (
        Span("early", 0, 512, 0, 1), Span("a", 512, 128, 1, 3), Span("whole", 0, 512, 2, 4)
    )  # fmt: skip
    found = explain_plan(plan, H200)
    assert found.alive == (512, 640, 640, 640, 512)
    assert max(found.alive) == plan.memory.lower_bound


def test_the_blocks_of_a_plan_are_its_tensors():
    plan = small_plan()
    a, b = (plan.tensors[name] for name in "ab")
    assert arena_spans(plan) == (
        Span("a", 0, a.type.bytes, 0, 1), Span("b", b.offset, b.type.bytes, 1, 2)
    )  # fmt: skip


def test_a_plan_without_steps_or_times():
    plan = msgspec.structs.replace(small_plan(), steps=())
    found = explain_plan(plan, Device("cpu"))
    assert (found.total_ms, found.achieved, found.alive, found.spans) == (0, None, (), ())


@pytest.fixture
def home(tmp_path):
    weights = {"w": torch.zeros(2), "bias": torch.zeros(2), "head": torch.zeros(2),
               "axes": torch.zeros(2)}  # fmt: skip
    where = tmp_path / "bundle" / "artifact"
    save(where, [small_plan(batch=1), small_plan(batch=8)], [weights, weights], FINGERPRINT,
         device=H200)  # fmt: skip
    return where


def test_an_engine_is_found_in_a_bundle(home):
    assert find_engine(home) == find_engine(home.parent) == home
    found = explain(str(home.parent))
    assert [plan.dims["batch"] for plan in found.plans] == [1, 8]
    assert found.device == H200
    assert found.fingerprint == FINGERPRINT
    assert math.isclose(found.plans[0].total_ms, 0.024)


def test_what_is_no_engine_says_so(home, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(BundleError, match="holds no engine") as caught:
            explain(place)
        assert caught.value.why
        assert caught.value.fix
    save(tmp_path / "bundle" / "second", [small_plan()], [dict.fromkeys(
        ("w", "bias", "head", "axes"), torch.zeros(1))], {})  # fmt: skip
    with pytest.raises(BundleError, match="2 engines") as caught:
        explain(tmp_path / "bundle")
    assert "second" in caught.value.fix
    (home / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleCorrupt):
        explain(home)
