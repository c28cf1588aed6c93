"""How fast: the ranking, every sample of it, and the final."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peregrine.report import figures, standings, words
from peregrine.report.html.key import Key, name
from peregrine.report.html.markup import Markup, Node, el, join
from peregrine.report.html.plot import (
    BOX,
    Axis,
    Scale,
    Series,
    line_chart,
    path,
    track,
    track_axis,
    track_grid,
)
from peregrine.report.standings import Row, Standings
from peregrine.results import FinalRound, Report
from peregrine.types import Array


def ranking(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """A bar a row from zero, with its 95% interval, in the race's own measure."""
    rows = placed.rows
    by_rate = placed.goal == "throughput"
    unit = "items/s" if by_rate else "ms"
    ends = [_span(row, by_rate) for row in rows]
    axis = Axis(
        f"{'throughput, items per second' if by_rate else 'median latency, ms'}; "
        "the mark at a bar's end is the 95% interval of the median"
        + ("; finalists stand in the order of the final" if any(r.final for r in rows) else ""),
        Scale(0.0, max(high for _, _, high in ends) * 1.02),
    )
    drawn: list[Node] = []
    for row, (low, middle, high) in zip(rows, ends, strict=True):
        x0, x, x1 = axis.scale(low), axis.scale(middle), axis.scale(high)
        value = f"{figures.number(middle)} {unit}"
        extra = f"{figures.times(row.speedup)}" if row.speedup else ""
        strip = track(
            track_grid(axis),
            el("rect", x=0, y=220, width=f"{x:.1f}", height=560, class_="bar"),
            el("path", d=f"M{x0:.1f} 500H{x1:.1f}M{x0:.1f} 120V880M{x1:.1f} 120V880", class_="ci"),
            class_="strip", height=22, label=f"{row.result.id}: {value}",
        )  # fmt: skip
        drawn.append(_row(row, keys, el("b", value), " ", el("span", extra, class_="dim"), strip))
    return el("div", drawn, track_axis(axis), class_="rows")


def _span(row: Row, by_rate: bool) -> tuple[float, float, float]:
    m = row.headline
    low, high = m.ci95_ms
    middle = m.latency_ms.p50
    if by_rate:  # the interval of the median, turned into a rate
        rate = m.throughput_per_s
        return rate * middle / high, rate, rate * middle / low
    return low, middle, high


def _row(row: Row, keys: Mapping[str, Key], *rest: Node) -> Markup:
    *words, strip = rest
    key = keys[row.result.id]
    head = el("div", name(row.result.id, key), el("span", words, class_="value"), class_="head")
    return el("div", head, strip, class_="row" if row.rank else "row unranked",
              data_key=key.mark, style=f"--c:var({key.colour})")  # fmt: skip


