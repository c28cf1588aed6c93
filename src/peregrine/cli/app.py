"""The application: its verbs put together, how it ends on an error, a signal or a closed pipe."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from peregrine.cli import machine, races
from peregrine.cli.cache import cache
from peregrine.cli.console import say_error
from peregrine.cli.explain import explain
from peregrine.cli.suites import suite
from peregrine.errors import PeregrineError

if TYPE_CHECKING:
    from types import FrameType

# As a shell reports a process that ended by SIGINT or SIGPIPE.
_INTERRUPTED = 128 + 2
_PIPE_CLOSED = 128 + 13


class _Verbs(TyperGroup):
    """Errors of ours are three lines and an exit code, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PeregrineError as error:
            say_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            typer.echo("Interrupted. What was done is kept; go on with --resume.", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has left; nothing is lost but the printing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_PIPE_CLOSED) from None


app = typer.Typer(
    name="peregrine",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        import peregrine

        typer.echo(f"peregrine {peregrine.__version__}")
        raise typer.Exit


@app.callback()
def _peregrine(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Race every way this machine can run a trained model, prove each one right,
    and keep the winner.

    Examples:
      peregrine doctor
      peregrine bench resnet50
      peregrine build model.onnx --out model.bundle
    """


_RACE, _MACHINE = "A model", "This machine"

app.command(rich_help_panel=_RACE)(races.bench)
app.command(rich_help_panel=_RACE)(races.build)
app.command(rich_help_panel=_RACE)(races.report)
app.command(rich_help_panel=_RACE)(explain)
app.command(rich_help_panel=_MACHINE)(machine.doctor)
app.add_typer(
    suite,
    name="suite",
    help="Published studies, repeated on this machine.",
    rich_help_panel=_MACHINE,
)
app.add_typer(
    machine.env,
    name="env",
    help="Backends in a virtual environment of their own.",
    rich_help_panel=_MACHINE,
)
app.add_typer(
    cache,
    name="cache",
    help="Engines, converted graphs and timings kept between runs.",
    rich_help_panel=_MACHINE,
)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    # A polite kill ends like Ctrl-C: workers gone, rows kept.
    signal.signal(signal.SIGTERM, _as_interrupt)
    app()
