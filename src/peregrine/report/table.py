"""The report in a terminal.

Candidate ids are long and terminals are not, so a row is its id on a line of its own and its
figures, aligned, on as many lines below as the width asks for. Nothing is ever cut off, and
nothing a row says is read as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from peregrine.objective import memory_mb, on_gpu
from peregrine.report import figures, words
from peregrine.report.conversions import MadeGraph, made_graphs
from peregrine.report.ladder import Ladder, judgement, ladder, references
from peregrine.report.ladder import columns as ladder_columns
from peregrine.report.standings import Row, Standings, finals, standings
from peregrine.report.verdict import usage, verdict
from peregrine.report.words import plain
from peregrine.results import CandidateResult, Report, Status, Validation

_INDENT = 4
_GAP = 2
_ALARM = "bold white on red"
BADGE_STYLES = {
    "ok": "green",
    "disqualified": "yellow",
    "not measured": "yellow",
    Status.UNDECIDED: "bold magenta",
    Status.INVALID: "bold red",
    Status.FAILED: "red",
    Status.TIMEOUT: "red",
    Status.OOM: "red",
    Status.UNAVAILABLE: "yellow",
    Status.UNSUPPORTED: "yellow",
}


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cells: tuple[str, ...]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.title, *self.cells)))

    def show(self, text: str) -> str:
        space = " " * (self.width - cell_len(text))
        return text + space if self.left else space + text


def render(report: Report, console: Console) -> None:
    """Print what a person needs: who won and by how much, every row, and what to do next."""
    placed = standings(report)
    _header(report, placed, console)
    if placed.rows:
        _rows(report, placed, console)
    found = ladder(report, placed)
    if found is not None:
        _ladder(found, placed.goal, console)
    conversions = made_graphs(report)
    if conversions:
        _conversions(conversions, console)
    if finals(report):
        _finals(report, console)
    if report.concurrency:
        _side_by_side(report, console)
    if placed.out:
        _title("May not win", console)
        for alike in placed.out_alike:
            _explain(alike, console)
    if report.warnings:
        _title("To know about", console)
        for warning in report.warnings:
            _line(console, Text(plain(warning), "yellow"), indent=_INDENT)
    _verdict(report, console)


def _header(report: Report, placed: Standings, console: Console) -> None:
    console.print()
    _line(
        console,
        Text.assemble(
            (plain(report.model.name) or "model", "bold"), "  ", plain(words.model(report.model))
        ),
    )
    facts = {
        "weights": report.model.weights,
        "machine": words.machine(report.machine),
        "objective": words.objective(report, placed.batch, placed.boundary),
        "reference": report.reference.workflow,
        "data": report.reference.split,
    }
    for name, fact in facts.items():
        if fact:
            _line(console, Text(plain(fact)), label=f"{name:<11}")
    _random(report, console)
    if not report.complete:
        _line(console, Text("This race was interrupted: not every row is here.", "bold yellow"))


def _columns(report: Report, placed: Standings) -> list[_Column]:
    rows = placed.rows
    judged = [row.result.validation for row in rows]

    def column(title: str, cells: Sequence[str], *, left: bool = False) -> _Column:
        return _Column(title, tuple(cells), left)

    heads = [row.headline for row in rows]
    other_batch = any(m.batch != placed.batch for m in heads)
    columns = [
        column("p50 ms", [figures.number(m.latency_ms.p50) for m in heads]),
        column("95% interval", [figures.interval(*m.ci95_ms) for m in heads], left=True),
        column("p99 ms", [figures.number(m.latency_ms.p99) for m in heads]),
        column("items/s @batch", [_throughput(row) for row in rows]),
        column("speed", [figures.times(row.speedup) for row in rows]),
        column("memory", [_peak(row.result) for row in rows]),
        column("build", [figures.seconds(row.result.build_s) for row in rows]),
        column("error", [_judged(v, "scaled_error") for v in judged]),
        column("unequal", [_judged(v, "non_equal_percent") for v in judged]),
        column("top-1", [figures.share(v.top1_agreement if v else None) for v in judged]),
    ]
    if other_batch:
        columns.insert(0, column("batch", [str(m.batch) for m in heads]))
    return columns


def _throughput(row: Row) -> str:
    return f"{figures.number(row.best.throughput_per_s)} @{row.best.batch}"


def _peak(result: CandidateResult) -> str:
    return figures.memory(memory_mb(result))


def _judged(validation: Validation | None, field: str) -> str:
    if validation is None:
        return figures.MISSING
    value: float = getattr(validation, field)
    return figures.percent(value) if field.endswith("percent") else figures.error(value)


def _rows(report: Report, placed: Standings, console: Console) -> None:
    lines = _flow(_columns(report, placed), console.width - _INDENT)
    console.print()
    _line(console, Text("candidate  state  where its nodes ran", "dim"), label="#   ")
    for line in lines:
        _line(console, Text(_joined([c.show(c.title) for c in line]), "dim"), indent=_INDENT)
    for number, row in enumerate(placed.rows):
        state = words.badge(row.result)
        first = report.winner is not None and row.result.id == report.winner.id
        head = Text.assemble(
            (plain(row.result.id), "bold green" if first else "bold" if row.rank else "dim"),
            ("  " + ("winner" if first else "tied" if row.tied else state), BADGE_STYLES[state]),
            ("  " + plain(words.placement(row.result.placement)), "dim"),
        )
        _line(console, head, label=f"{words.place(row, report):<{_INDENT}}")
        for line in lines:
            text = _joined([c.show(c.cells[number]) for c in line])
            _line(console, Text(text, "" if row.rank else "dim"), indent=_INDENT)
        if said := words.engine(row.result):
            _line(console, Text(plain(said), "dim"), indent=_INDENT)
        _asides(row.result, console)
    note = f"speed: against {placed.baseline_name}" if placed.baseline else ""
    note += ", finalists' by the final; " if note and finals(report) else "; " if note else ""
    note += "error, unequal, top-1: outputs against the reference's; memory: the worker's peak"
    note += " on its GPU" if any(on_gpu(row.result) for row in placed.rows) else ""
    _line(console, Text(plain(note), "dim"), indent=_INDENT)


def _random(report: Report, console: Console) -> None:
    """Loud, and twice: above the figures and below them."""
    said = words.randomly_calibrated(report)
    if said:
        _line(console, Text(plain(said), _ALARM))


def _asides(result: CandidateResult, console: Console) -> None:
    for said in words.asides(result):
        style = _ALARM if said == words.RANDOM else "yellow"
        _line(console, Text(plain(said), style), indent=_INDENT)


def _ladder(found: Ladder, goal: str, console: Console) -> None:
    """Workflow by workflow, a precision a line, aligned over all of them. Workflows that ran in
    fp32 alone stand in the table above."""
    lowered = [workflow for workflow in found.workflows if workflow.lowered]
    rungs = [rung for workflow in lowered for rung in workflow.rungs]
    if not rungs:
        return
    _title("Precision ladder", console)
    width = max(cell_len(rung.name) for rung in rungs) + _GAP
    shown = ladder_columns(found, rungs, goal, brief=True)
    columns = [_Column(plain(c.title), c.cells, c.left) for c in shown]
    indent = _INDENT + width
    lines = _flow(columns, console.width - indent)
    for line in lines:
        _line(console, Text(_joined([c.show(c.title) for c in line]), "dim"), indent=indent)
    number = 0
    for workflow in lowered:
        _line(console, Text(plain(workflow.name), "bold"))
        for rung in workflow.rungs:
            state, said = words.badge(rung.result), judgement(rung.result)
            for place, line in enumerate(lines):
                text = Text(_joined([c.show(c.cells[number]) for c in line]))
                text.highlight_words([said.partition(":")[0]], BADGE_STYLES[state])
                label = "" if place else f"{plain(rung.name):<{width}}"
                _line(console, text, indent=_INDENT if label else indent, label=label)
            if ":" in said:
                _line(console, Text(plain(said), BADGE_STYLES[state]), indent=indent)
            made = rung.result.conversion
            if made is not None and made.random_calibration:
                _line(console, Text(words.RANDOM, _ALARM), indent=indent)
            number += 1
    notes = [
        "own, best, ORT: how many times as fast as the workflow's own fp32, the race's fastest "
        "fp32 and ONNX Runtime's fp32 default on the CPU" if found.default else
        "own, best: how many times as fast as the workflow's own fp32 and the race's fastest fp32",
        f"drop: what is lost{f' in {found.unit}' if found.unit else ''}, with its 95% interval"
        if found.guarded else "agrees, error: with the reference's outputs",
        references(found),
    ]  # fmt: skip
    _line(console, Text(plain("; ".join(filter(None, notes))), "dim"), indent=_INDENT)


def _conversions(found: Sequence[MadeGraph], console: Console) -> None:
    """How each graph came about, in a few lines; the page has the rest."""
    _title("Converted graphs", console)
    for graph in found:
        _line(console, Text(plain(graph.summary)), label=f"{plain(graph.made.graph)}: ",
              indent=_INDENT)  # fmt: skip
        if graph.made.random_calibration:
            _line(console, Text(words.RANDOM, _ALARM), indent=2 * _INDENT)
        for layer in graph.made.kept:
            text = f"kept in fp32: {layer.node} ({layer.operator}): {layer.reason}"
            _line(console, Text(plain(text)), indent=2 * _INDENT)


def _flow(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Columns broken into lines that fit `width`; a column wider than that has its own."""
    lines: list[list[_Column]] = [[]]
    used = 0
    for column in columns:
        if lines[-1] and used + _GAP + column.width > width:
            lines.append([])
            used = 0
        used += column.width + (_GAP if lines[-1] else 0)
        lines[-1].append(column)
    return lines


