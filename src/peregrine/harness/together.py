"""Several sessions at once: a thread for each, throughput of all, latency of every inference.

Each thread is a client that waits for its answer before it asks again. Python's lock is held
between inferences only, since runtimes let go of it while they compute; where an inference takes
microseconds, the clients' own work shows.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from peregrine.backends.base import Session
from peregrine.harness.clock import Budget, Clock, collector_off, single_inference
from peregrine.results import Boundary
from peregrine.types import Array, Feeds

_FIRST_RUNS = 3
"""One session after the other: the first inferences compile, allocate, record a CUDA graph."""
_SWITCH_S = 5e-5
"""How long a client may keep Python's lock from another that has its answer; 5 ms by default,
which would be the tail of every inference shorter than that."""
_WARM_S = 0.2
"""All at once, before the first sample."""


@dataclass(frozen=True, slots=True)
class Together:
    """What several sessions did side by side."""

    throughput_per_s: float
    """Items a second: the sum of each client's own rate."""
    samples_ms: tuple[float, ...]
    """Every timed inference, client by client."""
    outputs: tuple[dict[str, Array], ...]
    """Of each session's last timed inference."""


@dataclass(slots=True)
class _Client:
    session: Session
    feeds: Feeds
    taken_ns: list[int] = field(default_factory=list)
    busy_ns: int = 0
    outputs: dict[str, Array] = field(default_factory=dict)
    error: BaseException | None = None


def measure_together(
    sessions: Sequence[Session],
    feeds: Sequence[Feeds],
    batch: int,
    boundary: Boundary,
    budget: Budget,
    *,
    clock: Clock = time.perf_counter_ns,
) -> Together:
    """Run every session in a thread of its own, the first in the caller's, until `budget` is spent.

    Goes on until all together made `min_runs` inferences and `min_s` seconds have passed, or for
    `max_s` seconds; each client makes at least one.

    Args:
        sessions: one a client.
        feeds: of `batch` items, one a session: where they differ, answers that get mixed up show.
        batch: items of an inference.
        boundary: device: bound once, then `enqueue` and `synchronize`; host: `run`.
        budget: see above; the rest of it is not used.
        clock: nanoseconds.

    Raises:
        Exception: what the first session to fail raised; the others are stopped.
    """
    clients = [_Client(s, f) for s, f in zip(sessions, feeds, strict=True)]
    crowd = _Crowd(clients, boundary, budget, clock)
    threads = [
        threading.Thread(target=crowd.attend, args=(client,), daemon=True) for client in clients[1:]
    ]
    with collector_off(), _quick_switches():
        for thread in threads:
            thread.start()
        # What a runtime keeps for each thread lies with the one that compiled: the first client's.
        crowd.attend(clients[0])
        for thread in threads:
            thread.join()
    for client in clients:
        if client.error is not None:
            raise client.error
    return Together(
        sum(len(c.taken_ns) * batch / (max(c.busy_ns, 1) / 1e9) for c in clients),
        tuple(ns / 1e6 for c in clients for ns in c.taken_ns),
        tuple(c.outputs for c in clients),
    )


@contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Crowd:
    """The clients' common turns: first runs one by one, warm-up and measurement all at once."""

    def __init__(
        self, clients: Sequence[_Client], boundary: Boundary, budget: Budget, clock: Clock
    ) -> None:
        self._clients = clients
        self._boundary = boundary
        self._budget = budget
        self._clock = clock
        self._alone = threading.Lock()
        self._start = threading.Barrier(len(clients))

    def attend(self, client: _Client) -> None:
        """One client's whole life, in a thread of its own. A single one needs no other stream."""
        try:
            one = len(self._clients) == 1
            with nullcontext() if one else client.session.own_stream():
                self._infer(client)
        except threading.BrokenBarrierError:
            pass  # another one failed, and says why
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            client.error = error
            self._start.abort()

    def _infer(self, client: _Client) -> None:
        clock, taken = self._clock, client.taken_ns
        with self._alone:
            once = single_inference(client.session, client.feeds, self._boundary)
            for _ in range(_FIRST_RUNS):
                once()
        self._start.wait()
        warm_until = clock() + int(_WARM_S * 1e9)
        while clock() < warm_until:
            once()
        self._start.wait()
        began = clock()
        while True:
            start = clock()
            answer = once()
            end = clock()
            taken.append(end - start)
            if self._start.broken or self._enough(end - began):
                break
        client.busy_ns = end - began
        client.outputs = answer if isinstance(answer, dict) else client.session.fetch()

    def _enough(self, spent_ns: int) -> bool:
        budget = self._budget
        if spent_ns < budget.min_s * 1e9:
            return False
        runs = sum(len(c.taken_ns) for c in self._clients)
        return runs >= budget.min_runs or spent_ns >= budget.max_s * 1e9
