"""A worker process as the race holds it: start, ask, time out, kill.

The worker runs in the interpreter configured for its backend. It is given commands as JSON
lines on its standard input and answers on a pipe of its own; what runtimes print goes to a log.
It leads a process group, so that killing it kills the compilers it started, and it dies with
the race even when the race is killed by SIGKILL (see `worker.die_with_parent`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from peregrine import errors
from peregrine.environments import Interpreter
from peregrine.errors import (
    PeregrineError,
    WorkerCrashed,
    WorkerError,
    WorkerOutOfMemory,
    WorkerTimeout,
)
from peregrine.harness.company import Company
from peregrine.harness.memory import MIB
from peregrine.harness.turns import Turns
from peregrine.harness.watch import tree_mb
from peregrine.turns import VARIABLE

# Makes the package importable, and nothing else of the directory it lies in: the worker's
# interpreter must not see this one's site-packages.
_BOOTSTRAP = """
import importlib.util, sys
root = sys.argv[1]
sys.path[:] = [p for p in sys.path if p]
spec = importlib.util.spec_from_file_location(
    "peregrine", root + "/__init__.py", submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules["peregrine"] = module
spec.loader.exec_module(module)
from peregrine.harness.worker import main
main(sys.argv[2:])
"""

_POLL_S = 0.05
# While an inference is timed, the race looks at the worker's memory twice a second, no oftener:
# a busy parent disturbs the measurement on a small machine.
_QUIET_POLL_S = 0.5
_TAIL_BYTES = 4000


class Worker:
    """One worker process. Use as a context manager: leaving kills whatever is left of it."""

    def __init__(
        self,
        interpreter: Interpreter,
        *,
        log: Path,
        memory_limit_mb: float = float("inf"),
        scratch: Path | None = None,
        turns: Turns | None = None,
        company: Company | None = None,
    ) -> None:
        """Start the process. Returns at once; the first `call` finds out if it came up.

        Args:
            interpreter: which Python, with what environment.
            log: file that standard output and error are appended to.
            memory_limit_mb: resident MiB of the worker and its children; more is a kill.
            scratch: directory for temporary files, deleted with the worker: what a compiler
                leaves behind when it is killed would else fill the system's.
            turns: of the device that others may be timing on.
            company: the workers at its side, which it joins.
        """
        self.log = log
        self.memory_limit_mb = memory_limit_mb
        self.peak_seen_mb = 0.0
        self._killed = False
        self._scratch = scratch
        self._turns = turns
        self._company = company
        self._calls = 0
        self._paused_at: float | None = None
        self._pauses: list[tuple[float, float]] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        answers, worker_end = os.pipe()
        environment = {**os.environ, **interpreter.env}
        paths = [*interpreter.search_path]
        if inherited := environment.get("PYTHONPATH"):
            paths.append(inherited)
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            environment["TMPDIR"] = str(scratch)
        if turns is not None and turns.path is not None:
            environment[VARIABLE] = str(turns.path)
        root = str(Path(__file__).parents[1])
        arguments = [root, str(worker_end), str(os.getpid())]
        try:
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [str(interpreter.python), "-c", _BOOTSTRAP, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=(worker_end,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(answers)
            raise WorkerCrashed(
                f"The interpreter {interpreter.python} could not be started.",
                why=str(error),
                fix="Run `peregrine env list` and remove or recreate that environment.",
            ) from error
        finally:
            os.close(worker_end)
        self._answers: BinaryIO = os.fdopen(answers, "rb", buffering=0)
        self._buffer = b""
        try:
            self._watched: psutil.Process | None = psutil.Process(self._process.pid)
        except psutil.NoSuchProcess:
            self._watched = None
        if company is not None:
            company.join(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(
        self, command: str, *, timeout_s: float, quiet: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Args:
            command: a method of `worker.Commands`.
            timeout_s: seconds until the worker is killed.
            quiet: an inference is being timed: look at the worker rarely.
            arguments: JSON-ready arguments of the command.

        Raises:
            PeregrineError: the error the worker raised, as the same class.
            WorkerCrashed, WorkerTimeout, WorkerOutOfMemory: it did not answer.
        """
        with contextlib.ExitStack() as stack:
            if self._turns is not None:
                stack.enter_context(self._turns.take(timed=quiet))
            if self._company is not None and quiet:
                stack.enter_context(self._company.still(self))
            self._calls += 1
            try:
                return self._call(command, timeout_s, quiet, arguments)
            finally:
                self._calls -= 1

    @property
    def is_at_work(self) -> bool:
        """Whether it has a command to answer."""
        return self._calls > 0 and not self._killed

    def pause(self) -> list[int]:
        """Stop it and all that it started; the processes."""
        self._paused_at = time.monotonic()
        stopped = []
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                process.suspend()
                stopped.append(process.pid)
        return stopped

    def resume(self) -> None:
        """Undo `pause`. The time between counts for no limit."""
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                process.resume()
        if self._paused_at is not None:
            self._pauses.append((self._paused_at, time.monotonic()))
            self._paused_at = None

    def paused_s(
        self,
        since: float = 0.0,
        until: float = math.inf,
        waits: Iterable[tuple[float, float]] = (),
    ) -> float:
        """Seconds between two times that it stood still or, as it says itself, waited; all times
        of `time.monotonic`, which is the same clock in all processes."""
        idle = [*self._pauses, *waits]
        if self._paused_at is not None:
            idle.append((self._paused_at, time.monotonic()))
        total = 0.0
        for begin, end in sorted(idle):
            begin, end = max(begin, since), min(end, until)
            total += max(0.0, end - begin)
            since = max(since, end)  # who waits may be stopped meanwhile
        return total

    def _tree(self) -> list[psutil.Process]:
        """The worker first, which could else start more."""
        if self._watched is None or self._killed:
            return []
        with contextlib.suppress(psutil.Error):
            return [self._watched, *self._watched.children(recursive=True)]
        return []

    def _call(
        self, command: str, timeout_s: float, quiet: bool, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        turn = self._turns is not None and self._turns.needed(timed=quiet)
        asked = {"command": command, "arguments": arguments, "turn": turn}
        request = json.dumps(asked).encode() + b"\n"
        if self._killed:
            raise WorkerCrashed(f"The worker was gone before `{command}`.", why=self.log_tail())
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(command) from None
        line = self._read_line(command, timeout_s, quiet)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _revive(answer["error"])
        return answer

    def _read_line(self, command: str, timeout_s: float, quiet: bool) -> bytes:
        poll = _QUIET_POLL_S if quiet else _POLL_S
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                remaining = began + timeout_s + self.paused_s(began) - time.monotonic()
                if remaining <= 0:
                    self.kill()
                    raise WorkerTimeout(
                        f"No answer to `{command}` within {timeout_s:.0f} s; the worker was "
                        "killed.",
                        why=self.log_tail(),
                        fix="Allow more with --timeout SECONDS, or leave the candidate out "
                        "with --skip.",
                    )
                if self._killed:  # by another thread, as when the race is interrupted
                    raise WorkerCrashed(f"The worker was killed during `{command}`.")
                if selector.select(min(poll, remaining)):
                    chunk = os.read(self._answers.fileno(), 1 << 16)
                    if not chunk:
                        raise self._death(command)
                    self._buffer += chunk
                self._check_memory(command, children=not quiet)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_memory(self, command: str, *, children: bool) -> None:
        if self._watched is None:
            return
        used = tree_mb(self._watched, children=children)
        self.peak_seen_mb = max(self.peak_seen_mb, used)
        if used > self.memory_limit_mb:
            self.kill()
            raise WorkerOutOfMemory(
                f"The worker used {used:.0f} MiB during `{command}`, over its limit of "
                f"{self.memory_limit_mb:.0f} MiB, and was killed.",
                fix="Allow more with --worker-memory, or use a smaller batch.",
            )

    def _death(self, command: str) -> WorkerError:
        """What the end of the process means."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        self.kill()  # its group may hold children
        tail = self.log_tail()
        most = psutil.virtual_memory().total / MIB
        if code == -signal.SIGKILL and self.peak_seen_mb > most / 2:
            return WorkerOutOfMemory(
                f"The system killed the worker during `{command}` at {self.peak_seen_mb:.0f} MiB.",
                why="memory ran out",
                fix="Use a smaller batch, or set a limit with --worker-memory.",
            )
        if "bad_alloc" in tail or "MemoryError" in tail:
            return WorkerOutOfMemory(
                f"An allocation failed during `{command}`.", why=tail, fix="Use a smaller batch."
            )
        return WorkerCrashed(
            f"The worker died during `{command}`: {_exit_words(code)}.",
            why=tail,
            fix=f"The whole log is {self.log}.",
        )

    def log_tail(self, lines: int = 8) -> str:
        """The last lines that the worker's runtimes printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def kill(self) -> None:
        """End the worker and everything it started. Safe to call twice."""
        if self._killed:
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._answers.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _exit_words(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


def _revive(record: Mapping[str, str]) -> PeregrineError:
    """The worker's error as an object here, of the same class where it is one of ours."""
    kind = getattr(errors, record["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, PeregrineError)):
        kind = WorkerError
    return kind(record["what"], why=record["why"], fix=record["fix"])
