"""Runs a small ONNX model on the CPU by the native engine's operators, and ONNX's node tests so.

`python tests/compiler/node_evaluator.py` writes which of the tests are refused, and why, to
`node_refusals.json`; `--list` prints those that fail instead.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.numpy_helper import to_array

from peregrine.compiler.attributes import tensor_of
from peregrine.compiler.torch_ops import registry
from peregrine.compiler.torch_ops.dtypes import dtype_of
from peregrine.errors import Unsupported

REFUSALS = Path(__file__).parent / "node_refusals.json"
Values = dict[str, torch.Tensor | None]
OBSERVERS: list[Callable[..., None]] = []
"""Told of every operator that was run: its entry, its call, its inputs and its result."""


def run(
    model: onnx.ModelProto,
    inputs: Sequence[Any],
    *,
    last_axis_outermost: bool = False,
    device: str = "cpu",
) -> list[np.ndarray]:
    """The outputs of a model: the one place that says how it is run.

    Args:
        last_axis_outermost: whether the inputs lie in memory with their axes in reverse order.
        device: as torch names it.

    Raises:
        Unsupported: an operator, a type or an attribute that the native engine lacks.
    """
    for value in (*model.graph.input, *model.graph.output):
        _check_type(value)
    graph = ir.serde.deserialize_model(model)
    values: Values = {
        value.name: _laid_out(tensor_of(_plain(array)), last_axis_outermost).to(device)
        for value, array in zip(graph.graph.inputs, inputs, strict=False)
    }
    outputs = _Graph(graph.opset_imports, device).evaluate(graph.graph, values)
    return [array_of(output) for output in outputs]


def _laid_out(x: torch.Tensor, last_axis_outermost: bool) -> torch.Tensor:
    if not last_axis_outermost:
        return x
    backwards = tuple(reversed(range(x.dim())))
    return x.permute(backwards).contiguous().permute(backwards)


def _plain(value: Any) -> np.ndarray:
    """Some tests have ONNX's tensors instead of numpy's."""
    return to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def array_of(tensor: torch.Tensor | None) -> np.ndarray:
    """A copy of a tensor as numpy's, bfloat16 and float8 as ml_dtypes'."""
    assert tensor is not None
    name = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.cpu().contiguous()
    try:
        return plain.numpy().copy()
    except TypeError:
        width = tensor.element_size()
        raw = plain.view({1: torch.uint8, 2: torch.int16}[width]).numpy().copy()
        return raw.view(ir.DataType[_ONNX_NAMES[name]].numpy())


_CHAIN = {"float16": 2**-9, "bfloat16": 2**-6}
"""Two units in the last place: ONNX's expected values of an operator were rounded in other places
than its expansion into several operators, or their fusion, rounds."""
_ONNX_NAMES = {
    "bfloat16": "BFLOAT16",
    "float8_e4m3fn": "FLOAT8E4M3FN",
    "float8_e4m3fnuz": "FLOAT8E4M3FNUZ",
    "float8_e5m2": "FLOAT8E5M2",
    "float8_e5m2fnuz": "FLOAT8E5M2FNUZ",
    "float8_e8m0fnu": "FLOAT8E8M0",
}


def _check_type(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Unsupported(f"The native engine takes tensors; {value.name!r} is a {kind}.")
    dtype_of(value.type.tensor_type.elem_type)


@dataclass(frozen=True)
class _Graph:
    """Evaluates the graphs of a model: its own, and the bodies of control flow."""

    opsets: Mapping[str, int]
    device: str

    def evaluate(self, graph: ir.Graph, values: Values) -> tuple[torch.Tensor | None, ...]:
        """`values` holds the inputs, and what the graph captures from around it."""
        for name, initializer in graph.initializers.items():
            assert initializer.const_value is not None
            values[name] = tensor_of(initializer.const_value.numpy()).to(self.device)
        for node in graph:
            given = [values[value.name] if value is not None else None for value in node.inputs]
            for output, result in zip(node.outputs, self._apply(node, given, values), strict=False):
                values[output.name] = result
        return tuple(values[output.name] for output in graph.outputs)

    def _apply(
        self, node: ir.Node, inputs: Sequence[torch.Tensor | None], values: Values
    ) -> tuple[torch.Tensor | None, ...]:
        name = f"{node.domain or 'ai.onnx'}.{node.op_type}"
        opset = self.opsets[node.domain]
        entry = registry.find(name, opset)
        if entry is None:
            raise Unsupported(f"The native engine has no operator {name} of opset {opset}.")
        attributes = {
            key: self._attribute(attribute, values) for key, attribute in node.attributes.items()
        }
        call = registry.Call(attributes, opset, len(node.outputs), device=self.device)
        versions = [x._version for x in inputs if x is not None]
        result = entry.function(call, *inputs)
        for observe in OBSERVERS:
            observe(entry, call, inputs, result)
        written = [x._version for x in inputs if x is not None] != versions
        assert not written, f"{name} wrote to an input"
        return result if isinstance(result, tuple) else (result,)

    def _attribute(self, attribute: ir.Attr, values: Values) -> Any:
        kinds = ir.AttributeType
        match attribute.type:
            case kinds.GRAPH:
                return self._body(attribute.value, values)
            case kinds.TENSOR:
                return tensor_of(attribute.value.numpy())
            case kinds.INT | kinds.FLOAT | kinds.STRING:
                return attribute.value
            case kinds.INTS | kinds.FLOATS | kinds.STRINGS:
                return tuple(attribute.value)
        raise Unsupported(
            f"The native engine does not take attribute {attribute.name!r}, "
            f"a {attribute.type.name}."
        )

    def _body(
        self, graph: ir.Graph, values: Values
    ) -> Callable[..., tuple[torch.Tensor | None, ...]]:
        def run(*formal: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
            names = [value.name for value in graph.inputs]
            return self.evaluate(graph, {**values, **dict(zip(names, formal, strict=False))})

        return run


def node_tests() -> dict[str, Any]:
    """ONNX's own tests of every operator, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They compute what divides by zero on purpose.
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


