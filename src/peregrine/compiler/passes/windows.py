"""The geometry of convolutions and poolings, with every pad in numbers."""

from __future__ import annotations

import onnx_ir as ir

from peregrine.compiler.operators import Window
from peregrine.compiler.passes.rewriting import Shape, attributes_of, shape_of


def window_of(node: ir.Node, kernel: tuple[int, int]) -> Window | None:
    """Of a standard 2-D Conv or pooling; None where its pads follow from sizes that are not
    known, or where it is not two-dimensional."""
    attributes = attributes_of(node)
    strides = attributes.get("strides", (1, 1))
    dilations = attributes.get("dilations", (1, 1))
    if len(strides) != 2 or len(dilations) != 2:
        return None
    pads = attributes.get("pads", (0, 0, 0, 0))
    auto = attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if auto == "VALID":
        pads = (0, 0, 0, 0)
    elif auto != "NOTSET":
        shape = shape_of(node.inputs[0])
        if shape is None:
            return None
        pads = _same(shape, kernel, strides, dilations, upper=auto == "SAME_UPPER")
    if len(pads) != 4 or min(pads) < 0:
        return None
    top, left, bottom, right = pads
    return Window(
        kernel,
        (int(strides[0]), int(strides[1])),
        (int(top), int(left), int(bottom), int(right)),
        (int(dilations[0]), int(dilations[1])),
    )


def _same(
    shape: Shape,
    kernel: tuple[int, int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """Pads under which the output has ceil(size / stride) elements, the odd one at the end
    (SAME_UPPER) or at the start (SAME_LOWER)."""
    begins, ends = [], []
    for size, extent, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        total = max(0, (outputs - 1) * stride + dilation * (extent - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)
