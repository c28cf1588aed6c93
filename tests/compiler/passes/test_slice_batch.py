"""In parts, a chain computes the same."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest

from compiler.fused_reference import run
from peregrine.compiler.passes.slice_batch import SliceBatch

CONV = "kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1]"
POOL = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"


def stem(*, second_reader: bool = False, residual: bool = False, images: int = 6) -> ir.Model:
    late = "z = Neg(c)" if second_reader else ""
    added = ", , r" if residual else ""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "peregrine" : 1]>
        agraph (float[{images}, 3, 8, 7] x, float[{images}, 5, 8, 7] r)
            => (float[{images}, 4, 4, 4] y)
        <float[5, 3, 3, 3] w = {{{_numbers(135)}}}, float[4, 5, 1, 1] v = {{{_numbers(20)}}},
         float[{images}, 5, 8, 7] c, float[{images}, 5, 4, 4] p> {{
            c = peregrine.Conv<{CONV}, activation = "relu", activation_alpha = 0.0,
                activation_beta = 0.0>(x, w{added})
            p = MaxPool<{POOL}>(c)
            {late}
            y = peregrine.Conv<kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0],
                dilations = [1, 1]>(p, v)
        }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return ir.from_proto(proto)


def _numbers(count: int) -> str:
    numbers = np.random.default_rng(count).standard_normal(count)
    return ", ".join(f"{number:.4f}" for number in numbers)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("chain", "parts", "expected"),
    [
        (("c", "p"), 2, ["Split", *["Conv", "MaxPool"] * 2, "Concat", "Conv"]),
        (("c", "p"), 6, ["Split", *["Conv", "MaxPool"] * 6, "Concat", "Conv"]),
        (("c", "y"), 3, ["Split", *["Conv", "MaxPool", "Conv"] * 3, "Concat"]),
        (("c", "c"), 2, ["Split", "Conv", "Conv", "Concat", "MaxPool", "Conv"]),
    ],
)
def test_parts_compute_the_same(chain, parts, expected):
    model = stem()
    numbers = np.random.default_rng(7)
    feeds = {
        str(value.name): numbers.standard_normal(tuple(value.shape)).astype(np.float32)
        for value in model.graph.inputs
    }
    (before,) = run(model, feeds)
    result = SliceBatch({chain: parts})(model)
    assert result.modified
    assert operators(model) == expected
    (after,) = run(model, feeds)
    np.testing.assert_array_equal(after, before)
    assert all(value.shape is not None for node in model.graph for value in node.outputs)


@pytest.mark.parametrize(
    ("options", "chain", "parts"),
    [
        ({}, ("c", "p"), 4),
        ({}, ("p", "c"), 2),
        ({}, ("c", "nobody"), 2),
        ({"second_reader": True}, ("c", "p"), 2),
        ({"residual": True}, ("c", "p"), 2),
        ({"images": 1}, ("c", "p"), 2),
    ],
    ids=["odd", "backwards", "no such", "read twice", "residual", "one image"],
)
def test_what_is_no_chain_stays(options, chain, parts):
    model = stem(**options)
    before = operators(model)
    assert not SliceBatch({chain: parts})(model).modified
    assert operators(model) == before
