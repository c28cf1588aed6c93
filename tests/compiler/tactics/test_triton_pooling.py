"""What the tactics of poolings take, and how they cut them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.tactics import triton_cases as cases
from compiler.tactics.operations import conv, image
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Window
from peregrine.compiler.tactics.triton_pooling import (
    TritonGlobalPool,
    TritonMaxPool,
    TritonPoolLinear,
)

_WINDOW = Window((3, 3), (2, 2))
_POOL = cases.max_pool((1, 16, 9, 9), _WINDOW)
_HEAD = cases.pool_linear((1, 16, 7, 7), 10)


def _mean(shape=(1, 16, 7, 7)) -> Operation:
    written = TensorType.contiguous("float16", (*shape[:2], 1, 1))
    return Operation("ai.onnx.GlobalAveragePool", {}, (image("float16", shape),), (written,))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (_HEAD, "ai.onnx.MaxPool"),
        (cases.max_pool((1, 16, 20, 20), Window((9, 9))), "49 elements"),
        (replace(_POOL, outputs=(*_POOL.outputs, _POOL.outputs[0])), "no indices"),
        (
            replace(_POOL, attributes={**_POOL.attributes, "auto_pad": "SAME_UPPER"}),
            "pads are not given",
        ),
        (replace(_POOL, inputs=(TensorType("float16", None, None),)), "not known"),
        (
            replace(_POOL, inputs=(TensorType.contiguous("float16", (1, 16, 9)),)),
            "3 dimensions",
        ),
        (
            replace(_POOL, inputs=(TensorType.contiguous("float16", (1, 16, 9, 9)),)),
            "not innermost",
        ),
    ],
)
def test_max_poolings_it_does_not_take_have_a_reason(operation, reason):
    support = TritonMaxPool().supports(operation, cases.H200)
    assert not support
    assert reason in support.reason


def test_other_poolings_it_does_not_take():
    assert "GlobalAveragePool" in TritonGlobalPool().supports(_POOL, cases.H200).reason
    convolution = conv((1, 8, 9, 9), 8, _WINDOW)
    assert "PoolLinear" in TritonPoolLinear().supports(convolution, cases.H200).reason
    head = cases.pool_linear((1, 16, 7, 7), 10, dtype="float32")
    assert "not float32" in TritonPoolLinear().supports(head, cases.H200).reason


@pytest.mark.parametrize(
    ("tactic", "operation"),
    [
        (TritonMaxPool(), _POOL),
        (TritonMaxPool(), cases.max_pool((256, 96, 109, 109), _WINDOW)),
        (TritonGlobalPool(), _mean()),
        (TritonGlobalPool(), _mean((256, 1000, 13, 13))),
        (TritonPoolLinear(), _HEAD),
        (TritonPoolLinear(), cases.pool_linear((1, 2048, 7, 7), 1000)),
        (TritonPoolLinear(), cases.pool_linear((256, 2048, 7, 7), 1000)),
    ],
)
def test_configurations_are_few_distinct_and_predicted(tactic, operation):
    assert tactic.supports(operation, cases.H200)
    cases.check_configs(tactic, operation)


def test_one_image_in_one_kernel_many_in_two():
    one = TritonPoolLinear().configs(cases.pool_linear((1, 512, 7, 7), 1000), cases.H200)
    many = TritonPoolLinear().configs(cases.pool_linear((256, 512, 7, 7), 1000), cases.H200)
    assert one[0]["kernels"] == 1
    assert {config["kernels"] for config in many} == {2}
