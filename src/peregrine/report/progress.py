"""The race as it goes, for whoever waits: what runs, what is done, how long it may still take.

Nothing here may disturb what is being timed. The view is drawn when an event comes in; between
events a clock ticks once a second, and not at all while inferences are measured.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from peregrine.events import (
    CandidateDone,
    CandidateStarted,
    Event,
    FinalRoundDone,
    FinalStarted,
    Observer,
    PhaseStarted,
    Planned,
    Preparing,
    RunDone,
    RunStarted,
)
from peregrine.report import figures, words
from peregrine.report.table import BADGE_STYLES
from peregrine.report.words import plain
from peregrine.results import Boundary, CandidateResult

QUIET_PHASES = frozenset({"measure", "sweep", "final", "side by side"})
_AFTER_THE_ROWS = frozenset({"load", "load again", "build again", "side by side"})
"""Phases of the final and behind it that a log would else pass over for a minute."""
_TICK_S = 1.0
_FINAL_SHARE = 1.0
"""A final takes about as long as one row, until its first round has shown."""


class Tally:
    """What is known of a race in progress. Times are seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._rows_began: float | None = None
        self._final_began: float | None = None
        self._last_done = 0.0
        self._rows: set[str] = set()
        self._started: set[str] = set()
        self._done: set[str] = set()
        self._rounds = (0, 0)
        self.model = ""
        self.doing = "starting"
        self.current = ""
        self.quiet = False
        """Inferences are being timed now."""
        self.over = False

    def take(self, event: Event) -> None:
        """Learn from an event."""
        match event:
            case RunStarted():
                self.model = event.model
            case Preparing():
                self._doing(event.what)
            case Planned():
                self._rows = set(event.candidates)
            case CandidateStarted():
                self._rows.add(event.candidate)  # a repaired one was not planned
                self._started.add(event.candidate)
                if self._rows_began is None:
                    self._rows_began = self._clock()
                self._doing("starting", event.candidate)
            case PhaseStarted():
                detail = f" {event.detail}" if event.detail else ""
                self._doing(event.phase + detail, event.candidate, event.phase in QUIET_PHASES)
            case CandidateDone():
                self._finish(event.result.id)
            case FinalStarted():
                self._final_began = self._clock()
                self._rounds = (0, event.rounds)
                finalists = figures.count(len(event.finalists), "finalist")
                self._doing(f"final: {finalists}, round 1 of {event.rounds}", quiet=True)
            case FinalRoundDone():
                self._rounds = (event.round, event.rounds)
                following = min(event.round + 1, event.rounds)
                self._doing(f"final: round {following} of {event.rounds}", quiet=True)
            case RunDone():
                self.over = True
                self._doing("done")

    def _doing(self, what: str, candidate: str = "", quiet: bool = False) -> None:
        self.doing, self.current, self.quiet = what, candidate, quiet

    def _finish(self, candidate: str) -> None:
        self._done.add(candidate)
        if candidate in self._started:  # one that never started cost nothing
            self._last_done = self._clock()
        self._doing("next")

    @property
    def in_final(self) -> bool:
        return self._final_began is not None

    @property
    def total(self) -> int:
        """Rows that are run, without those that cannot."""
        return len(self._rows)

    @property
    def begun(self) -> int:
        """Rows that run or have run: several may at a time."""
        return len(self._started & self._rows)

    @property
    def done(self) -> int:
        return len(self._done & self._rows)

    @property
    def elapsed(self) -> float:
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds to go if the rows to come are like those done; None while that is unknown."""
        if self._final_began is not None:
            return self._final_left(self._final_began)
        ran = len(self._started & self._done)
        if self._rows_began is None or not ran:
            return None
        # By the pace at which rows came to their end, however many ran at a time.
        row = (self._last_done - self._rows_began) / ran
        since = self._clock() - self._last_done
        return max(0.0, row * (len(self._rows - self._done) + _FINAL_SHARE) - since)

    def _final_left(self, began: float) -> float | None:
        done, rounds = self._rounds
        if not done:
            return None
        so_far = self._clock() - began
        # The clock of the rounds: the running round's own time is in `so_far` too.
        return max(0.0, so_far / done * (rounds - done))


def outcome(result: CandidateResult) -> Text:
    """How a row ended, on one line."""
    state = words.badge(result)
    text = Text.assemble((plain(result.id), "bold"), "  ")
    if result.measurements:
        first = min(result.measurements, key=lambda m: (m.batch, m.boundary is Boundary.DEVICE))
        text.append(f"{figures.number(first.latency_ms.p50)} ms", "cyan")
        text.append(f" at batch {first.batch}  ")
    text.append(state, BADGE_STYLES[state])
    if not result.can_win:
        text.append("  " + " ".join(plain(words.reason(result)).split()))
    return text


@contextlib.contextmanager
def live(console: Console | None = None) -> Iterator[Observer]:
    """Show a race on standard error while the block runs.

    On a terminal, finished rows scroll by above one line of what runs now, which is gone when
    the block ends, by an exception or Ctrl-C too. On a pipe, one plain line an event.
    """
    console = console or Console(stderr=True)
    if console.is_interactive:
        with _on_terminal(console) as observer:
            yield observer
    else:
        yield _on_pipe(console)


def _on_pipe(console: Console) -> Observer:
    tally = Tally()

    def say(text: Text | str) -> None:
        stamp = Text(f"[{figures.clock(tally.elapsed):>5}] ")
        console.print(stamp + Text.assemble(text), soft_wrap=True, highlight=False)

    def observe(event: Event) -> None:
        tally.take(event)
        match event:
            case RunStarted():
                kept = f", {figures.count(event.resumed, 'row')} kept" if event.resumed else ""
                say(plain(f"{event.model} in {event.run_dir}{kept}"))
            case Preparing():
                say(plain(event.what))
            case Planned():
                say(figures.count(len(event.candidates), "candidate"))
            case CandidateStarted():
                say(plain(f"{tally.begun}/{tally.total} {event.candidate} ..."))
            case CandidateDone():
                say(outcome(event.result))
            case FinalStarted():
                finalists = ", ".join(event.finalists)
                say(plain(f"final, {figures.count(event.rounds, 'round')}: {finalists}"))
            case RunDone():
                winner = event.report.winner
                say(plain(f"done, winner: {winner.id}" if winner else "done, no winner"))
            case PhaseStarted() if tally.in_final and event.phase in _AFTER_THE_ROWS:
                detail = f", {event.detail}" if event.detail else ""
                say(plain(f"final: {event.phase}, {event.candidate}{detail}"))
            case FinalRoundDone():
                say(f"final: round {event.round} of {event.rounds} done")
            case PhaseStarted():  # for eyes that watch, not for a log
                pass

    return observe


@contextlib.contextmanager
def _on_terminal(console: Console) -> Iterator[Observer]:
    tally = Tally()
    wake = threading.Event()
    closing = False

    with Live(console=console, auto_refresh=False, transient=True) as view:

        def draw() -> None:
            view.update(_view(tally), refresh=True)

        def observe(event: Event) -> None:
            tally.take(event)
            if isinstance(event, CandidateDone):
                view.console.print(outcome(event.result), highlight=False)
            draw()
            wake.set()  # the ticker looks again whether it may tick

        def tick() -> None:
            while True:
                wake.clear()
                if closing:
                    return
                # While something is timed there is no timeout: asleep until the next event.
                woken = wake.wait(None if tally.quiet or tally.over else _TICK_S)
                if not woken:
                    draw()

        ticker = threading.Thread(target=tick, name="peregrine-progress", daemon=True)
        ticker.start()
        draw()
        try:
            yield observe
        finally:
            closing = True
            wake.set()
            ticker.join()


def _view(tally: Tally) -> Group:
    now = Text(no_wrap=True, overflow="ellipsis")
    now.append("▸ ", "cyan")
    now.append(plain(tally.current or tally.model), "bold")
    now.append(("  " if tally.current or tally.model else "") + plain(tally.doing), "cyan")
    spent = f"{tally.done}/{tally.total}  {figures.clock(tally.elapsed)}"
    if tally.left is not None:
        spent += f", about {figures.clock(tally.left)} left"
    if tally.quiet:
        spent += "  (clock stands still while timing)"
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(
        total=max(1, tally.total), completed=tally.done, width=24, complete_style="cyan"
    )
    grid.add_row(" ", bar, Text(spent, "dim", no_wrap=True, overflow="ellipsis"))
    return Group(now, grid)
