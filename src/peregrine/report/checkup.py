"""`peregrine doctor` and `peregrine env list` in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peregrine.checkup import Checkup
from peregrine.environments import Environment, VersionSet
from peregrine.results import Status

_STATE = {Status.OK: "[green]ready[/]", Status.UNAVAILABLE: "[yellow]not here[/]"}


def render_checkup(found: Checkup, console: Console) -> None:
    """The machine in two lines, then each backend with its state, versions and fix."""
    machine = found.machine
    console.print(
        f"{machine.cpu}, {machine.physical_cores} cores, {machine.memory_mb / 1024:.0f} GiB; "
        f"{machine.os}, Python {machine.python}",
        markup=False,
        highlight=False,
    )
    extensions = ", ".join(machine.cpu_flags) or "none that matter"
    console.print(f"Vector extensions: {extensions}", markup=False, highlight=False)
    gpus = ", ".join(machine.gpus) or "none found"
    console.print(f"NVIDIA GPUs: {gpus}", markup=False, highlight=False)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for title in ("backend", "state", "versions", "runs in"):
        table.add_column(title, no_wrap=title in ("backend", "state"))
    for probe in found.backends:
        versions = ", ".join(f"{name} {version}" for name, version in probe.versions.items())
        place = found.environments.get(probe.backend)
        table.add_row(
            probe.backend,
            _STATE.get(probe.status, "[red]broken[/]"),
            escape(versions),
            escape(f"environment {place}" if place else "this interpreter"),
        )
    console.print(table)
    for probe in found.backends:
        if not probe.reason:
            continue
        console.print(f"{probe.backend}: {probe.reason}", markup=False, highlight=False)
        if probe.fix:
            console.print(f"  Fix: {probe.fix}", markup=False, highlight=False)


def render_environments(
    made: Sequence[Environment], sets: Mapping[str, VersionSet], console: Console
) -> None:
    """What there is, then what could be made."""
    if made:
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
        for title in ("environment", "serves", "interpreter"):
            table.add_column(title)
        for env in made:
            table.add_row(escape(env.name), ", ".join(env.backends), escape(str(env.python)))
        console.print(table)
    else:
        console.print("There are no environments: every backend runs in this interpreter.")
    console.print("Version sets for `peregrine env create`:")
    for name, chosen in sets.items():
        serves = ", ".join(chosen.backends)
        packages = " ".join(chosen.packages)
        console.print(f"  {name} (serves {serves}): {packages}", markup=False, highlight=False)
