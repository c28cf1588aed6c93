"""The verdict, the tables of figures, the model and the machine."""

from __future__ import annotations

from collections.abc import Mapping

from peregrine.objective import memory_mb, on_gpu
from peregrine.report import figures, words
from peregrine.report.html.key import Key, name
from peregrine.report.html.markup import Markup, Node, badge, breakable, copyable, el, join, table
from peregrine.report.standings import Standings, finals
from peregrine.report.verdict import usage, verdict
from peregrine.results import CandidateResult, Report


def outcome(report: Report, placed: Standings) -> Markup:
    """Who won, by how much, why, and the lines that use it."""
    found = verdict(report)
    first = placed.rows[0] if placed.rows and report.winner else None
    tiles: list[Node] = []
    if first is not None:
        m = first.headline
        tiles = [
            _tile(f"{figures.number(m.latency_ms.p50)} ms", f"median at batch {m.batch}",
                  f"95% interval {figures.interval(*m.ci95_ms)}"),
            _tile(figures.times(first.speedup), "as fast as", placed.baseline_name),
            _tile(f"{figures.number(first.best.throughput_per_s)} /s", "best throughput",
                  f"at batch {first.best.batch}"),
            _tile(figures.memory(memory_mb(first.result)),
                  "peak GPU memory" if on_gpu(first.result) else "peak host memory",
                  f"built in {figures.seconds(first.result.build_s)}"),
        ]  # fmt: skip
    use = usage(report)
    code: Node = None
    if use is not None:
        lines = [f"$ {use.shell}"] if use.shell else []
        code = copyable(*lines, "", *use.python) if lines else copyable(*use.python)
    kind = "tie" if report.winner and report.winner.tie_with else "won" if report.winner else "none"
    label = {"tie": "Tie", "won": "Winner", "none": "No winner"}[kind]
    title = breakable(report.winner.id) if report.winner else Markup("No winner")
    return el(
        "section",
        el("div", label, class_="eyebrow"),
        el("h1", title),
        el("p", found.why, class_="why"),
        el("p", found.margin, " ", found.break_even) if report.winner else None,
        el("p", badge("undecided"), " ", found.undecided) if found.undecided else None,
        el("div", tiles, class_="tiles") if tiles else None,
        code,
        class_=f"verdict {kind}",
    )


def _tile(figure: str, what: str, more: str) -> Markup:
    return el("div", el("strong", figure), el("span", what), el("small", more), class_="tile")


