"""The command line: every verb is one call of the public API, plus how its answer is shown."""

from peregrine.cli.app import main as main

__all__ = ["main"]
