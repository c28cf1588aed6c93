"""The names of converted graphs: one taste of one precision each.

A backend's candidate names the graph it reads; `peregrine.conversion` makes it, once for all
backends that read it.
"""

from __future__ import annotations

import enum

from peregrine.types import Precision

REPAIRED = "+repaired"


class Graph(enum.StrEnum):
    """A way to write a model in lower precision. Inputs and outputs keep their dtypes."""

    FP16 = "fp16"
    """Typed float16."""
    BF16 = "bf16"
    """Typed bfloat16."""
    U8S8 = "u8s8"
    """Q/DQ, unsigned asymmetric activations, signed symmetric weights per channel: what x86's
    VNNI multiplies (unsigned by signed bytes). Signed activations measured no faster than fp32.
    Weights have 7 bits where the processor has no VNNI (`conversion.saturation`)."""
    S8S8 = "s8s8"
    """Q/DQ, signed symmetric activations, signed symmetric weights per channel: what TensorRT
    takes."""
    FP8 = "fp8"
    """Q/DQ in FP8 E4M3, activations per tensor, weights per channel, over an fp16 graph."""
    NNCF = "nncf"
    """OpenVINO's own quantiser, written as its IR; weights as of U8S8."""
    DYNAMIC = "dynamic"
    """Weights in int8, activations quantised as they come: recurrent networks, transformers."""

    @property
    def precision(self) -> Precision:
        return _PRECISIONS.get(self, Precision.INT8)

    @property
    def calibrated(self) -> bool:
        """Whether its ranges come from data."""
        return self in (Graph.U8S8, Graph.S8S8, Graph.FP8, Graph.NNCF)


_PRECISIONS = {
    Graph.FP16: Precision.FP16,
    Graph.BF16: Precision.BF16,
    Graph.FP8: Precision.FP8,
}


def base_graph(name: str) -> Graph:
    """`u8s8` of `u8s8`, `u8s8+repaired` and `u8s8+repaired2`. Raises ValueError for any other
    word."""
    return Graph(name.partition(REPAIRED)[0])
