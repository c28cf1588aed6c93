"""Put a run's table into the README, so that no figure there is typed by hand.

    python benchmarks/readme_table.py results/cpu/efficientnet_lite0.json

Replaces what stands between the `measured` markers. The picture is drawn from the same file.
"""

import argparse
from pathlib import Path

from peregrine.report import figures
from peregrine.report.png import write_png
from peregrine.report.standings import Row, standings
from peregrine.report.store import read_json
from peregrine.results import CandidateResult, Report

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_ROOT = Path(__file__).resolve().parents[1]


def top1(row: CandidateResult) -> str:
    """Photos whose class is the reference's, or the share on random inputs."""
    validation = row.validation
    if validation is None or validation.top1_agreement is None:
        return ""
    return f"{validation.top1_agreement:.1%}"


def measured(row: Row) -> str:
    result, latency = row.result, row.headline.latency_ms
    low, high = row.headline.ci95_ms
    error = result.validation.scaled_error if result.validation else float("nan")
    memory = f"{result.memory.host_peak_mb:.0f}" if result.memory else ""
    cells = [
        f"**{result.id}**" if row.rank == 1 else result.id,
        f"{figures.number(latency.p50)} ({figures.number(low)} to {figures.number(high)})",
        figures.number(latency.p99),
        f"{figures.number(row.best.throughput_per_s)} at {row.best.batch}",
        f"{row.speedup:.2f}x" if row.speedup else "",
        memory,
        figures.number(result.build_s or 0.0),
        f"{error:.1e}",
        top1(result),
    ]
    return f"| {' | '.join(cells)} |"


def block(report: Report, picture: str) -> str:
    placed = standings(report)
    machine = report.machine
    judged = "; ".join(words for words in report.reference.inputs if "image" in words)
    lines = [
        f"`{report.command or report.model.source}` on {machine.cpu}, {machine.physical_cores} "
        f"cores ({', '.join(machine.cpu_flags)}), against {report.reference.workflow}"
        + (f" on {judged} and random inputs" if judged else "")
        + f". Weights: {report.model.weights}.",
        "",
        "| candidate | p50 ms (95 %) | p99 ms | items/s at batch | speed | MiB | build s "
        "| scaled error | same top-1 |",
        "|---|---|---|---|---|---|---|---|---|",
        *[measured(row) for row in placed.rows],
        *[
            f"| {row.id} | {row.status}: {' '.join(row.reason.split())} | | | | | | | |"
            for row in placed.out
            if not row.measurements
        ],
        "",
        f"{report.winner.reason} Speed is against {placed.baseline_name}."
        if report.winner
        else "No winner.",
        "",
        f"![Latency with intervals, throughput against batch]({picture})",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    report_file = parser.parse_args().report
    report = read_json(report_file)
    picture = _ROOT / "docs" / f"{report_file.stem}.png"
    picture.parent.mkdir(exist_ok=True)
    write_png(report, picture)
    readme = _ROOT / "README.md"
    before, _, rest = readme.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    text = block(report, str(picture.relative_to(_ROOT)))
    readme.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


if __name__ == "__main__":
    main()
