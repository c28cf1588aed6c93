"""Times inferences by CUDA events: by the GPU's own clock, without launching and waiting.

Through the driver's library alone, so that it serves every runtime that shows its stream. Events
have a resolution of about half a microsecond (CUDA Driver API, `cuEventElapsedTime`).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager

from peregrine.backends.base import Session

_LIBRARY = "libcuda.so.1"


class _CudaError(Exception):
    """A call of the driver that failed; its code."""


def time_by_events(session: Session, *, runs: int, max_s: float) -> list[float] | None:
    """Milliseconds of single inferences on what is bound, between two events on the session's
    stream; `runs` of them, or as many as `max_s` seconds allow and one at least.

    One inference is in flight already when the first event is recorded, so that the timed one is
    launched before its turn comes: gaps that the runtime itself leaves between its kernels count,
    the launch does not, unless launching takes longer than computing.

    None where the session shows no stream, or there is no CUDA driver or context here.
    """
    if session.cuda_stream() is None:
        return None
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    try:
        with _event(driver) as start, _event(driver) as end:
            taken: list[float] = []
            deadline = time.monotonic() + max_s
            while len(taken) < runs and (not taken or time.monotonic() < deadline):
                session.enqueue()
                _record(driver, start, session)
                session.enqueue()
                _record(driver, end, session)
                session.synchronize()
                _check(driver.cuEventSynchronize(end))
                elapsed = ctypes.c_float()
                _check(driver.cuEventElapsedTime(ctypes.byref(elapsed), start, end))
                taken.append(elapsed.value)
            return taken
    except _CudaError:
        # No context on this thread, say. The host's clock has timed it already.
        session.synchronize()
        return None


def _record(driver: ctypes.CDLL, event: ctypes.c_void_p, session: Session) -> None:
    # Asked for each time: a runtime may go over to another stream once it has captured a graph.
    _check(driver.cuEventRecord(event, ctypes.c_void_p(session.cuda_stream())))


@contextmanager
def _event(driver: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    event = ctypes.c_void_p()
    _check(driver.cuEventCreate(ctypes.byref(event), 0))
    try:
        yield event
    finally:
        driver.cuEventDestroy_v2(event)


def _check(code: int) -> None:
    if code != 0:
        raise _CudaError(code)
