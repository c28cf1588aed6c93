"""Depthwise convolutions of many pixels, by `kernels.depthwise_walk`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.compiler.operation import Operation
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.tactics import _depthwise, _nhwc, _triton
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic
from peregrine.types import Support

if TYPE_CHECKING:
    import torch

_SHAPES = 6
"""Of strips, of which one configuration each is compiled and timed."""
_TWICE = 2
"""Of the best of them another one, with other warps and, where that costs little, other rows."""
_CLOSE = 1.04
"""Times the best's prediction: little."""
_REGISTERS = 240
"""Of a lane, which may have 255."""
_INSTRUCTIONS = 5.6e9
"""A second that one multiprocessor starts, each for 32 lanes: four a cycle, fewer in practice."""
_SHARED_MEMORY = 220 * 1024
_STAGES = 3
"""Rows in shared memory: one that is added and two on their way."""


@dataclass(frozen=True, slots=True)
class _Walk:
    """How lanes share the work; `Config` holds the same as JSON."""

    columns: int
    vector: int
    rows: int
    """Of a part of the image."""
    warps: int

    @classmethod
    def read(cls, config: Config) -> _Walk:
        return cls(*(int(config[name]) for name in cls.__slots__))

    def config(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in self.__slots__}

    @property
    def shape(self) -> tuple[int, int]:
        """Of a strip."""
        return self.columns, self.vector

    def parts(self, operation: Operation) -> int:
        return math.ceil(_nhwc.shape(operation.outputs[0])[2] / self.rows)

    def blocks(self, operation: Operation) -> int:
        """Of lanes; a program is one of them for one part."""
        n, channels, _, ow = _nhwc.shape(operation.outputs[0])
        lanes = n * math.ceil(ow / self.columns) * channels // self.vector
        return math.ceil(lanes / (32 * self.warps))

    def taps(self, window: Window) -> int:
        """Input elements of one row and channel that a lane loads."""
        return (self.columns - 1) * window.strides[1] + window.kernel[1]

    def registers(self, window: Window) -> int:
        """Of a lane: sums of unfinished rows, weights, a row of taps, addresses; about."""
        rows = math.ceil(window.kernel[0] / window.strides[0])
        sums = rows * self.columns * self.vector
        weights = math.prod(window.kernel) * self.vector
        return 26 + sums + weights + self.taps(window) * self.vector // 2


