"""Worker processes that fill Triton's cache: plain interpreters that read one kernel a line and
compile it. They import no torch and need no GPU, and a caller's main module is not run again."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TextIO

_WORKERS = "PEREGRINE_COMPILE_WORKERS"
"""Environment variable: how many processes compile; by default one a processor, at most 16."""


class Compiler:
    """A pool of workers, started when first needed, each driven by one thread."""

    def __init__(self, workers: int | None = None) -> None:
        count = workers or int(os.environ.get(_WORKERS, "0")) or min(16, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, "peregrine-compile")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._stopped = False

    def submit(self, kernel: Mapping[str, Any]) -> Future[str]:
        """Start compiling what `_triton.specialise` gave. The result is an error's first line,
        empty where the kernel is in the cache."""
        return self._threads.submit(self._compile, json.dumps(kernel))

    def stop(self) -> None:
        """End the workers at once; what waits is dropped, and no half-written entry is ever seen.
        Called at exit and for Ctrl-C."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, line: str) -> str:
        process = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            process = self._own.process = self._start()
        if process is None:
            return "compilation was stopped"
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            # A crash of the compiler itself, which some tilings provoke: one kernel less.
            process.wait()
            return f"the compiler ended with code {process.returncode}"
        return str(json.loads(answer))

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # The compiler prints its IR where it fails.
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is the parent's to answer
            )
            self._processes.append(process)
            return process


_shared: Compiler | None = None
_shared_lock = threading.Lock()


def shared() -> Compiler:
    """The pool of this process, which ends with it."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Compiler()
            atexit.register(_shared.stop)
        return _shared


def stop() -> None:
    """End the shared workers, as after Ctrl-C; the next use starts new ones."""
    global _shared
    with _shared_lock:
        if _shared is not None:
            atexit.unregister(_shared.stop)
            _shared.stop()
            _shared = None


def _serve(requests: TextIO, answers: TextIO) -> None:
    """In a worker: until the parent closes the pipe or ends."""
    for line in requests:
        answers.write(json.dumps(_compile(json.loads(line))) + "\n")
        answers.flush()


def ast_source(kernel: Mapping[str, Any]) -> Any:
    """Triton's source of a kernel that `_triton.specialise` described and JSON has carried.

    Raises:
        ImportError, AttributeError: there is no such kernel.
    """
    from importlib import import_module

    from triton.compiler import ASTSource

    function = getattr(import_module(kernel["module"]), kernel["name"])
    source = ASTSource
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source = GluonASTSource
    return source(
        function,
        kernel["signature"],
        {tuple(path): value for path, value in kernel["constants"]},
        {tuple(path): value for path, value in kernel["attributes"]},
    )


def _compile(kernel: Mapping[str, Any]) -> str:
    import triton
    from triton.backends.compiler import GPUTarget

    try:
        triton.compile(
            ast_source(kernel),
            target=GPUTarget(*kernel["target"]),
            # JSON has no tuples, and the cache's key tells them from lists.
            options={
                name: _tuples(value) if isinstance(value, list) else value
                for name, value in kernel["options"].items()
            },
        )
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is a row of the tuning
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
