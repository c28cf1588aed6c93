"""The contract between a workflow and the race.

A `Backend` is stateless and cheap: its module imports the runtime inside methods only, so
that importing it costs nothing and says nothing about what is installed. A `Session` is a
compiled candidate that lives on a device. Neither ever times itself: the caller holds the clock.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from peregrine.errors import FeedError, OptionError
from peregrine.model.feeds import check_feeds as check_feeds
from peregrine.model.graphs import Graph, base_graph
from peregrine.model.model import Model
from peregrine.types import (
    Array,
    Candidate,
    Feeds,
    Placement,
    Profile,
    Support,
    Target,
    TensorSpec,
)


class Session(abc.ABC):
    """A compiled candidate on a device.

    The device boundary is `bind` once, then `enqueue` + `synchronize` per inference. The host
    boundary is `run`, from numpy to numpy. `enqueue` may be called any number of times before
    `synchronize`: `parallelism` inferences are then in flight, and a further call waits for room.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile
    """The sizes this session serves without being compiled again."""
    parallelism: int = 1
    """Inferences that may be in flight at once."""
    alone: str = ""
    """Why no second session of this candidate may live in the same process; empty: it may."""

    @abc.abstractmethod
    def bind(self, feeds: Feeds) -> None:
        """Place the inputs on the device and allocate outputs for their sizes."""

    @abc.abstractmethod
    def enqueue(self) -> None:
        """Start one inference on what is bound. May return before it is done."""

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Return when every started inference is done."""

    @abc.abstractmethod
    def fetch(self) -> dict[str, Array]:
        """Outputs of the last inference as host arrays that the caller owns."""

    def cuda_stream(self) -> int | None:
        """The CUDA stream that `enqueue` works on now, as the driver's handle (0 is the default
        stream); None where the runtime shows none. CUDA events are recorded on it."""
        return None

    def own_stream(self) -> AbstractContextManager[object]:
        """Within it, this thread's calls of this session wait for nobody else's: on a GPU they
        go to a stream of their own. Does nothing where every session has its own anyway."""
        return nullcontext()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """One inference from host arrays to host arrays. Override where a shorter way exists."""
        self.bind(feeds)
        self.enqueue()
        self.synchronize()
        return self.fetch()

    @abc.abstractmethod
    def placement(self, feeds: Feeds) -> Placement:
        """Where the nodes run, from the runtime's own record of an inference of `feeds`."""

    def close(self) -> None:  # noqa: B027  # most sessions need nothing released
        """Release the device. Safe to call twice."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(abc.ABC):
    """One inference workflow. To add one, subclass this in one file and name it in an
    entry point of the group `peregrine.backends`."""

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()
    """PyPI distributions whose versions decide what this backend does; recorded in every row."""
    times_kernels: ClassVar[bool] = False
    """Whether a library of its chooses kernels by timing them on the device, when it builds or
    first runs: nothing else may be busy there meanwhile. Who times kernels in Python takes
    `peregrine.turns.my_turn` instead, around each timing."""

    @abc.abstractmethod
    def available(self) -> Support:
        """Whether the runtime can run in this interpreter, on this machine."""

    @abc.abstractmethod
    def supports(self, model: Model, target: Target) -> Support:
        """Whether this backend can take this model at all; cheap, never compiles."""

    @abc.abstractmethod
    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        """The rows worth racing, best guess first."""

    def on_request(self, model: Model, target: Target) -> Iterable[Candidate]:
        """Rows that run as well, and that are raced only where somebody names them: they take
        minutes to build, say, and have won nothing so far. None by default."""
        return ()

    def refines(self, candidate: Candidate, target: Target) -> bool:
        """Whether one of `candidates` is only another setting of a row before it: it is raced
        after the others, and only where that row came near the fastest, or did not run."""
        return False

    @abc.abstractmethod
    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Build a session that serves `target.profile`.

        Raises `Unsupported` for what the runtime lacks and `BackendUnavailable` when it built
        but cannot run here.
        """

    def save(self, session: Session, directory: Path) -> None:  # noqa: B027  # optional
        """Write what `load` needs to come back faster than `compile`.

        Writing nothing is allowed: `load` then gets an empty directory and compiles.
        """

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        """Bring back a session that `save` wrote; by default, compile it again."""
        return self.compile(model, candidate, target)


def check_sizes(profile: Profile, dims: Mapping[str, int]) -> None:
    """Refuse sizes that a session was not compiled for.

    Raises:
        FeedError: naming each symbol with the size it got and the sizes it may have.
    """
    if profile.covers(dims):
        return
    allowed = {
        name: str(r.min) if r.min == r.max else f"{r.min} to {r.max}"
        for name, r in profile.dims.items()
    }
    wrong = [
        f"{name}={size} (compiled for {allowed.get(name, 'no such symbol')})"
        for name, size in dims.items()
        if not profile.covers({name: size})
    ]
    raise FeedError(
        f"The session does not serve {', '.join(wrong)}.",
        fix="Feed these sizes, or compile a session for a profile that holds the others.",
    )


def check_graph(candidate: Candidate, model: Model) -> None:
    """Refuse a model directory that holds another graph than the candidate reads: its row would
    be timed and judged under a name that is not what ran.

    Raises:
        OptionError: naming both graphs; also where the graph has another precision than the
            candidate, or is none that there is.
    """
    if candidate.graph != model.graph:
        raise OptionError(
            f"{candidate.id} reads {_graph_words(candidate.graph)} of {model.name}, "
            f"and was given {_graph_words(model.graph)}.",
            fix="Convert the model to the candidate's graph, and compile what that wrote.",
        )
    if not candidate.graph:
        return
    try:
        precision = base_graph(candidate.graph).precision
    except ValueError:
        raise OptionError(
            f"There is no graph {candidate.graph!r}.",
            fix=f"Use one of: {', '.join(Graph)}.",
        ) from None
    if precision is not candidate.precision:
        raise OptionError(
            f"{candidate.id}: the graph {candidate.graph} is {precision}, not "
            f"{candidate.precision}.",
            fix=f"Ask for a candidate of precision {precision}.",
        )


def _graph_words(name: str) -> str:
    return f"the graph {name}" if name else "the graph as it came"


def options_of(candidate: Candidate, defaults: Mapping[str, object]) -> dict[str, object]:
    """A candidate's options over a backend's defaults; unknown keys raise `OptionError`."""

    for key in candidate.options:
        if key not in defaults:
            raise OptionError(
                f"{candidate.backend} has no option {key!r}.",
                fix=f"Use one of: {', '.join(sorted(defaults))}.",
            )
    return {**defaults, **candidate.options}
