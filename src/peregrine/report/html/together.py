"""Sessions side by side: throughput and tail latency against their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peregrine.report import figures, words
from peregrine.report.html.key import Key, name
from peregrine.report.html.markup import Markup, Node, el, join, table
from peregrine.report.html.plot import Axis, Scale, Series, line_chart
from peregrine.results import Concurrency, Report


def lead(report: Report) -> str:
    return (
        "Each session is a client of its own, in one process, that asks again once it has its "
        f"answer. {words.sharing(report)}"
    )


def plots(report: Report, keys: Mapping[str, Key]) -> Markup:
    """Throughput and p99, a line a candidate; nothing where fewer than two numbers ran."""
    ran = [c for c in report.concurrency if c.latency_ms is not None]
    if len({c.sessions for c in ran}) < 2:
        return join(None)
    return el(
        "div",
        _against_sessions(ran, keys, lambda c: c.throughput_per_s, "items per second"),
        _against_sessions(ran, keys, _p99, "p99 of an inference, ms"),
        class_="pair",
    )


def _p99(c: Concurrency) -> float:
    assert c.latency_ms is not None
    return c.latency_ms.p99


def _against_sessions(
    ran: list[Concurrency],
    keys: Mapping[str, Key],
    value: Callable[[Concurrency], float],
    title: str,
) -> Markup:
    series = []
    for id in dict.fromkeys(c.candidate for c in ran):
        key, own = keys[id], [c for c in ran if c.candidate == id]
        points = tuple((float(c.sessions), value(c)) for c in own)
        tips = tuple(
            f"{id}, {figures.count(c.sessions, 'session')}: {figures.number(value(c))} {title}"
            for c in own
        )
        series.append(Series(key.mark, id, key.colour, key.dash, points, tips))
    counts = sorted({float(c.sessions) for c in ran})
    most = max(value(c) for c in ran)
    x = Axis("sessions (logarithmic)", Scale(counts[0], counts[-1], log=True), counts)
    label = f"{title} against sessions, for every leader"
    return line_chart(series, x, Axis(title, Scale(0.0, most * 1.06)), label=label)


def rows(report: Report, keys: Mapping[str, Key]) -> Markup:
    """Every number of every candidate, or why there is none; nothing where none was asked for."""
    if not report.concurrency:
        return join(None)
    head = ("candidate", "sessions", "batch", "threads each", "items/s", "of one session's",
            "p50 ms", "p99 ms", "memory", "GPU memory")  # fmt: skip
    body: list[list[Node]] = []
    for c in report.concurrency:
        title = name(c.candidate, keys.get(c.candidate))
        start: list[Node] = [title, f"{c.sessions}", f"{c.batch}", _count(c.threads)]
        if c.latency_ms is None:
            body.append([*start, el("td", c.error, colspan=6)])
            continue
        body.append([
            *start, figures.number(c.throughput_per_s), figures.times(words.scaling(report, c)),
            figures.number(c.latency_ms.p50), figures.number(c.latency_ms.p99),
            figures.memory(c.peak_mb), figures.memory(c.device_peak_mb),
        ])  # fmt: skip
    return table(head, body, label="Sessions side by side", sortable=False)


def _count(threads: int | None) -> str:
    return figures.MISSING if threads is None else f"{threads}"