def _joined(cells: Sequence[str]) -> str:
    return (" " * _GAP).join(cells).rstrip()


def _finals(report: Report, console: Console) -> None:
    rows = finals(report)
    rounds = len({r.round for r in report.final_rounds})
    _title(f"Final, {figures.count(rounds, 'interleaved round')}", console)
    columns = [
        _Column("p50 ms", tuple(figures.number(f.p50_ms) for f in rows)),
        _Column("time", tuple(f"{f.ratio:.3f}{figures.TIMES}" for f in rows)),
        _Column(
            "95% interval", tuple(f"{f.ci95[0]:.3f}{figures.DASH}{f.ci95[1]:.3f}" for f in rows)
        ),
    ]
    _line(console, Text(_joined([c.show(c.title) for c in columns]), "dim"), indent=_INDENT)
    for number, final in enumerate(rows):
        shown = _joined([c.show(c.cells[number]) for c in columns]) + "  "
        text = Text.assemble(
            (plain(final.candidate), "bold"),
            (f"  {words.level(final)}" if final.tie else "", "yellow"),
        )
        _line(console, text, indent=_INDENT, label=shown)


def _side_by_side(report: Report, console: Console) -> None:
    """Candidate by candidate, a number of sessions a line."""
    _title("Side by side", console)
    ran = [c for c in report.concurrency if c.latency_ms is not None]
    columns = [
        _Column("sessions", tuple(f"{c.sessions}" for c in ran)),
        _Column("items/s", tuple(figures.number(c.throughput_per_s) for c in ran)),
        _Column("of one's", tuple(figures.times(words.scaling(report, c)) for c in ran)),
        _Column("p50 ms", tuple(figures.number(c.latency_ms.p50) for c in ran if c.latency_ms)),
        _Column("p99 ms", tuple(figures.number(c.latency_ms.p99) for c in ran if c.latency_ms)),
    ]
    if ran:
        _line(console, Text(_joined([c.show(c.title) for c in columns]), "dim"), indent=_INDENT)
    number, last = 0, ""
    for found in report.concurrency:
        if found.candidate != last:
            last = found.candidate
            _line(console, Text(plain(last), "bold"))
        if found.latency_ms is None:
            why = f"{figures.count(found.sessions, 'session')}: {found.error}"
            _line(console, Text(plain(why), "yellow"), indent=_INDENT)
            continue
        _line(console, Text(_joined([c.show(c.cells[number]) for c in columns])), indent=_INDENT)
        number += 1
    _line(console, Text(words.sharing(report), "dim"), indent=_INDENT)


