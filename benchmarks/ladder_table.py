"""One Markdown table of several races: a network a line, a workflow and precision a column.

    python benchmarks/ladder_table.py results/h200/ladder/*.json

Figures are median milliseconds at the device boundary and the host boundary, of each row's own
trial; a row that is not valid says its status. From the reports alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peregrine.report.store import read_json
from peregrine.results import Boundary, CandidateResult, Report, Status

COLUMNS = {
    "TensorRT-RTX tf32": "tensorrt tf32",
    "fp16": "tensorrt fp16",
    "bf16": "tensorrt bf16",
    "FP8": "tensorrt fp8",
    "ONNX Runtime CUDA fp32": "onnxruntime[CUDAExecutionProvider] fp32",
    "tf32, NHWC, CUDA graph": "onnxruntime[CUDAExecutionProvider] tf32 cuda_graph prefer_nhwc",
    "fp16, NHWC, CUDA graph": "onnxruntime[CUDAExecutionProvider] fp16 cuda_graph prefer_nhwc",
    "ONNX Runtime TensorRT-RTX fp16": "onnxruntime[nv_tensorrt_rtx] fp16",
}


def cell(report: Report, id: str) -> str:
    """`device / host` of a row, of its repaired one where it failed, or why there is none."""
    rows = [c for c in report.candidates if c.id == id or c.id.startswith(f"{id} fp")]
    good = [c for c in rows if c.status is Status.OK]
    if not good:
        return str(rows[0].status) if rows else ""
    row = good[-1]
    return f"{figures(row)}{' repaired' if row.repair else ''}"


def figures(row: CandidateResult) -> str:
    batch = row.measurements[0].batch
    found = [row.measurement(batch, b) for b in (Boundary.DEVICE, Boundary.HOST)]
    return " / ".join(f"{m.latency_ms.p50:.3f}" for m in found if m is not None)


def main(paths: list[str]) -> None:
    print("| network | " + " | ".join(COLUMNS) + " | winner |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    for path in paths:
        report = read_json(Path(path))
        cells = [cell(report, id) for id in COLUMNS.values()]
        winner = report.winner.id if report.winner else "none"
        print(f"| {report.model.name} | " + " | ".join(cells) + f" | {winner} |")


if __name__ == "__main__":
    main(sys.argv[1:])
