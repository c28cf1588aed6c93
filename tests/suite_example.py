"""A whole study of the paper's size, put together without running anything."""

from __future__ import annotations

from peregrine.results import MachineRecord, SweepEnd
from peregrine.suite.ask import Ask
from peregrine.suite.published import paper
from peregrine.suite.study import Entry, Point, Study
from peregrine.types import Precision

BATCHES = tuple(2**i for i in range(9))
_SPEED = {"W0": 1.0, "W1": 1.4, "W2": 2.0, "W3": 1.8}
_LARGEST = {"W0": 256, "W1": 64, "W2": 256, "W3": 128}


def study(*precisions: Precision) -> Study:
    networks, precisions = paper().networks, precisions or (Precision.FP32,)
    entries = [
        _entry(network, workflow, number, precision)
        for precision in precisions
        for number, network in enumerate(networks)
        for workflow in _SPEED
    ]
    machine = MachineRecord(
        cpu="Example CPU", physical_cores=16, logical_cores=32, memory_mb=131072.0, os="Linux",
        python="CPython 3.12", gpus=("Example GPU (capability 9.0, 4096 MiB)",),
        load_average=0.1, cpu_flags=("avx2",),
    )  # fmt: skip
    ask = Ask("paper", networks, ("cuda:0",), precisions)
    return Study(
        "paper", networks, tuple(_SPEED), precisions, ("cuda:0",), BATCHES, (machine,),
        {"torch": "2.11"}, tuple(entries), (ask,),
    )  # fmt: skip


def _entry(network: str, workflow: str, number: int, precision: Precision) -> Entry:
    if (network, workflow) == ("resnet152", "W1"):
        return Entry(
            network, precision, "cuda:0", workflow, status="oom",
            reason="The engine does not fit.", fix="Lower workspace_mb.",
        )  # fmt: skip
    points = []
    for batch in (b for b in BATCHES if b <= _LARGEST[workflow]):
        ms = (number + 1) * (0.5 + 0.05 * batch) / _SPEED[workflow]
        points.append(
            Point(batch, ms, (ms * 0.98, ms * 1.03), ms * 1.01, ms * 1.2, 50, 1e3 * batch / ms,
                  500.0 + 8 * batch, ms * 1.1)
        )  # fmt: skip
    last = _LARGEST[workflow]
    ended, by = "the last batch asked for, 256", SweepEnd.LAST
    if last < 256:
        ended, by = f"after batch {last} it was full", SweepEnd.MEMORY
    base = tuple(0.55 * (number + 1) * (1 + 0.01 * n) for n in range(5))
    own = tuple(ms / _SPEED[workflow] for ms in base)
    return Entry(
        network, precision, "cuda:0", workflow, f"row of {workflow}", "ok",
        points=tuple(points), ended=ended, ended_by=by,
        non_equal_percent=0.6, non_equal_percent_1e3=0.0004,
        final=() if workflow == "W0" else (base, own),
    )  # fmt: skip