class TritonDepthwiseWalk(Tactic):
    """One filter a channel; lanes walk down the rows with the sums of the unfinished output rows in
    registers, so that each input element is loaded about once."""

    name = "triton_depthwise_walk"

    def supports(self, operation: Operation, device: Device) -> Support:
        if operation.operator != Fused.CONV:
            return Support.no(f"it runs {Fused.CONV}, not {operation.operator}")
        problem = _triton.available(device)
        if not problem:
            problem = _nhwc.first(
                _nhwc.dtype_problem(operation.inputs[0], _nhwc.FLOATS, "X"),
                _nhwc.dtype_problem(operation.inputs[1], _nhwc.FLOATS, "W"),
                _nhwc.constant_problem(operation, (1, 2)),
                _depthwise.problem(operation, None),
                _problem(operation),
            )
        if not problem and not any(True for _ in _walks(operation, device)):
            problem = "there are too few pixels to walk over, or too many taps for the registers"
        return Support.no(problem) if problem else Support.yes()

    def configs(self, operation: Operation, device: Device) -> Sequence[Config]:
        predicted = {walk: _predict(operation, walk, device) for walk in _walks(operation, device)}
        found = sorted(predicted, key=lambda walk: predicted[walk])
        # What a lane does counts more than how many there are, and is predicted worse.
        shapes = {walk.shape: walk for walk in reversed(found)}
        tried = sorted(shapes.values(), key=found.index)[:_SHAPES]
        for best in tried[:_TWICE]:
            others = [w for w in found if w.shape == best.shape and w.warps != best.warps]
            close = [w for w in others if predicted[w] < _CLOSE * predicted[best]]
            tried += ([w for w in close if w.rows != best.rows] or others)[:1]
        pdl = _nhwc.pdl(device)
        return [{**walk.config(), "pdl": pdl} for walk in tried]

    def predict(self, operation: Operation, config: Config, device: Device) -> float:
        return _predict(operation, _Walk.read(config), device)

    def compile(self, operation: Operation, configs: Sequence[Config], device: Device) -> None:
        stand_ins = _nhwc.stand_ins([*[*operation.inputs, None][:3], operation.outputs[0]])
        kernels = [self.kernel(operation, config, stand_ins) for config in configs]
        _triton.compile_ahead(kernels, device)

    def pack(
        self, operation: Operation, config: Config, inputs: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        return _depthwise.pack(inputs)

    def bind(
        self,
        operation: Operation,
        config: Config,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[torch.Tensor],
        workspace: torch.Tensor | None,
        state: torch.Tensor | None,
    ) -> Launch:
        tensors = [*[*inputs, None][:3], outputs[0]]
        return _triton.launches([self.kernel(operation, config, tensors)])

    def kernel(
        self, operation: Operation, config: Config, tensors: Sequence[torch.Tensor | None]
    ) -> _triton.Kernel:
        """The launch of this configuration.

        Args:
            tensors: X, W and B as packed, Y.
        """
        from peregrine.compiler.kernels import depthwise_walk

        x, w, b, y = tensors
        walk = _Walk.read(config)
        pdl = bool(config["pdl"])
        sizes = _depthwise.sizes(operation)
        window = _depthwise.window_arguments(operation)
        strides = {
            **_nhwc.nhw("x", operation.inputs[0]),
            **_nhwc.nhw("y", operation.outputs[0]),
        }
        rows = {
            name: step // walk.vector for name, step in strides.items() if not name.endswith("w")
        }
        arguments: dict[str, Any] = {
            "x": x,
            "w": w,
            "b": y if b is None else b,
            "y": y,
            **sizes,
            **strides,
            **rows,
            "parts": walk.parts(operation),
            "rows_of_part": walk.rows,
            **{name: value for name, value in window.items() if "DILATION" not in name},
            "HAS_BIAS": b is not None,
            **_nhwc.activation_arguments(Activation.read(operation.attributes)),
            "ROUND_FIRST": _rounds_first(operation),
            "COLUMNS": walk.columns,
            "VECTOR": walk.vector,
            "LANES": 32 * walk.warps,
            "STAGES": _STAGES,
            "PDL": pdl,
        }
        grid = (walk.parts(operation) * walk.blocks(operation),)
        return _triton.Kernel(
            depthwise_walk.depthwise_walk_kernel, grid, arguments, walk.warps, _STAGES, pdl
        )


def _problem(operation: Operation) -> str:
    """Why lanes can't walk over it; empty where they can."""
    window = Window.read(operation.attributes)
    if _nhwc.optional(operation, 3) is not None:
        return "it adds nothing to what it computes"
    if window.dilations != (1, 1):
        return "its window is dilated"
    if window.kernel[0] < window.strides[0]:
        return "its windows leave out rows"
    if window.pads[0] >= window.kernel[0]:
        return "its padding is as high as its window"
    if _widest(operation) < 2:
        return "the channels, or the steps from row to row, are no multiples of 2"
    return ""


def _rounds_first(operation: Operation) -> bool:
    """Whether the activation may follow the rounding to float16: it picks the sum or a number that
    float16 has."""
    activation = Activation.read(operation.attributes)
    if activation.kind not in (ActivationKind.RELU, ActivationKind.CLIP):
        return False
    bounds = np.array([activation.alpha, activation.beta])
    with np.errstate(over="ignore"):
        exact = bool((bounds.astype(np.float16) == bounds).all())
    return exact and operation.outputs[0].dtype == "float16"


def _widest(operation: Operation) -> int:
    """The most channels that a lane can load and store at once, at most 16 bytes of them."""
    x, y = operation.inputs[0], operation.outputs[0]
    assert x is not None
    steps = [
        step
        for kind in (x, y)
        for size, step in zip(_nhwc.shape(kind), _nhwc.strides(kind), strict=True)
        if size > 1 and step != 1
    ]
    return math.gcd(_nhwc.shape(x)[1], 16 // max(x.itemsize, y.itemsize), *steps)


def _walks(operation: Operation, device: Device) -> Iterator[_Walk]:
    """Every way that makes sense, in no order; none where there are too few lanes."""
    window = Window.read(operation.attributes)
    _, _, oh, ow = _nhwc.shape(operation.outputs[0])
    widest = _widest(operation)
    # Loads of 4 bytes pay only where the weights of a large window leave no registers.
    small = math.prod(window.kernel) < 16 and widest % 4 == 0
    for columns in (1, 2, 3, 4, 5, 7):
        # No more columns than there are, and few that are computed in vain.
        if columns > ow or math.ceil(ow / columns) * columns > 1.25 * ow:
            continue
        for vector in (4, 8) if small else (2, 4, 8):
            one = _Walk(columns, vector, oh, 1)
            if widest % vector or one.registers(window) > _REGISTERS or columns * vector < 8:
                continue
            for parts in (1, 2, 4, 8, 16):
                rows = math.ceil(oh / parts)
                if rows < 3 and parts > 1:
                    continue
                for warps in (1, 4):
                    walk = _Walk(columns, vector, rows, warps)
                    resident = walk.blocks(operation) * walk.parts(operation) * warps
                    if resident >= 2 * device.multiprocessors:
                        yield walk


def _predict(operation: Operation, walk: _Walk, device: Device) -> float:
    window = Window.read(operation.attributes)
    x = operation.inputs[0]
    assert x is not None
    taps = walk.taps(window) * window.strides[0]
    outputs = walk.columns * walk.vector
    # Products; conversions; activations and stores; what a load needs; the loop.
    each = (math.prod(window.kernel) + 2.5) * outputs + taps * (walk.vector + 3) + 30
    steps = walk.rows + (window.kernel[0] - 1 - window.pads[0]) // window.strides[0]
    warps = walk.blocks(operation) * walk.parts(operation) * walk.warps
    buffer = taps * walk.vector * x.itemsize * 32 * (_STAGES - 1)
    resident = min(64, 2048 // walk.registers(window), max(1, _SHARED_MEMORY // buffer))
    waves = warps / (device.multiprocessors * resident)
    alone = math.ceil(waves) * (1e-6 + steps * 0.3e-6)
    # The fewer warps, the less they hide each other's latencies.
    computing = warps / device.multiprocessors * steps * each / _INSTRUCTIONS * (1 + 4 / resident)
    again = (window.kernel[0] - window.strides[0]) / (window.strides[0] * walk.rows)
    memory = _nhwc.moved(operation) / device.bandwidth * (1 + 0.1 * again)
    return _nhwc.START + max(math.hypot(computing, memory) * (1 + 0.02 / waves), alone)
