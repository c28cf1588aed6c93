"""Control flow. A body is a function of its formal inputs; what it captures is bound already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.registry import Call, Result, operator
from peregrine.compiler.torch_ops.windows import pad
from peregrine.errors import Unsupported

Body: TypeAlias = "Callable[..., tuple[Tensor, ...]]"


@operator("ai.onnx.If", host=(0,))
def if_(call: Call, condition: Tensor) -> Result:
    body: Body = call.attributes["then_branch" if bool(condition) else "else_branch"]
    return _outputs(body())


def _outputs(values: Sequence[Tensor]) -> Result:
    return values[0] if len(values) == 1 else tuple(values)


@operator("ai.onnx.Loop", host=(0, 1))
def loop(call: Call, trips: Tensor | None, condition: Tensor | None, *carried: Tensor) -> Result:
    """Runs the body while its condition holds, at most `trips` times; what a body gives beyond the
    carried values is stacked over the iterations."""
    body: Body = call.attributes["body"]
    most = None if trips is None else int(trips)
    goes_on = condition is None or bool(condition)
    flag = torch.tensor(True, device=call.device) if condition is None else condition
    values, scanned = list(carried), _Scanned(call, "Loop", call.outputs - len(carried))
    iteration = 0
    while goes_on and (most is None or iteration < most):
        flag, *results = body(torch.tensor(iteration, device=call.device), flag, *values)
        values = results[: len(values)]
        scanned.add(results[len(values) :])
        goes_on = bool(flag)
        iteration += 1
    return _outputs([*values, *scanned.stacked()])


@operator("ai.onnx.Scan", since=8, host=(0,))
def scan_of_batches(call: Call, lengths: Tensor | None, *inputs: Tensor) -> Result:
    """All of a batch (N, ...) one by one, its sequences (N, T, ...) as long as `lengths` (N) says;
    what is stacked is 0 beyond that."""
    count = call.get("num_scan_inputs")
    longest = inputs[-1].shape[1]
    each = [longest] * inputs[-1].shape[0] if lengths is None else lengths.tolist()
    attributes = {**call.attributes, "scan_input_directions": call.get("directions")}
    alone = replace(call, attributes=attributes)
    items = []
    for item, length in enumerate(each):
        values = [x[item] for x in inputs]
        values[-count:] = [x[:length] for x in values[-count:]]
        result = scan(alone, *values)
        results = result if isinstance(result, tuple) else (result,)
        states = len(inputs) - count
        scanned = [
            pad(x.movedim(0, -1), [0], [longest - length]).movedim(-1, 0)
            for x in results[states:]
            if x is not None
        ]
        items.append([*results[:states], *scanned])
    return _outputs([torch.stack(values) for values in zip(*items, strict=True)])


@operator("ai.onnx.Scan", since=9)
def scan(call: Call, *inputs: Tensor) -> Result:
    body: Body = call.attributes["body"]
    count = call.get("num_scan_inputs")
    values, sequences = list(inputs[:-count]), inputs[-count:]
    axes = call.get("scan_input_axes") or (0,) * count
    backwards = call.get("scan_input_directions") or (0,) * count
    length = sequences[0].shape[axes[0]]
    slices = [
        list(reversed(parts)) if backward else list(parts)
        for parts, backward in zip(map(torch.unbind, sequences, axes), backwards, strict=True)
    ]
    scanned = _Scanned(call, "Scan", call.outputs - len(values))
    for iteration in range(length):
        results = body(*values, *(parts[iteration] for parts in slices))
        values = list(results[: len(values)])
        scanned.add(results[len(values) :])
    return _outputs([*values, *scanned.stacked()])


class _Scanned:
    """What the iterations of a body gave, one list an output."""

    def __init__(self, call: Call, name: str, outputs: int) -> None:
        self._name = name
        self._axes = call.get("scan_output_axes") or (0,) * outputs
        self._backwards = call.get("scan_output_directions") or (0,) * outputs
        self._lists: list[list[Tensor]] = [[] for _ in range(outputs)]

    def add(self, results: Sequence[Tensor]) -> None:
        for values, result in zip(self._lists, results, strict=True):
            values.append(result)

    def stacked(self) -> list[Tensor]:
        if any(not values for values in self._lists):
            raise Unsupported(f"{self._name} of no iteration with stacked outputs")
        return [
            torch.stack(values[::-1] if backward else values, axis)
            for values, axis, backward in zip(self._lists, self._axes, self._backwards, strict=True)
        ]
