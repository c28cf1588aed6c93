"""Every error a user can meet, as a tree. Each says what went wrong, why, and the exact fix.

PeregrineError
├── UsageError            exit 2   what the user typed or passed
│   ├── OptionError                an option, a backend name, an objective
│   └── FeedError                  an input's name, shape, dtype or values
├── ModelError            exit 3   the model cannot be read, checked or exported
│   ├── ModelNotFound
│   ├── ModelCorrupt
│   ├── ModelUntrusted             a pickle, which can execute code
│   └── ExportError
├── BackendError          exit 4   a runtime cannot do what a candidate asks
│   ├── BackendUnavailable         not installed, or nothing to run it on
│   ├── Unsupported                an operator, dtype or precision it lacks
│   └── PlacementError             ran somewhere else than asked
├── WorkerError           exit 5   a worker process did not come back
│   ├── WorkerCrashed
│   ├── WorkerTimeout
│   └── WorkerOutOfMemory
├── RunError              exit 6   the race as a whole cannot go on
│   ├── RunDirectoryError          unwritable, full, not a run
│   ├── ReferenceFailed            no reference outputs to judge by
│   └── NoCandidate                nothing can run here at all
├── BundleError           exit 7
│   ├── BundleCorrupt
│   └── FingerprintMismatch
└── EnvironmentFailure    exit 8   making or using a backend's environment
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeregrineError(Exception):
    """Base of all. `what` happened, `why`, and `fix`: the command or change that helps."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    @property
    def reason(self) -> str:
        """What happened and why, without the fix: the reason of a row that ended here."""
        return f"{self.what}\n{self.why}" if self.why else self.what

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"Why: {self.why}")
        if self.fix:
            parts.append(f"Fix: {self.fix}")
        return "\n".join(parts)


class UsageError(PeregrineError):
    """What the user typed or passed does not fit."""

    exit_code = 2


class OptionError(UsageError):
    """An unknown or contradictory option, backend name or objective."""


class FeedError(UsageError):
    """An input's name, shape, dtype or values do not fit the model."""


class ModelError(PeregrineError):
    """The model cannot be read, checked or exported."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No file, zoo entry or factory of that name."""


class ModelCorrupt(ModelError):
    """The file is not what it claims to be, or fails the checker."""


class ModelUntrusted(ModelError):
    """Loading the file could execute code."""


class ExportError(ModelError):
    """A PyTorch module could not be turned into an equivalent ONNX graph."""


class BackendError(PeregrineError):
    """A runtime cannot do what a candidate asks."""

    exit_code = 4


class BackendUnavailable(BackendError):
    """The runtime is not installed, or there is no device to run it on."""


class Unsupported(BackendError):
    """The runtime lacks an operator, dtype, precision or shape of the model."""


class PlacementError(BackendError):
    """Nodes ran somewhere else than the candidate asked."""


class WorkerError(PeregrineError):
    """A worker process did not come back with an answer."""

    exit_code = 5


class WorkerCrashed(WorkerError):
    """It died: a signal, an abort, an interpreter that would not start."""


class WorkerTimeout(WorkerError):
    """It did not answer in time and was killed."""


class WorkerOutOfMemory(WorkerError):
    """It passed its memory limit, or an allocation failed."""


class RunError(PeregrineError):
    """The race as a whole cannot go on."""

    exit_code = 6


class RunDirectoryError(RunError):
    """The run directory is unwritable, full, or not a run."""


class ReferenceFailed(RunError):
    """There are no trustworthy reference outputs to judge candidates by."""


class NoCandidate(RunError):
    """Nothing can run this model here at all."""


class BundleError(PeregrineError):
    """A bundle cannot be written or read."""

    exit_code = 7


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, truncated or changed."""


class FingerprintMismatch(BundleError):
    """The bundle's engine was built for another machine or other versions."""


class EnvironmentFailure(PeregrineError):
    """A backend's own environment cannot be made or used."""

    exit_code = 8


def cannot_read(runtime: str, name: str, why: str) -> ModelCorrupt:
    """What a runtime says of an ONNX file that is damaged or malformed."""
    return ModelCorrupt(
        f"{runtime} cannot read {name}.",
        why=why,
        fix="Export it again, and run onnx.checker.check_model over the file.",
    )


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """` Did you mean 'latency'?`, to end a `what` with; empty where nothing is like `word`."""
    near = nearest(word, known, cutoff)
    return f" Did you mean {near!r}?" if near else ""


def nearest(word: str, known: Iterable[str], cutoff: float) -> str:
    """The one of `known` most like `word`, at least by `cutoff` (0 to 1, as
    `difflib.SequenceMatcher.ratio` counts); or empty."""
    return next(iter(difflib.get_close_matches(word, [*map(str, known)], n=1, cutoff=cutoff)), "")