def cumulative(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """The share of inferences done within a time: all samples, nothing smoothed."""
    series = []
    measured = [row for row in placed.rows if row.headline.samples_ms]
    left_to_right = sorted(measured, key=lambda row: row.headline.latency_ms.p50)
    for number, row in enumerate(left_to_right):
        key, samples = keys[row.result.id], np.sort(np.asarray(row.headline.samples_ms))
        share = 100 * np.arange(1, samples.size + 1) / samples.size
        # A step at each sample: up where it happens, level until the next.
        xs, ys = np.repeat(samples, 2), np.concatenate([[0], np.repeat(share, 2)[:-1]])
        points = tuple(zip(xs.tolist(), ys.tolist(), strict=True))
        # Neighbours' keys stand at different heights, so that close curves can be told apart.
        level = 62 - 15 * (number % 4)
        at = (float(np.percentile(samples, level)), float(level))
        series.append(Series(key.mark, row.result.id, key.colour, key.dash, points, key_at=at))
    if not series:
        return join(None)
    order = [keys[row.result.id].mark for row in placed.rows]
    series.sort(key=lambda one: order.index(one.key))
    everything = [x for one in series for x, _ in one.points]
    x = Axis(
        "latency, ms (logarithmic)", Scale(min(everything) * 0.97, max(everything) * 1.03, True)
    )
    y = Axis("share of inferences done, %", Scale(0, 100), (0, 25, 50, 75, 100), "%")
    return line_chart(series, x, y, label="Cumulative distribution of latency for every candidate")


def spread(placed: Standings, final: tuple[FinalRound, ...], keys: Mapping[str, Key]) -> Markup:
    """Each row's samples around its own median: steadiness, whatever its speed."""
    rows = [row for row in placed.rows if row.headline.samples_ms]
    if not rows:
        return join(None)
    tails = [r.headline.latency_ms.p99 / r.headline.latency_ms.p50 for r in rows]
    heads = [r.headline.latency_ms.min / r.headline.latency_ms.p50 for r in rows]
    low, high = max(0.5, min(heads) - 0.02), min(3.0, max(1.1, *tails) + 0.05)
    axis = Axis("time against the row's own median (1 = its p50)", Scale(low, high))
    drawn: list[Node] = []
    for row in rows:
        lat = row.headline.latency_ms
        own = row.trial
        lanes = [("measured", np.asarray(own.samples_ms) / own.latency_ms.p50)]
        turns = [np.asarray(r.samples_ms) for r in final if r.candidate == row.result.id]
        again = [turn / np.median(turn) for turn in turns if turn.size]
        if again:  # each round against its own median: noise between rounds is the final's matter
            lanes.append(("final", np.concatenate(again)))
        strips = [_lane(axis, kind, ratios, row) for kind, ratios in lanes]
        words = (
            el("b", f"{figures.number(lat.p50)}"), f" p90 {figures.number(lat.p90)}"
            f" p95 {figures.number(lat.p95)} p99 {figures.number(lat.p99)} ms",
        )  # fmt: skip
        drawn.append(_row(row, keys, *words, join(strips)))
    return el("div", drawn, track_axis(axis), class_="rows")


def _lane(axis: Axis, kind: str, ratios: Array, row: Row) -> Markup:
    """A density above its samples, one tick each; marks at the median and p99."""
    bins = np.linspace(axis.scale.low, axis.scale.high, 241)
    counts, _ = np.histogram(np.clip(ratios, bins[0], bins[-1]), bins)
    smooth = np.convolve(counts, _kernel(ratios, float(bins[1] - bins[0])), "same")
    centres = (bins[:-1] + bins[1:]) / 2
    top = 640 - 600 * smooth / max(smooth.max(), 1e-9)
    outline = [(axis.scale(x), y) for x, y in zip(centres.tolist(), top.tolist(), strict=True)]
    hill = path([(0, 640), *outline, (BOX, 640)]) + "Z"
    rug = "".join(f"M{axis.scale(x):.1f} 720V980" for x in ratios.tolist())
    p99 = axis.scale(float(np.percentile(ratios, 99)))
    beyond = int((ratios > axis.scale.high).sum())
    strip = track(
        track_grid(axis),
        el("path", d=hill, class_="hill"),
        el("path", d=rug, class_="rug"),
        el("path", d=f"M{axis.scale(1):.1f} 0V1000", class_="median"),
        el("path", d=f"M{p99:.1f} 400V1000", class_="p99"),
        class_=f"strip {kind}", height=46 if kind == "measured" else 34,
        label=f"{row.result.id}: distribution of {ratios.size} samples",
    )  # fmt: skip
    note = f"{kind}, {figures.count(ratios.size, 'sample')}"
    note += f", {beyond} further right" if beyond else ""
    return el("div", strip, el("span", note, class_="lanenote"), class_="lane")


def _kernel(values: Array, step: float) -> Array:
    """A Gaussian as wide as Silverman's rule asks for these values, on a grid of `step`."""
    q25, q75 = np.percentile(values, [25, 75])
    spread = min(float(values.std()), float(q75 - q25) / 1.34) or float(values.std())
    # At most so wide that the kernel is shorter than the 240 bins it smooths.
    width = min(39.0, max(1.0, 0.9 * spread * values.size**-0.2 / step))
    at = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    weights = np.exp(-0.5 * (at / width) ** 2)
    return np.asarray(weights / weights.sum())


def finals(report: Report, keys: Mapping[str, Key]) -> Markup:
    """Each finalist's time as a ratio to the winner's: round by round, and over all."""
    winner, compared = report.winner, standings.finals(report)
    if winner is None or not compared:
        return join(None)
    rounds = _paired(report, winner.id)
    reach = [value for c in compared for value in (*c.ci95, c.ratio)]
    reach += [value for found in rounds.values() for _, low, high in found for value in (low, high)]
    margin = max(0.01, 0.04 * (max(reach) - min(reach)))
    axis = Axis(
        "time per item as a ratio to the winner's: less is faster",
        Scale(min(*reach, 1.0) - margin, max(*reach, 1.0) + margin),
    )
    drawn: list[Node] = []
    for found in compared:
        key = keys.get(found.candidate)
        by_round = rounds.get(found.candidate, [])
        low, high = axis.scale(found.ci95[0]), axis.scale(found.ci95[1])
        step = BOX / (len(by_round) + 1)
        marks: list[Node] = [
            el("rect", x=f"{low:.1f}", y=0, width=f"{max(2.0, high - low):.1f}", height=1000,
               class_="band"),
            el("path", d=f"M{axis.scale(found.ratio):.1f} 0V1000", class_="median"),
        ]  # fmt: skip
        for number, (ratio, lower, upper) in enumerate(by_round, 1):
            y, at = step * number, axis.scale(ratio)
            tip = f"round {number}: {ratio:.3f} ({lower:.3f}{figures.DASH}{upper:.3f})"
            whisker = f"M{axis.scale(lower):.1f} {y:.0f}H{axis.scale(upper):.1f}"
            dot = f"M{at:.1f} {y:.0f}h.01"
            marks += [
                el("path", d=whisker, class_="whisker"),
                el("path", d=dot, class_="dot"),
                el("path", el("title", tip), d=dot, class_="hit", data_tip=tip),
            ]
        one = el("path", d=f"M{axis.scale(1):.1f} 0V1000", class_="one")
        strip = track(track_grid(axis), one, marks, class_="strip",
                      height=max(26, 11 * (len(by_round) + 1)),
                      label=f"{found.candidate}: ratio {found.ratio:.3f}")  # fmt: skip
        if found.candidate == winner.id:
            verdict = "the measure: 1"
        else:
            verdict = f"{found.ratio:.3f} ({found.ci95[0]:.3f}{figures.DASH}{found.ci95[1]:.3f})"
            verdict += f", {words.level(found)}" if found.tie else ""
        value = el("b", f"{figures.number(found.p50_ms)} ms")
        head = el("div", name(found.candidate, key),
                  el("span", value, f", {verdict}", class_="value"), class_="head")  # fmt: skip
        hue = key.colour if key else "--other"
        drawn.append(el("div", head, strip, class_="row", style=f"--c:var({hue})"))
    return el("div", drawn, track_axis(axis), class_="rows")


def _paired(report: Report, winner: str) -> dict[str, list[tuple[float, float, float]]]:
    """Candidate -> (ratio, low, high) a round, paired with the winner's turn in that round."""
    times: dict[tuple[int, str], tuple[float, float]] = {}
    for turn in report.final_rounds:
        if turn.samples_ms:
            times[turn.round, turn.candidate] = _log_time(turn, report.objective)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for (number, candidate), (log_time, error) in sorted(times.items()):
        base = times.get((number, winner))
        if base is None:
            continue
        own = candidate == winner
        wide = 0.0 if own else 1.96 * math.hypot(error, base[1])
        middle = log_time - base[0]
        found.setdefault(candidate, []).append(
            (math.exp(middle), math.exp(middle - wide), math.exp(middle + wide))
        )
    return found


def _log_time(turn: FinalRound, objective: str) -> tuple[float, float]:
    """log of the time per item, and its standard error from the order statistics of the samples
    (the binomial 95% interval of the median)."""
    samples = np.sort(np.asarray(turn.samples_ms))
    half = 0.98 * math.sqrt(samples.size)
    last = samples.size - 1
    low = samples[max(0, math.floor(samples.size / 2 - half))]
    high = samples[min(last, math.ceil(samples.size / 2 + half))]
    error = (math.log(high) - math.log(low)) / (2 * 1.96)
    if objective.lower().startswith("throughput"):
        return -math.log(turn.throughput_per_s), error
    return math.log(float(np.median(samples)) / turn.batch), error
