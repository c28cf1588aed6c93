"""A small plan with every kind of step, weight and attribute, for tests of what reads plans."""

from __future__ import annotations

import math

from peregrine.compiler.cost import cost
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.plan import Memory, Place, Plan, Step, Tensor, Timed

FINGERPRINT = {"gpu": "NVIDIA H200", "capability": "9.0", "driver": "580.1", "triton": "3.6.0"}


def tensor(name: str, of: TensorType, place: Place, offset: int = 0) -> Tensor:
    return Tensor(
        name=name, dtype=of.dtype, shape=of.shape, strides=of.strides, place=place, offset=offset
    )


def small_plan(name: str = "small", batch: int = 2) -> Plan:
    """x -> Conv + ReLU -> MaxPool -> mean and product -> y."""
    x = TensorType.channels_last("float16", (batch, 8, 16, 16))
    w = TensorType.contiguous("float16", (16, 8, 3, 3))
    bias = TensorType.contiguous("float16", (16,))
    a = TensorType.channels_last("float16", (batch, 16, 16, 16))
    b = TensorType.channels_last("float16", (batch, 16, 8, 8))
    head = TensorType.contiguous("float16", (10, 16))
    y = TensorType.contiguous("float16", (batch, 10))
    conv = Operation(
        Fused.CONV,
        {
            **Window((3, 3), pads=(1, 1, 1, 1)).attributes(),
            **Activation(ActivationKind.CLIP, -math.inf, 6.0).attributes(),
            "group": 1,
        },
        (x, w, bias, None),
        (a,),
        frozenset({1, 2}),
    )
    pool = Operation(
        "ai.onnx.MaxPool", {"kernel_shape": (2, 2), "strides": (2, 2)}, (a,), (b,), opset=22
    )
    linear = Operation(Fused.POOL_LINEAR, {}, (b, head, None), (y,), frozenset({1}))
    steps = (
        _step("conv", conv, ("x", "w", "bias", ""), ("a",), 0.02, sources=("c1", "bn1", "relu1"),
              runners_up=(
                  Timed(tactic="cudnn", config={"plan": 3}, ms=0.025, predicted_ms=0.02),
                  Timed(tactic="aten", ms=0.05),
                  Timed(tactic="triton_direct", refused="relative error 0.3 > 0.01"),
              )),
        _step("pool", pool, ("a",), ("b",), 0.004, tactic="aten", config={}),
        _step("head", linear, ("b", "head", ""), ("y",), None, sources=("mean", "fc")),
    )  # fmt: skip
    return Plan(
        name=name, dims={"batch": batch}, precision="fp16", inputs=("x",), outputs=("y",),
        tensors={
            "x": tensor("x", x, Place.INPUT), "w": tensor("w", w, Place.WEIGHT),
            "bias": tensor("bias", bias, Place.WEIGHT), "head": tensor("head", head, Place.WEIGHT),
            "axes": tensor("axes", TensorType.contiguous("int64", (2,)), Place.HOST),
            "a": tensor("a", a, Place.ARENA), "b": tensor("b", b, Place.ARENA, a.bytes),
            "y": tensor("y", y, Place.OUTPUT),
        },
        steps=steps,
        memory=Memory(arena=a.bytes + b.bytes, lower_bound=a.bytes + b.bytes,
                      sum_of_tensors=a.bytes + b.bytes, weights=w.bytes + 352, workspace=4096),
        notes=("a note",),
    )  # fmt: skip


def _step(
    name: str,
    operation: Operation,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    ms: float | None,
    *,
    tactic: str = "triton_gemm",
    config: dict[str, object] | None = None,
    sources: tuple[str, ...] = (),
    runners_up: tuple[Timed, ...] = (),
) -> Step:
    spent = cost(operation)
    return Step(
        name=name, operation=operation, inputs=inputs, outputs=outputs,
        chosen=Timed(tactic=tactic, config={"block_m": 64, "stages": 3, "split": True}
                     if config is None else config, ms=ms, predicted_ms=0.01, error=2e-4),
        runners_up=runners_up, sources=sources, flops=spent.flops, bytes=spent.bytes,
    )  # fmt: skip
