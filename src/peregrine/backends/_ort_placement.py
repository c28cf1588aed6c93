"""Proof of where nodes ran, from ONNX Runtime's own profile of one inference."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peregrine.backends._ort_providers import CPU
from peregrine.types import Placement

PROOF = "onnxruntime profile of one inference"
_KERNEL = "_kernel_time"
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_TYPES = {
    "float": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "uint8": "u8",
    "int8": "i8",
    "double": "f64",
}
# Nodes with weights, by the words in their operators' names: plain, fused (`FusedConv`), quantised
# (`QLinearConv`, `MatMulInteger`, `QGemm`, `DynamicQuantizeLSTM`).
_COMPUTES = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN|Attention")


class Kernel(NamedTuple):
    """A node that ran."""

    provider: str
    operator: str
    inputs: tuple[str, ...] = ()
    """ONNX Runtime's words for its inputs' types: `float`, `uint8`."""

    @property
    def arithmetic(self) -> str:
        """`f32`, `u8`, ... for a node that computes with weights; empty for any other.

        A quantised kernel has 8-bit inputs beside its scales, which are floats, and those that
        quantise their own activations have 8-bit weights.
        """
        if self.operator.startswith(self.provider) or not _COMPUTES.search(self.operator):
            return ""  # the former is a compiled subgraph: it does not tell
        found = [_TYPES[word] for word in self.inputs if word in _TYPES]
        return next((word for word in found if word in ("u8", "i8")), found[0] if found else "")


def read_profile(path: Path) -> list[Kernel]:
    """Every node that the profiled inference executed.

    A node inside a loop counts once, however often it ran.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text())
    ran = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            args = event["args"]
            key = (event["name"], args.get("node_index"))
            types = (word for shape in args.get("input_type_shape", ()) for word in shape)
            ran[key] = Kernel(args.get("provider", ""), args["op_name"], tuple(types))
    return list(ran.values())


def place(
    ran: Collection[Kernel],
    assigned: Mapping[str, int],
    asked: str,
    providers: Collection[str],
    device: str,
) -> Placement:
    """The placement of an inference whose nodes `ran`, for a session that asked for a provider.

    `assigned` is how many nodes of the graph each provider took. A provider that compiles
    executes a whole subgraph as one node; what counts is the nodes it stands for.
    """
    kernels = [(k.provider, k.operator) for k in ran if k.operator not in _COPIES]
    copies = len(ran) - len(kernels)
    nodes = Counter(provider for provider, _ in kernels)
    precisions = Counter(k.arithmetic for k in ran if k.arithmetic)
    details = []
    for provider in nodes:
        fused = sum(p == provider and op.startswith(provider) for p, op in kernels)
        if fused:
            details.append(f"{provider} compiled {assigned[provider]} nodes into {fused}.")
            nodes[provider] += assigned[provider] - fused
    fallen = Counter(op for provider, op in kernels if provider == CPU and asked != CPU)
    if fallen:
        kinds = ", ".join(f"{count} {op}" for op, count in fallen.most_common())
        details.append(f"{fallen.total()} of {nodes.total()} nodes ran on {CPU}: {kinds}.")
    missing = asked not in providers
    if missing:
        details.append(f"The session dropped {asked} and uses {', '.join(providers)}.")
    return Placement(
        device=device,
        nodes=dict(nodes),
        precisions=dict(precisions),
        copies=copies,
        fell_back=bool(fallen) or missing,
        proof=PROOF,
        detail=" ".join(details),
    )
