"""The outcome in sentences, the same in every rendering."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass

from peregrine.report import figures
from peregrine.report.standings import standings
from peregrine.report.words import of_items, shown
from peregrine.results import Comparison, Report, Status, Winner


@dataclass(frozen=True, slots=True)
class Verdict:
    title: str
    """`openvino[latency] fp32 wins`, `A tie: ...`, `No winner`."""
    margin: str
    """By how much, with its interval; empty without a winner."""
    why: str
    """Why this one, or why none."""
    break_even: str
    undecided: str = ""
    """A row that looked faster, and may not win because its accuracy is undecided."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How to go on with the winner."""

    shell: str
    """Makes the bundle; empty where the run directory is not known."""
    python: tuple[str, str]


def verdict(report: Report) -> Verdict:
    winner = report.winner
    if winner is None:
        return Verdict("No winner", "", _why_none(report), "")
    title = f"A tie, taken by {winner.id}" if winner.tie_with else f"{winner.id} wins"
    return Verdict(
        title,
        _margin(report, winner),
        winner.reason,
        _break_even(report, winner),
        _undecided(report, winner),
    )


def usage(report: Report) -> Usage | None:
    """None without a winner."""
    if report.winner is None:
        return None
    bundle = f"{report.model.name or 'model'}.bundle"
    words = ["peregrine", "build", "--from", shown(report.run_dir), "--out", bundle]
    feeds = ", ".join(
        f"{_quoted(spec.name)}: {_variable(spec.name)}" for spec in report.model.inputs
    )
    return Usage(
        shlex.join(words) if report.run_dir else "",
        (
            f"session = peregrine.load({_quoted(bundle)})",
            f"outputs = session.run({{{feeds}}})",
        ),
    )


def _why_none(report: Report) -> str:
    if not report.complete:
        return (
            "The race was interrupted before its final. Go on with it: peregrine bench --resume "
            f"{shlex.quote(shown(report.run_dir) or 'RUN_DIR')}"
        )
    if not report.candidates:
        return "There was no candidate to race. See what is missing: peregrine doctor"
    counts = Counter(
        "disqualified" if c.disqualified else "not measured" if c.status == "ok" else str(c.status)
        for c in report.candidates
        if not c.can_win
    )
    if sum(counts.values()) < len(report.candidates):
        return "Some rows are valid, but none meets the objective's limits."
    found = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    text = f"Of {figures.count(len(report.candidates), 'candidate')} none may win: {found}."
    if counts["undecided"]:
        text += " More data to judge on would decide; --allow-undecided lets such rows win."
    return text


def _margin(report: Report, winner: Winner) -> str:
    finals = {c.candidate: c for c in winner.finals}
    parts = []
    if winner.tie_with:
        # A memory objective's ties are of memory; the final's ratios are of time.
        ratios = {} if winner.objective.startswith("memory") else finals
        parts.append("; ".join(_level(name, ratios.get(name)) for name in winner.tie_with))
    if winner.margin:
        next_one = next(
            (c for c in winner.finals if c.candidate not in {winner.id, *winner.tie_with}), None
        )
        who = next_one.candidate if next_one else "The next row"
        parts.append(f"{who} takes {_more(winner)}")
    elif winner.margin is None and not winner.tie_with:
        beaten = [c for c in report.candidates if c.status is Status.OK and c.id != winner.id]
        if beaten:  # by the rules alone, as after a fallback
            parts.append(f"No other valid row may win, {beaten[0].id} among them")
        else:
            parts.append("Nothing else was valid to race against")
    return ". ".join(parts) + "." if parts else ""


def _level(name: str, found: Comparison | None) -> str:
    if found is None:
        return f"{name} is level with it"
    low, high = found.ci95
    return (
        f"{name} is level with it: {found.ratio:.3f} times its time "
        f"(95% interval {low:.3f} to {high:.3f})"
    )


def _more(winner: Winner) -> str:
    what = "more memory" if winner.objective.startswith("memory") else "longer"
    text = f"{figures.share(winner.margin)} {what}"
    if winner.margin_ci95:
        low, high = winner.margin_ci95
        text += f" (95% interval {figures.share(low)} to {figures.share(high)})"
    return text


def _break_even(report: Report, winner: Winner) -> str:
    row = report.candidate(winner.id)
    if row is None or row.build_s is None:
        return ""
    built = [c for c in report.candidates if c.status is Status.OK and c.build_s is not None]
    quickest = min(built, key=lambda c: c.build_s or 0.0, default=row)
    if quickest.id == row.id:
        return f"It is also the quickest to build: {figures.seconds(row.build_s)}."
    against = f"{quickest.id} ({figures.seconds(quickest.build_s)})"
    unit = "inferences" if report.objective.startswith("latency") else "items"
    if row.break_even is None:
        return f"Its build of {figures.seconds(row.build_s)} is never repaid against {against}."
    if row.break_even < 1:
        return f"Its build of {figures.seconds(row.build_s)} is repaid by its first inference."
    return (
        f"Its build of {figures.seconds(row.build_s)} is repaid against {against} after "
        f"{row.break_even:,.0f} {unit}."
    )


def _undecided(report: Report, winner: Winner) -> str:
    """Of the undecided rows that were faster than the winner, the fastest."""
    if not any(c.status is Status.UNDECIDED for c in report.candidates):
        return ""
    placed = standings(report)
    rows = {row.result.id: row for row in placed.rows}
    if winner.id not in rows:
        return ""
    waiting = [r for r in rows.values() if r.result.status is Status.UNDECIDED and not r.rank]
    faster = [r for r in waiting if r.speed > rows[winner.id].speed]
    if not faster:
        return ""
    first = max(faster, key=lambda r: r.speed)
    ratio = figures.times(first.speed / rows[winner.id].speed)
    text = f"{first.result.id} ran at {ratio} the winner's speed, but its accuracy is undecided"
    guard = first.result.validation.guard if first.result.validation else None
    if guard is None or not guard.more_items:
        return f"{text}."
    return f"{text}: {of_items(guard, guard.more_items)} would decide."


def _variable(name: str) -> str:
    return name if name.isidentifier() else "x"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
