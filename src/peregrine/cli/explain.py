"""The verb `explain`: how an engine spends its time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peregrine.cli.console import console, say
from peregrine.cli.options import output


def explain(
    engine: Annotated[
        Path,
        typer.Argument(
            metavar="ENGINE", help="A run, a bundle or a directory that holds an engine of it."
        ),
    ],
    html: Annotated[
        Path | None,
        output("--html", metavar="FILE", help="Write the page there as well: charts, all tables."),
    ] = None,
    top: Annotated[
        int | None, output("--top", metavar="N", min=1, help="Only the N longest steps.")
    ] = None,
) -> None:
    """Show how a native engine spends its time and memory: each step's tactic, its time against
    the roofline, and who came second.

    Examples:
      peregrine explain model.bundle
      peregrine explain model.bundle --top 10
      peregrine explain model.bundle --html engine.html
    """
    from peregrine import api
    from peregrine.report.engine import render_engine

    explained = api.explain(engine)
    if html is not None:
        from peregrine.report.html.engine import write_engine_html

        write_engine_html(explained, html)
    render_engine(explained, console(), top=top)
    if html is not None:
        say(f"Page: {html}")
