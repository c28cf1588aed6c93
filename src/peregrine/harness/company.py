"""Workers side by side: while one is timed, the others that are at work stand still.

A build takes every processor there is. A thread of the one that is timed then waits for one that is
busy, a time slice of the kernel's: an inference of 0.4 ms took 8 ms at the host boundary beside a
compiler. So their processes are stopped by SIGSTOP, and continued. A process of ours continues them
when the race was killed in between, or what they started would stay stopped for ever.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

# Continues what the last line named once its standard input ends.
_GUARD = 'while read -r line; do last=$line; done; [ -z "$last" ] || kill -CONT $last'


class Member(Protocol):
    """A worker."""

    @property
    def is_at_work(self) -> bool: ...
    def pause(self) -> list[int]: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...


class Company:
    """The workers of one race."""

    def __init__(self) -> None:
        self._members: WeakSet[Member] = WeakSet()
        self._one_at_a_time = threading.Lock()
        self._guard: subprocess.Popen[str] | None = None

    def join(self, member: Member) -> None:
        """Have it stand still while others are timed."""
        self._members.add(member)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members))

    @contextmanager
    def still(self, timed: Member) -> Iterator[None]:
        """All others that are at work stand still."""
        with self._one_at_a_time:
            others = [m for m in self if m is not timed and m.is_at_work]
            if not others or not hasattr(signal, "SIGSTOP"):
                yield
                return
            try:
                self._tell(" ".join(str(p) for m in others for p in m.pause()))
                yield
            finally:
                for member in others:
                    member.resume()
                self._tell("")

    def close(self) -> None:
        """End the guard."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def _tell(self, stopped: str) -> None:
        with contextlib.suppress(OSError):  # without a shell there is no guard, and rarely a need
            if self._guard is None:
                self._guard = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # or Ctrl-C would end it first
                )
            assert self._guard.stdin is not None
            self._guard.stdin.write(f"{stopped}\n")
            self._guard.stdin.flush()
