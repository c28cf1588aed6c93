"""INT8 on a CPU: Peregrine's rows against what an engineer writes by hand, in the same rounds.

Each network and batch is one race in which `peers/by_hand.py` takes part as a backend: its rows
and Peregrine's are validated alike and measured in the same interleaved final, so that their
ratios are of times moments apart. The networks have random weights, so they are calibrated on
random numbers, which says nothing about accuracy and all about speed.

    python benchmarks/int8_cpu.py --out results/cpu/int8        # about 15 minutes on 2 cores

Writes each race's report as the program made it, unless it is there already, and prints the
table from those alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from peregrine.ratios import geometric_mean, paired_ratio
from peregrine.report.store import read_json
from peregrine.results import Report

PEERS = Path(__file__).parent / "peers"
NETWORKS, BATCHES = ("resnet50", "mobilenet_v2"), (1, 16)
WANTED = 0.98
BASELINE = "onnxruntime[CPUExecutionProvider] fp32"


def race(network: str, batch: int, out: Path, rounds: int) -> Report:
    """One race, in a process of its own; keeps its report.json."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "peregrine", "bench", network, "--batch", str(batch)]
        command += ["--precision", "fp32,bf16,int8", "--calibration", "random", "--out", str(run)]
        command += ["--rounds", str(rounds), "--repair-budget", "0", "--no-cache"]
        # A row's own trial only qualifies it for the final, which decides.
        command += ["--runs", str(max(10, 50 // batch)), "--skip", "*spinning*"]
        command += ["--skip", "*threads=1*", "--skip", "*OpenVINOExecutionProvider*"]
        for name in ("onnxruntime", "openvino", "by_hand"):
            command += ["--backend", name]
        path = os.pathsep.join(filter(None, (str(PEERS), os.environ.get("PYTHONPATH"))))
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "report.json", out)
    return read_json(out)


def times(report: Report) -> dict[str, dict[int, float]]:
    """Row -> fresh process of the final -> ms per item, the geometric mean of its rounds."""
    rounds: dict[str, dict[int, list[float]]] = {}
    for r in report.final_rounds:
        samples = sorted(r.samples_ms)
        median = samples[len(samples) // 2] / r.batch
        rounds.setdefault(r.candidate, {}).setdefault(r.process, []).append(median)
    return {
        id: {process: geometric_mean(found) for process, found in by_process.items()}
        for id, by_process in rounds.items()
    }


def fastest(found: dict[str, dict[int, float]], ids: Iterable[str]) -> str:
    """The row of the smallest time over the processes that all of them have."""
    rows = [id for id in ids if id in found]
    common = set.intersection(*(set(found[id]) for id in rows))
    return min(rows, key=lambda id: geometric_mean([found[id][p] for p in sorted(common)]))


def ratio(found: dict[str, dict[int, float]], slow: str, fast: str) -> tuple[float, float, float]:
    """Time of `slow` over `fast`, with its 95% interval, over the processes of both."""
    common = sorted(set(found[slow]) & set(found[fast]))
    if len(common) < 2:  # one of them left after the first rounds
        mean = found[slow][common[0]] / found[fast][common[0]]
        return mean, mean, mean
    r = paired_ratio([found[slow][p] for p in common], [found[fast][p] for p in common])
    return r.mean, r.low, r.high


def line(network: str, batch: int, report: Report) -> dict[str, object]:
    """The figures of one race."""
    found = times(report)
    valid = {c.id for c in report.candidates if c.can_win}
    hand = fastest(found, (id for id in valid if id.startswith("by_hand")))
    ours = fastest(
        found,
        (c.id for c in report.candidates if c.can_win and c.backend != "by_hand" and c.graph),
    )
    own = ratio(found, BASELINE, ours)
    against = ratio(found, hand, ours)
    return {
        "network": network,
        "batch": batch,
        "ours": ours,
        "by_hand": hand,
        "ours_over_onnxruntime_fp32": own,
        "by_hand_over_onnxruntime_fp32": ratio(found, BASELINE, hand),
        "ours_over_by_hand": against,
        "reached": against[0] >= WANTED,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the reports")
    parser.add_argument("--rounds", type=int, default=17)
    arguments = parser.parse_args()
    lines = []
    for network in NETWORKS:
        for batch in BATCHES:
            path = arguments.out / f"{network}_batch{batch}.json"
            there = path.is_file()  # an interrupted run goes on with the next race
            report = read_json(path) if there else race(network, batch, path, arguments.rounds)
            lines.append(line(network, batch, report))
    for found in lines:
        print(json.dumps(found))
    return 0 if all(found["reached"] for found in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
