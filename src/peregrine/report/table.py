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

from peregrine.report import figures, words
from peregrine.report.standings import Row, Standings, finals, standings
from peregrine.report.verdict import usage, verdict
from peregrine.report.words import plain
from peregrine.results import CandidateResult, Report, Status, Validation

_INDENT = 4
_GAP = 2
BADGE_STYLES = {
    "ok": "green",
    "disqualified": "yellow",
    "not measured": "yellow",
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
    if finals(report):
        _finals(report, console)
    if placed.out:
        _title("May not win", console)
        for result in placed.out:
            _explain(result, console)
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
    }
    for name, fact in facts.items():
        if fact:
            _line(console, Text(plain(fact)), label=f"{name:<11}")
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
    return figures.memory(result.memory.host_peak_mb if result.memory else None)


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
    note = f"speed: against {placed.baseline_name}" if placed.baseline else ""
    note += ", finalists' by the final; " if note and finals(report) else "; " if note else ""
    note += "error, unequal, top-1: outputs against the reference's; memory: the worker's peak"
    _line(console, Text(plain(note), "dim"), indent=_INDENT)


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


def _explain(result: CandidateResult, console: Console) -> None:
    state = words.badge(result)
    head = Text.assemble((plain(result.id), "bold"), (f"  {state}", BADGE_STYLES[state]))
    _line(console, head)
    _line(console, Text(plain(words.reason(result))), indent=_INDENT)
    if result.fix:
        _line(console, Text(plain(result.fix), "cyan"), indent=_INDENT, label="Fix: ")


def _verdict(report: Report, console: Console) -> None:
    found = verdict(report)
    console.print()
    _line(console, Text(plain(found.title), "bold green" if report.winner else "bold red"))
    for sentence in (found.why, found.margin, found.break_even):
        if sentence:
            _line(console, Text(plain(sentence)))
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
