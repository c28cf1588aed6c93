"""Which kernels may start early, and that a plan does not whose outputs change by it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle, pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from msgspec.structs import replace
from onnx import helper, numpy_helper

from compiler.tactics.operations import conv
from compiler.test_lower import build
from peregrine.compiler.devices import describe
from peregrine.compiler.lower import Choice, lower
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Window
from peregrine.compiler.overlap import agree, may_pay, overlapped, starting_early
from peregrine.compiler.passes import optimise
from peregrine.compiler.plan import Memory, Plan, Step, Timed
from peregrine.compiler.runtime import Executable
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics.base import Device

H200 = Device("cuda:0", (9, 0), 132, 7.9e14, 4.3e12)
TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
t (float[2, 3, 5] x, int64[2] rows) => (float[2, 3, 5] y, float[2, 3, 5] z)
<float[1] w = {2.0}>
{
    taken = Gather(x, rows)
    y = Mul(taken, w)
    z = Sqrt(x)
}
"""


def plan_of(*steps: tuple[str, dict[str, object]]) -> Plan:
    """Args: steps: tactics with their configurations."""
    operation = conv((1, 8, 4, 4), 8, Window((1, 1)))
    return Plan(
        name="t",
        dims={},
        precision="fp16",
        inputs=(),
        outputs=(),
        tensors={},
        steps=tuple(
            Step(
                name=str(index),
                operation=operation,
                inputs=(),
                outputs=(),
                chosen=Timed(tactic=tactic, config=config),
            )
            for index, (tactic, config) in enumerate(steps)
        ),
        memory=Memory(arena=0, lower_bound=0, sum_of_tensors=0, weights=0, workspace=0),
    )


def test_no_kernel_starts_early_beside_a_library():
    ours, theirs = ("triton_conv", {"block_m": 64, "pdl": False}), ("cudnn_graph", {"plan": 1})
    plan = plan_of(ours, ours, theirs, ours, ours, ours, ("torch_ops", {}), ours)
    early = starting_early(plan)
    found = [step.chosen.config.get("pdl") for step in early.steps]
    assert found == [True, False, None, False, True, False, None, False]
    assert early.steps[0].chosen.config == {"block_m": 64, "pdl": True}
    kept = [old is new for old, new in zip(plan.steps, early.steps, strict=True)]
    assert kept == [False, True, True, True, False, True, True, True]
    assert starting_early(early) == early


def test_kernels_that_take_long_are_not_tried():
    plan = plan_of(*[("triton_conv", {"pdl": False})] * 4)
    steps = plan.steps

    def timed(*ms: float | None) -> Plan:
        chosen = [replace(s.chosen, ms=t) for s, t in zip(steps, ms, strict=True)]
        pairs = zip(steps, chosen, strict=True)
        return replace(plan, steps=tuple(replace(s, chosen=c) for s, c in pairs))

    assert may_pay(plan)  # nobody measured them
    assert may_pay(timed(0.003, 0.002, None, 0.004))
    assert may_pay(timed(0.003, 0.15, 0.003, 0.004))
    assert not may_pay(timed(0.1, 0.07, 0.02, 0.05))


def executables(lowered: Lowered, other: Lowered) -> list[Executable]:
    return [Executable(one.plan, one.weights, "cpu") for one in (lowered, other)]


def test_plans_agree_where_all_outputs_are_the_same_and_numbers_that_are_none_too():
    _, lowered = build(TEXT)
    one, other = executables(lowered, lowered)
    assert agree(one, other)
    assert one.outputs()[1].isnan().any()  # the root of a negative number
    for a, b in zip(one.outputs(), other.outputs(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_plans_do_not_agree_where_one_is_off_by_a_bit():
    _, lowered = build(TEXT)
    off = {name: torch.nextafter(w, w + 1) for name, w in lowered.weights.items()}
    assert not agree(*executables(lowered, Lowered(lowered.plan, off)))


def test_plans_do_not_agree_where_one_reads_what_the_inference_before_left():
    _, lowered = build(TEXT)
    one, other = executables(lowered, lowered)
    late = other._calls.pop()
    last = {}

    def stale(environment):
        late(environment)
        now = [tensor.clone() for tensor in other.outputs()]
        for tensor, before in zip(other.outputs(), last.get("outputs", now), strict=True):
            tensor.copy_(before)
        last["outputs"] = now

    other._calls.append(stale)
    assert not agree(one, other)


def test_a_plan_stays_as_it_is_where_nothing_can_start_early():
    _, lowered = build(TEXT)
    assert overlapped(lowered, Device("cpu")) is lowered
    plan = plan_of(("triton_conv", {"pdl": False}))
    for device in (Device("cpu"), Device("cuda:0", (8, 9))):
        assert overlapped(Lowered(plan, {}), device).plan is plan
    plan = plan_of(("cudnn_graph", {}))
    assert overlapped(Lowered(plan, {}), H200).plan is plan


ONE_STEP = {
    "block_m": 64, "block_n": 32, "block_k": 64, "warps": 4, "stages": 3, "split_k": 1,
    "reduce": "last", "programs": 0, "ahead": False, "boxed_end": False,
    "precision": "ieee", "pdl": False,
}  # fmt: skip


class Fetched:
    """Convolutions by Triton, every second one's boxes by the tensor memory accelerator."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._fetch = cycle(["tma", "pointers"])

    def prepare(self, operations: Iterable[Operation]) -> None:
        pass

    def choose(self, operation: Operation) -> Choice:
        ours = registry.get("triton_conv")
        if not ours.supports(operation, self.device):
            return Choice(registry.torch_ops(), Timed(tactic="torch_ops"))
        config = {**ONE_STEP, "fetch": next(self._fetch)}
        return Choice(ours, Timed(tactic=ours.name, config=config))


def chain(device: Device, length: int) -> Lowered:
    """1x1 convolutions of 64 channels: a tile of one is one step of K, which Triton once fetched
    before the wait for the kernel ahead."""
    random = np.random.default_rng(20261121)
    weights = [
        numpy_helper.from_array(
            (random.standard_normal((64, 64, 1, 1)) * 64**-0.5 * 2**0.5).astype(np.float16), f"w{i}"
        )
        for i in range(length)
    ]
    names = ["x", *(f"r{i}" for i in range(length - 1)), "y"]
    nodes = [
        node
        for i, (before, after) in enumerate(pairwise(names))
        for node in (
            helper.make_node("Conv", [before, f"w{i}"], [f"c{i}"]),
            helper.make_node("Relu", [f"c{i}"], [after]),
        )
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, (1, 64, 56, 56))
        for name in "xy"
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return lower(optimise(model), Fetched(device), dims={}, precision="fp16")


@pytest.mark.gpu
def test_kernels_that_start_early_read_what_the_ones_ahead_have_written():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels start early from compute capability 9.0 on")
    device = describe("cuda:0")
    lowered = chain(device, 12)
    plan = starting_early(lowered.plan)
    assert sum(bool(step.chosen.config.get("pdl")) for step in plan.steps) >= 10
    now, early = (Executable(one, lowered.weights, "cuda:0") for one in (lowered.plan, plan))
    for executable in (now, early):
        executable.settle()
        assert executable.is_captured
    for _ in range(4):
        assert agree(now, early)
    taken = overlapped(lowered, device).plan
    assert taken in (lowered.plan, plan)
