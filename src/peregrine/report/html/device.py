"""What a GPU did while rows were measured on it, and the memory they took there."""

from __future__ import annotations

from collections.abc import Mapping

from peregrine.objective import on_gpu
from peregrine.report import figures
from peregrine.report.html.key import Key, name
from peregrine.report.html.markup import Markup, Node, badge, details, el, join, table
from peregrine.report.standings import Row, Standings
from peregrine.results import DeviceConditions, Measurement


def conditions(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """Clocks, heat, power and energy at the batch that ranks; below, folded, at every batch.
    Nothing where nothing ran on a GPU."""
    watched = [
        (row, m) for row in placed.rows for m in row.result.measurements if m.device is not None
    ]
    if not watched:
        return join(None)
    shown = [(row, m) for row, m in watched if m.batch == row.trial.batch]
    rest = [(row, m) for row, m in watched if m.batch != row.trial.batch]
    parts = [_conditions(shown, keys, "Clocks, power and energy")]
    if rest:
        every = _conditions(rest, keys, "Clocks, power and energy at the other batches")
        parts.append(details("The other batches", every))
    note = (
        "Of the whole card, by NVML: SM clock as its lowest and its median reading, the hottest "
        "temperature, mean power, and the energy that one inference of the batch and one item of "
        "it take. Readings fall between two inferences."
    )
    costs = [m.device.reading_ms for _, m in watched if m.device and m.device.reading_ms]
    if costs:
        note += f" A reading took {figures.number(max(costs))} ms at most, by the rows' medians."
    return join((*parts, el("p", note, class_="dim small"), _unwatched(watched)))


def _conditions(
    measured: list[tuple[Row, Measurement]], keys: Mapping[str, Key], label: str
) -> Markup:
    head = ("candidate", "batch", _left("boundary"), _left("held down by"), _left("settled"),
            "SM clock MHz", "memory MHz", "\N{DEGREE SIGN}C", "power", "energy", "an item",
            _left("energy by"))  # fmt: skip
    body: list[list[Node]] = []
    for row, m in measured:
        seen = m.device
        assert seen is not None
        power = seen.power_mean_w
        each = None if seen.energy_j is None else seen.energy_j / m.batch
        body.append([
            name(row.result.id, keys[row.result.id]), f"{m.batch}", el("td", str(m.boundary)),
            el("td", _throttled(seen)), el("td", _settled(seen)), _sm_clock(seen),
            figures.number(seen.memory_clock_mhz), figures.number(seen.temperature_max_c),
            figures.MISSING if power is None else f"{figures.number(power)} W",
            figures.energy(seen.energy_j), figures.energy(each),
            el("td", seen.energy_by or figures.MISSING),
        ])  # fmt: skip
    return table(head, body, label=label)


def _left(title: str) -> Markup:
    """The head of a column of words."""
    return el("th", title, scope="col")


def times(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """An inference by the host's clock and by the GPU's own; nothing where no runtime shows its
    stream."""
    body: list[list[Node]] = []
    for row in placed.rows:
        for m in row.result.measurements:
            if m.events_ms is None:
                continue
            host, gpu = m.latency_ms.p50, m.events_ms.p50
            body.append([
                name(row.result.id, keys[row.result.id]), f"{m.batch}", figures.number(host),
                figures.interval(*m.ci95_ms), figures.number(gpu), figures.number(m.events_ms.p99),
                figures.number(host - gpu),
            ])  # fmt: skip
    if not body:
        return join(None)
    head = ("candidate", "batch", "host's clock p50 ms", "95% interval", "CUDA events p50 ms",
            "p99 ms", "difference ms")  # fmt: skip
    note = (
        "At the device boundary. CUDA events time an inference by the GPU's own clock, launched "
        "while another is in flight: the difference is launching and waiting."
    )
    return join((
        el("h3", "Device time"), table(head, body, label="Device time"),
        el("p", note, class_="dim small"),
    ))  # fmt: skip


def _throttled(seen: DeviceConditions) -> Node:
    if not seen.readings:
        return figures.MISSING
    return join((badge("throttled"), " ", ", ".join(seen.throttle))) if seen.throttle else "nothing"


def _settled(seen: DeviceConditions) -> str:
    if seen.clock_settled is None:
        return figures.MISSING
    return "yes" if seen.clock_settled else "no"


def _sm_clock(seen: DeviceConditions) -> str:
    low, middle = seen.sm_clock_min_mhz, seen.sm_clock_median_mhz
    if low is None or middle is None:
        return figures.MISSING
    return f"{figures.number(low)} / {figures.number(middle)}"


def _unwatched(watched: list[tuple[Row, Measurement]]) -> Markup:
    """Rows without any figures, by the reason."""
    rows: dict[str, dict[str, None]] = {}
    for row, m in watched:
        if m.device is not None and m.device.reason:
            rows.setdefault(m.device.reason, {})[row.result.id] = None
    return join([
        el("p", f"Not watched, {reason}: {', '.join(ids)}.", class_="dim small")
        for reason, ids in rows.items()
    ])  # fmt: skip


def memory(placed: Standings, keys: Mapping[str, Key]) -> Markup:
    """Device memory at the first batch, how it is known, and what nvidia-smi shows."""
    body: list[list[Node]] = []
    for row in placed.rows:
        taken = row.result.memory
        if taken is None or not on_gpu(row.result):
            continue
        body.append([
            name(row.result.id, keys[row.result.id]), figures.memory(taken.device_peak_mb),
            figures.memory(taken.device_used_peak_mb), figures.memory(taken.device_baseline_mb),
            figures.memory(taken.host_peak_mb), el("td", taken.device_memory_by),
        ])  # fmt: skip
    if not body:
        return join(None)
    head = ("candidate", "device peak", "nvidia-smi", "before", "host peak",
            _left("known by"))  # fmt: skip
    note = (
        "At the first batch. nvidia-smi: what it shows, of all processes; before: the same before "
        "the worker loaded its runtime. Finalists were looked at in the final, where the others "
        "hold theirs beside."
    )
    return join((
        el("h3", "Device memory"), table(head, body, label="Device memory"),
        el("p", note, class_="dim small"),
    ))  # fmt: skip