def check(case: Any, *, last_axis_outermost: bool = False, device: str = "cpu") -> None:
    """Raises AssertionError unless the outputs have the types, sizes and values expected."""
    for inputs, expected in case.data_sets:
        outputs = run(case.model, inputs, last_axis_outermost=last_axis_outermost, device=device)
        assert len(outputs) == len(expected)
        for output, wanted in zip(outputs, map(_plain, expected), strict=True):
            rtol, atol = case.rtol, case.atol
            if any(node.op_type == "DFT" for node in case.model.graph.node):
                # Sums cancel: what is left is rounding of the terms, ONNX's as well as ours.
                atol = float(np.finfo(wanted.dtype).eps * np.abs(wanted).max())
            if _is_composite(case.model):
                rtol = max(rtol, _CHAIN.get(wanted.dtype.name, 0.0))
            _compare(output, wanted, rtol, atol)


def _is_composite(model: onnx.ModelProto) -> bool:
    """Whether it is several operators, or one that ONNX defines by several."""
    nodes = model.graph.node
    if len(nodes) > 1:
        return True
    version = {opset.domain: opset.version for opset in model.opset_import}[nodes[0].domain]
    schema = onnx.defs.get_schema(nodes[0].op_type, version, nodes[0].domain)
    return schema.has_function or schema.has_context_dependent_function


def _compare(output: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> None:
    assert output.dtype == wanted.dtype, f"{output.dtype} is not {wanted.dtype}"
    assert output.shape == wanted.shape, f"{output.shape} is not {wanted.shape}"
    if wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(output, wanted)
        return
    # numpy compares no types of ml_dtypes, and halves overflow while they are compared.
    comparable = np.complex128 if wanted.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):  # A NaN of float8 raises it.
        actual, desired = output.astype(comparable), wanted.astype(comparable)
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the tests that fail")
    listing = parser.parse_args().list
    refused: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name, case in node_tests().items():
        try:
            check(case)
            check(case, last_axis_outermost=True)
        except Unsupported as error:
            refused[name] = error.what
            counts["refused"] += 1
        except Exception as error:
            counts["failed"] += 1
            if listing:
                print(name, type(error).__name__, str(error).strip()[:300].replace("\n", " "))
        else:
            counts["passed"] += 1
    print(dict(counts))
    if not listing:
        REFUSALS.write_text(json.dumps(dict(sorted(refused.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
