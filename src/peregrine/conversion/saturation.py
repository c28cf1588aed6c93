"""Where x86 cannot sum the products of 8-bit numbers, and what graphs are made of there.

Without VNNI, x86 multiplies unsigned by signed bytes with `vpmaddubsw`, which adds each two of the
products in 16 bits and clips what does not fit: 2 * 255 * 127 does not, 2 * 255 * 64 does.
ONNX Runtime therefore advises 7-bit weights there, its `reduce_range`:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import platform
from collections.abc import Collection

from peregrine.model.graphs import Graph
from peregrine.processor import cpu_flags

NOTE = (
    "Weights in 7 bits instead of 8: this CPU has no VNNI instructions, and without them x86 adds "
    "products of 8-bit numbers in 16 bits, which are too few for full 8-bit weights."
)
"""Why a graph has coarser weights, for its report."""

_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_FOR_THE_CPU = (Graph.U8S8, Graph.DYNAMIC, Graph.NNCF)
"""Graphs of unsigned activations and signed weights that only a CPU runs. S8S8 is TensorRT's. nncf
by itself has 7 bits in the first layer alone; with them in all layers, on a CPU without VNNI and
calibrated on 40 photos, the trained EfficientNet-Lite0 was off by 0.23 of its norm instead of 0.32
(with 8 bits throughout 0.48), a compressed SqueezeNet by 0.075 instead of 0.061 (0.14)."""


def saturates(flags: Collection[str] | None = None, machine: str = "") -> bool:
    """Whether sums of products of 8-bit numbers are clipped to 16 bits on a processor.

    Args:
        flags: its vector extensions in Linux's spelling; None for this processor's. Where the
            system tells none, x86 counts as one without VNNI.
        machine: its architecture, as `platform.machine` says it; empty for this machine's.
    """
    found = cpu_flags() if flags is None else flags
    return (machine or platform.machine()).lower() in _X86 and _VNNI.isdisjoint(found)


def reduces_range(graph: Graph) -> bool:
    """Whether `graph` is made with 7-bit weights on this machine, which is to run it."""
    return graph in _FOR_THE_CPU and saturates()
