"""The verbs about what can run on this machine: `doctor`, and `env` to change its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peregrine.cli.console import console, say

_NOTHING_RUNS = 4

env = typer.Typer(no_args_is_help=True)


def doctor() -> None:
    """What can run here, what cannot, why, and the exact command that fixes it."""
    from peregrine import api
    from peregrine.report.checkup import render_checkup

    found = api.doctor()
    render_checkup(found, console())
    if not found.anything_runs:
        raise typer.Exit(_NOTHING_RUNS)


@env.command("create")
def env_create(
    name: Annotated[str, typer.Argument(help="A version set, as `env list` shows it.")],
) -> None:
    """Make a virtual environment with versions known to work together."""
    from peregrine import environments

    stderr = console(stderr=True)
    made = environments.create(
        name, report=lambda line: stderr.print(line, markup=False, highlight=False, style="dim")
    )
    say(f"{made.name} is ready; it serves {', '.join(made.backends)}.")


@env.command("add")
def env_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    backends: Annotated[
        list[str],
        typer.Option("--backend", metavar="BACKEND", help="A backend it serves. Repeatable."),
    ],
    python: Annotated[
        Path | None, typer.Option("--python", metavar="FILE", help="A ready interpreter.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="DIR", help="A directory of installed packages."),
    ] = None,
) -> None:
    """Point backends at a ready interpreter or a site directory.

    Examples:
      peregrine env add mine --backend tensorrt --python ~/trt/bin/python
      peregrine env add nightly --backend onnxruntime --site ~/ort-nightly
    """
    from peregrine import environments

    made = environments.add(name, backends, python=python, site=site)
    say(f"{made.name} serves {', '.join(made.backends)}.")


@env.command("list")
def env_list() -> None:
    """The environments there are, and the version sets that could be made."""
    from peregrine import environments
    from peregrine.report.checkup import render_environments

    render_environments(environments.list_all(), environments.version_sets(), console())


@env.command("remove")
def env_remove(
    name: Annotated[str, typer.Argument(help="The environment, as `env list` shows it.")],
) -> None:
    """Forget an environment, and delete it if `create` made it."""
    from peregrine import environments

    gone = environments.remove(name)
    say(f"Removed {gone.name}.")
