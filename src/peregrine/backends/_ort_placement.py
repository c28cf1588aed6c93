"""Proof of where nodes ran, from ONNX Runtime's own profile of one inference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from peregrine.backends._ort_providers import CPU
from peregrine.types import Placement

PROOF = "onnxruntime profile of one inference"
_KERNEL = "_kernel_time"
_COPIES = ("MemcpyToHost", "MemcpyFromHost")


def read_profile(path: Path) -> list[tuple[str, str]]:
    """(provider, operator) of every node that the profiled inference executed.

    A node inside a loop counts once, however often it ran.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text())
    ran = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            args = event["args"]
            key = (event["name"], args.get("node_index"))
            ran[key] = (args.get("provider", ""), args["op_name"])
    return list(ran.values())


def place(
    ran: Collection[tuple[str, str]],
    assigned: Mapping[str, int],
    asked: str,
    providers: Collection[str],
    device: str,
) -> Placement:
    """The placement of an inference whose nodes `ran`, for a session that asked for a provider.

    `assigned` is how many nodes of the graph each provider took. A provider that compiles
    executes a whole subgraph as one node; what counts is the nodes it stands for.
    """
    kernels = [(provider, op) for provider, op in ran if op not in _COPIES]
    copies = sum(op in _COPIES for _, op in ran)
    nodes = Counter(provider for provider, _ in kernels)
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
        copies=copies,
        fell_back=bool(fallen) or missing,
        proof=PROOF,
        detail=" ".join(details),
    )