def _explain(alike: Sequence[CandidateResult], console: Console) -> None:
    """Candidates that may not win for one reason, and the reason."""
    for result in alike:
        state = words.badge(result)
        head = Text.assemble((plain(result.id), "bold"), (f"  {state}", BADGE_STYLES[state]))
        _line(console, head)
    first = alike[0]
    _line(console, Text(plain(words.reason(first))), indent=_INDENT)
    if not first.measurements:  # else they stand at its figures
        _asides(first, console)
    if first.fix:
        _line(console, Text(plain(first.fix), "cyan"), indent=_INDENT, label="Fix: ")


def _verdict(report: Report, console: Console) -> None:
    found = verdict(report)
    console.print()
    _line(console, Text(plain(found.title), "bold green" if report.winner else "bold red"))
    for sentence in (found.why, found.margin, found.break_even, found.undecided):
        if sentence:
            _line(console, Text(plain(sentence)))
    _random(report, console)
    use = usage(report)
    if use is not None:
        _title("Use it", console)
        for line in (use.shell, *use.python):
            if line:
                _copyable(line, console)
    if report.run_dir:
        _title("Everything else", console)
        _copyable(str(Path(words.shown(report.run_dir)) / "report.html"), console)
    console.print()


def _copyable(line: str, console: Console) -> None:
    """A line that only the terminal wraps, so that it is copied whole."""
    text = Text(" " * _INDENT + words.plain(line), "cyan")
    console.print(text, soft_wrap=True, highlight=False)


def _title(text: str, console: Console) -> None:
    console.print()
    _line(console, Text(text, "bold underline"))


def _line(console: Console, text: Text, *, indent: int = 0, label: str = "") -> None:
    """Print `text` wrapped under its own beginning, after an indent and a label."""
    hang = " " * (indent + cell_len(label))
    lead = Text.assemble(" " * indent, (label, "dim"))
    width = max(20, console.width - cell_len(hang))
    for number, piece in enumerate(text.wrap(console, width, overflow="fold")):
        piece.rstrip()
        whole = Text.assemble(hang if number else lead, piece)
        console.print(whole, soft_wrap=True, highlight=False)
