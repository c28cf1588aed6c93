"""Put a run's table into the README, so that no figure there is typed by hand.

    python benchmarks/readme_table.py results/cpu/efficientnet_lite0.json
    python benchmarks/readme_table.py --block gpu results/h200/resnet50_batch1_256.json
    python benchmarks/readme_table.py --ladder results/cpu/efficientnet_lite0_ladder.json

Replaces what stands between the `measured` markers, between those of `--block`, or between the
`ladder` ones. The picture is drawn from the same file. With --print nothing is replaced.
"""

import argparse
import re
from pathlib import Path

from peregrine.objective import memory_mb, on_gpu
from peregrine.report import figures, words
from peregrine.report import ladder as ladders
from peregrine.report.ladder import Rung
from peregrine.report.png import write_ladder_png, write_png
from peregrine.report.standings import Row, standings
from peregrine.report.store import read_json
from peregrine.results import CandidateResult, Report

_ROOT = Path(__file__).resolve().parents[1]


def top1(row: CandidateResult) -> str:
    """Photos whose class is the reference's, or the share on random inputs."""
    validation = row.validation
    if validation is None or validation.top1_agreement is None:
        return ""
    return f"{validation.top1_agreement:.1%}"


def shortened(reason: str) -> str:
    """The first sentence, without what it says in brackets; the report has all of it."""
    plain = re.sub(r" \([^)]*\)", "", " ".join(reason.split()))
    return re.split(r"(?<=[^.\d])\. |: ", plain)[0].removesuffix(".")


def measured(row: Row) -> str:
    result, latency = row.result, row.headline.latency_ms
    low, high = row.headline.ci95_ms
    error = result.validation.scaled_error if result.validation else float("nan")
    taken = memory_mb(result)
    memory = f"{taken:.0f}" if taken is not None else ""
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
    where = f"{machine.cpu}, {machine.physical_cores} cores ({', '.join(machine.cpu_flags)})"
    if any(on_gpu(row.result) for row in placed.rows):
        where = machine.gpus[0]
    lines = [
        f"`{report.command or report.model.source}` on {where}, against {report.reference.workflow}"
        + (f" on {judged} and random inputs" if judged else "")
        + f". Weights: {report.model.weights}.",
        "",
        "| candidate | p50 ms (95 %) | p99 ms | items/s at batch | speed | MiB | build s "
        "| scaled error | same top-1 |",
        "|---|---|---|---|---|---|---|---|---|",
        *[measured(row) for row in placed.rows],
        *[
            f"| {row.id} | {row.status}: {shortened(row.reason)} | | | | | | | |"
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


def rung_line(rung: Rung, goal: str) -> str:
    """One precision of a workflow as a row of the ladder."""
    result = rung.result
    said = [ladders.judgement(result)]
    if result.disqualified or rung.row is None:
        said.append(words.reason(result))
    said += words.asides(result)
    cells = [
        result.id.replace("|", "\\|"),
        ladders.speed(rung, goal),
        figures.times(rung.over_own),
        figures.times(rung.over_best),
        figures.times(rung.over_default),
        ladders.accuracy(rung.guard),
        ladders.drop(rung.guard),
        figures.error(result.validation.scaled_error if result.validation else None),
        figures.memory(result.artifact_mb or None),
        " ".join("; ".join(said).split()).replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |"


def ladder_block(report: Report, picture: str) -> str:
    """Speed and accuracy of every precision, workflow by workflow. Empty for a race of one."""
    placed = standings(report)
    found = ladders.ladder(report, placed)
    if found is None:
        return ""
    speed = "items/s" if placed.goal == "throughput" else "p50 ms"
    unit = f", {found.unit}" if found.unit else ""
    measure = found.measure or "accuracy"
    random = words.randomly_calibrated(report)
    at = words.objective(report, placed.batch, placed.boundary)
    lines = [
        f"`{report.command or report.model.source}` on {report.machine.cpu}, "
        f"{report.machine.physical_cores} cores ({', '.join(report.machine.cpu_flags)}), by {at}. "
        + report.reference.split,
        "",
        f"| candidate | {speed} | own fp32 | best fp32 | ORT fp32 "
        f"| {measure}, reference \N{RIGHTWARDS ARROW} row | drop{unit} (95 %) | scaled error "
        "| size | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *[rung_line(rung, placed.goal) for rung in found.rungs],
        "",
        "How many times as fast: as the workflow's own fp32 row, as the fastest fp32 row, as ONNX "
        "Runtime's fp32 default on the CPU.",
        *(["", f"**{random}**"] if random else []),
        *(["", f"![Accuracy lost against speed gained]({picture})"] if picture else []),
    ]
    return "\n".join(lines)


def replaced(text: str, name: str, block: str) -> str:
    """`text` with what stands between the markers of `name` replaced by `block`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"README.md has no `{begin}` with an `{end}` after it.")
    return f"{before}{begin}\n{block}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--block", default="measured", help="the markers of a table")
    parser.add_argument("--ladder", action="store_true", help="the precision ladder instead")
    parser.add_argument("--print", action="store_true", help="print it and change no file")
    arguments = parser.parse_args()
    report = read_json(arguments.report)
    stem, write = arguments.report.stem, not arguments.print
    docs = _ROOT / "docs"
    if arguments.ladder:
        name, picture = "ladder", docs / f"{stem}-ladder.png"
        drawn = not write or write_ladder_png(report, picture)
        text = ladder_block(report, f"docs/{picture.name}" if drawn else "")
        if not text:
            raise SystemExit(f"{arguments.report} is of a race of one precision.")
    else:
        name, picture = arguments.block, docs / f"{stem}.png"
        text = block(report, f"docs/{picture.name}")
        if write:
            write_png(report, picture)
    if write:
        readme = _ROOT / "README.md"
        readme.write_text(replaced(readme.read_text(), name, text))
    else:
        print(text)


if __name__ == "__main__":
    main()
