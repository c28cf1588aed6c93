"""Running one step of making an environment, with all that it prints passed on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence

_TAIL_LINES = 12


class CommandFailed(Exception):
    """A step ended badly; its text is the last lines it printed."""


def run(command: Sequence[str], report: Callable[[str], None]) -> None:
    """Run a command to its end, passing on each line it prints; it dies with an exception."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {error.strerror}") from error
    assert process.stdout is not None
    with process:
        try:
            for line in process.stdout:
                if line.strip():
                    tail.append(line.rstrip())
                    report(line.rstrip())
        except BaseException:
            # Ctrl-C, or the observer's own error: pip and what it started must not go on.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise CommandFailed("\n".join(tail) or f"It exited with status {process.returncode}.")
