"""An explained engine in a terminal: a row a step, then the sums and the memory."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peregrine.compiler.explain import ExplainedPlan, ExplainedStep, Explanation
from peregrine.compiler.plan import Memory
from peregrine.report import figures
from peregrine.report.words import plain

MIB = 1 << 20
_WIDE = 132
"""Columns from which tactics stand beside their steps, not below."""


def render_engine(explained: Explanation, console: Console, *, top: int | None = None) -> None:
    """Print every plan of an engine.

    Args:
        top: only so many steps, the longest first; all, in their order, where it is None.
    """
    console.print()
    _say(console, f"Engine {explained.directory}", style="bold")
    _say(console, device_words(explained), style="dim")
    for plan in explained.plans:
        console.print()
        _say(console, title(plan), style="bold")
        console.print(_steps(plan, console.width >= _WIDE, top))
        for line in summary(plan):
            _say(console, line)
        _say(console, "Memory", style="bold")
        console.print(_memory(plan.memory))
        for note in plan.notes:
            _say(console, note, style="yellow")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(plain(text), style))


# Words that the page has too


@dataclass(frozen=True, slots=True)
class Unit:
    """Of the steps' times: microseconds where none takes a tenth of a millisecond."""

    name: str
    per_ms: float

    @classmethod
    def of(cls, plan: ExplainedPlan) -> Unit:
        longest = max((step.ms or 0.0 for step in plan.steps), default=0.0)
        return cls("ms", 1.0) if longest >= 0.1 else cls("\N{MICRO SIGN}s", 1e3)

    def number(self, ms: float | None) -> str:
        return figures.number(None if ms is None else ms * self.per_ms)

    def words(self, ms: float | None) -> str:
        """With the unit; a millisecond and more, as sums may be, in milliseconds."""
        if ms is None:
            return figures.MISSING
        return f"{figures.number(ms)} ms" if ms >= 1 else f"{self.number(ms)} {self.name}"


def title(plan: ExplainedPlan) -> str:
    """`resnet50 fp16, batch=256`."""
    dims = ", ".join(f"{name}={size}" for name, size in plan.dims.items())
    return f"{plan.name or 'model'} {plan.precision}{f', {dims}' if dims else ''}"


def device_words(explained: Explanation) -> str:
    """What it was tuned on, and the peaks that rooflines are made of."""
    seen, device = explained.fingerprint, explained.device
    name = seen.get("gpu") or seen.get("cpu") or device.name
    peaks = f"{device.flops / 1e12:,.3g} TFLOP/s in float16, {device.bandwidth / 1e12:,.3g} TB/s"
    return f"{name}, {peaks}" if device.is_cuda else name


def summary(plan: ExplainedPlan) -> list[str]:
    """What all steps take together, and whose time it is."""
    nodes, unit = sum(len(step.sources) for step in plan.steps), Unit.of(plan)
    steps = figures.count(len(plan.steps), "step")
    made = f" from {figures.count(nodes, 'node')}" if nodes else ""
    if plan.untimed == len(plan.steps):
        return [
            f"{steps}{made}; none was timed. Tactics compete on a GPU, where there are several."
        ]
    lines = [
        f"{steps}{made}: {unit.words(plan.total_ms)}, each timed alone; "
        f"roofline {unit.words(plan.roofline_ms)}, {figures.share(plan.achieved)} achieved."
    ]
    if plan.untimed:
        lines.append(f"{figures.count(plan.untimed, 'step')} had one tactic, and were not timed.")
    shares = ", ".join(
        f"{name} {figures.share(ms / plan.total_ms)} in {figures.count(count, 'step')}"
        for name, count, ms in plan.tactics
    )
    return [*lines, f"Time by tactic: {shares}."]


def memory_rows(memory: Memory) -> list[tuple[str, str, str]]:
    """(what, how much, in words) of all that an engine allocates."""
    over = memory.arena / memory.lower_bound if memory.lower_bound else None
    saved = memory.sum_of_tensors / memory.arena if memory.arena else None
    rows = [
        ("activations", size(memory.arena), "one arena that they share"),
        ("lower bound", size(memory.lower_bound),
         f"alive at one time; the arena is {figures.times(over)} of it"),
        ("unshared", size(memory.sum_of_tensors),
         f"all activations added up: {figures.times(saved)} of the arena"),
        ("weights", size(memory.weights), ""),
        ("workspace", size(memory.workspace), "scratch of one step at a time"),
    ]  # fmt: skip
    return [*rows, ("state", size(memory.state), "of steps")] if memory.state else rows


def size(count: int) -> str:
    """Bytes below 0.1 MiB as KiB."""
    if not count:
        return "none"
    return figures.memory(count / MIB) if count >= MIB / 10 else f"{count / 1024:,.1f} KiB"


def runner_up(step: ExplainedStep, unit: Unit) -> str:
    """`cudnn 21.0 µs (1.05x)`, or a dash."""
    best = step.runner_up
    if best is None or best.ms is None:
        return figures.MISSING
    ratio = f" ({figures.times(best.ms / step.ms)})" if step.ms else ""
    return f"{best.tactic} {unit.words(best.ms)}{ratio}"


# Tables


def _steps(plan: ExplainedPlan, wide: bool, top: int | None) -> Table:
    unit = Unit.of(plan)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("step", overflow="fold", ratio=3)
    if wide:
        table.add_column("tactic", overflow="fold", ratio=2)
    for head in (unit.name, "share", "roofline", "achieved"):
        table.add_column(head, justify="right", no_wrap=True)
    if wide:
        table.add_column("runner-up", overflow="fold", ratio=1)
    for step in plan.longest(top):
        what, how = _what(step), _how(step)
        times = [unit.number(step.ms), figures.share(step.share),
                 unit.number(step.roofline_ms), figures.share(step.achieved)]  # fmt: skip
        if wide:
            cells = [what, how, *map(Text, times), Text(runner_up(step, unit))]
        else:
            what = Text("\n").join([what, how])
            if step.runner_up is not None:
                what.append(f"\nnext: {runner_up(step, unit)}", "dim")
            cells = [what, *map(Text, times)]
        table.add_row(Text(f"{step.number}"), *cells)
    return table


def _what(step: ExplainedStep) -> Text:
    text = Text.assemble((step.operator.removeprefix("ai.onnx."), "bold"), "  ", plain(step.sizes))
    named, *more = step.sources or (step.name,)
    text.append(f"\n{plain(named)}{f' + {len(more)}' if more else ''}", "dim")
    return text


def _how(step: ExplainedStep) -> Text:
    return Text.assemble((plain(step.tactic), "cyan"), "  ", (plain(step.config), "dim"))


def _memory(memory: Memory) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in memory_rows(memory):
        table.add_row(*map(Text, row))
    return table