def standings_table(report: Report, placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """A row per measured candidate: what the terminal shows, sortable here."""
    head = ("candidate", "", "p50 ms", "95% interval", "p99 ms", "items/s @batch", "speed",
            "memory", "build", "scaled error", "unequal", "top-1")  # fmt: skip
    body = []
    for row in placed.rows:
        c, m, v = row.result, row.headline, row.result.validation
        won = report.winner is not None and c.id == report.winner.id
        state = "winner" if won else "tied" if row.tied else words.badge(c)
        body.append([
            join((name(c.id, keys[c.id]), asides(c))),
            el("td", badge(state)),
            figures.number(m.latency_ms.p50),
            figures.interval(*m.ci95_ms),
            figures.number(m.latency_ms.p99),
            f"{figures.number(row.best.throughput_per_s)} @{row.best.batch}",
            figures.times(row.speedup),
            figures.memory(memory_mb(c)),
            figures.seconds(c.build_s),
            figures.error(v.scaled_error if v else None),
            figures.percent(v.non_equal_percent if v else None),
            figures.share(v.top1_agreement if v else None),
        ])  # fmt: skip
    note = f"speed: against {placed.baseline_name}" if placed.baseline else ""
    note += ", finalists' by the final. " if note and finals(report) else ". " if note else ""
    note += "Latency is single stream; throughput is each row's best batch."
    return join((table(head, body, label="Ranking", numeric_from=2), el("p", note, class_="dim")))


def asides(result: CandidateResult) -> list[Node]:
    """What must be said beside a row's figures."""
    return [
        el("div", text, class_="random" if text == words.RANDOM else "aside")
        for text in words.asides(result)
    ]


def costs(rows: list[CandidateResult], keys: Mapping[str, Key]) -> Markup:
    """What it takes to have each candidate: time to build and load, memory, the largest batch."""
    head = ("candidate", "build", "load", "first run", "break-even", "peak running",
            "peak building", "empty interpreter", "device peak", "artefact", "largest batch",
            "sweep ended by")  # fmt: skip
    body = []
    for c in rows:
        if c.build_s is None and c.memory is None:
            continue
        memory = c.memory
        largest = figures.MISSING if c.max_batch is None else f"{c.max_batch:,}"
        largest += f" ({c.max_batch_limited_by})" if c.max_batch_limited_by else ""
        even = figures.MISSING if c.break_even is None else f"{c.break_even:,.0f} runs"
        first = (
            figures.MISSING if c.first_run_ms is None else f"{figures.number(c.first_run_ms)} ms"
        )
        engine = words.engine(c)
        body.append([
            join((name(c.id, keys.get(c.id)), el("div", engine, class_="aside"))) if engine
            else name(c.id, keys.get(c.id)),
            figures.seconds(c.build_s), figures.seconds(c.load_s),
            first, even,
            *(figures.memory(value) for value in (
                (memory.host_peak_mb, memory.host_build_peak_mb, memory.host_baseline_mb,
                 memory.device_peak_mb) if memory else (None,) * 4)),
            figures.memory(c.artifact_mb), largest, c.sweep_stopped or figures.MISSING,
        ])  # fmt: skip
    return table(head, body, label="Costs")


def measurements(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """Every measurement there is."""
    head = ("candidate", "batch", "boundary", "p50", "95% interval", "p90", "p95", "p99", "mean",
            "std", "min", "max", "items/s", "in flight", "samples", "warm-up", "peak")  # fmt: skip
    body: list[list[Node]] = []
    for row in placed.rows:
        for m in row.result.measurements:
            lat = m.latency_ms
            settled = f"{m.warmup}" if m.stable else f"{m.warmup}, unsettled"
            body.append([
                name(row.result.id, keys[row.result.id]), str(m.batch), str(m.boundary),
                figures.number(lat.p50), figures.interval(*m.ci95_ms),
                *map(figures.number, (lat.p90, lat.p95, lat.p99, lat.mean, lat.std, lat.min,
                                      lat.max, m.throughput_per_s)),
                str(m.parallelism), f"{len(m.samples_ms):,}", settled, figures.memory(m.peak_mb),
            ])  # fmt: skip
    return table(head, body, label="All measurements, milliseconds")


def setting(report: Report) -> Markup:
    """The model, the reference, the machine and the versions."""
    model, machine = report.model, report.machine
    load = machine.load_average
    return el("div", [
        _facts("Model", {
            "name": model.name, "source": model.source, "weights": model.weights,
            "inputs": ", ".join(map(str, model.inputs)),
            "outputs": ", ".join(map(str, model.outputs)),
            "parameters": f"{model.parameters:,}" if model.parameters else "",
            "sizes": ", ".join(f"{k}={v}" for k, v in model.dims.items()),
            "sha256": model.sha256, "notes": " ".join(model.notes),
        }),
        _facts("Machine", {
            "cpu": machine.cpu,
            "cores": f"{machine.physical_cores} physical, {machine.logical_cores} logical",
            "vector extensions": ", ".join(machine.cpu_flags),
            "memory": figures.memory(machine.memory_mb),
            "gpus": ", ".join(machine.gpus) or "none",
            "system": machine.os,
            "load at start": "" if load is None else f"{load:.2f}",
        }),
        _facts("Versions", {"python": machine.python, **report.versions}),
        _facts("Race", {
            "objective": report.objective, "reference": report.reference.workflow,
            "judged on": ", ".join(report.reference.inputs),
            "calibration and judging": report.reference.split,
            "reference top-1": "" if report.reference.top1 is None
            else figures.share(report.reference.top1),
            "command": report.command, "started": report.started, "finished": report.finished,
            "run directory": words.shown(report.run_dir),
        }),
    ], class_="settings")  # fmt: skip


def _facts(title: str, facts: Mapping[str, str]) -> Markup:
    lines = [(el("dt", key), el("dd", value)) for key, value in facts.items() if value]
    return el("div", el("h3", title), el("dl", lines))
