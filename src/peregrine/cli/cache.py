"""The verbs about what is kept between runs: `cache list` and `cache prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from peregrine.cli.console import console, say
from peregrine.cli.parse import parse_size_mb
from peregrine.errors import OptionError

_MIB = 1 << 20

cache = typer.Typer(no_args_is_help=True)


@cache.command("list")
def cache_list() -> None:
    """Engines, converted graphs and timings that are kept here, last used first."""
    import time

    from rich.table import Table

    from peregrine import api

    found = api.kept()
    if not found:
        say("Nothing is kept.")
        return
    table = Table("Kind", "Model", "What", "MiB", "Hours unused", "Key", box=None)
    now = time.time()
    for entry in found:
        hours = max(0.0, now - entry.used) / 3600
        size = f"{entry.size / _MIB:.1f}"
        row = (entry.kind, entry.model, entry.candidate, size, f"{hours:.1f}", entry.key[:12])
        table.add_row(*row)
    console().print(table, markup=False, highlight=False)
    say(f"{sum(entry.size for entry in found) / _MIB:.1f} MiB in all.")


@cache.command("prune")
def cache_prune(
    max_size: Annotated[
        str, typer.Option("--max-size", metavar="SIZE", help="What may stay, e.g. 5GiB.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Drop all of it.")] = False,
) -> None:
    """Drop what was used longest ago.

    Examples:
      peregrine cache prune --max-size 5GiB
      peregrine cache prune --all
    """
    from peregrine import api

    if bool(max_size) == everything:
        raise OptionError(
            "It is not clear what may stay.", fix="Give one of --max-size 5GiB and --all."
        )
    gone = api.prune(0 if everything else int(parse_size_mb(max_size) * _MIB))
    say(f"Dropped {len(gone)}, {sum(entry.size for entry in gone) / _MIB:.1f} MiB.")
