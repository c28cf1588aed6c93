"""What candidates are judged by: inputs, and the reference's outputs for them.

The reference is PyTorch fp32 eager where the model has a module, else ONNX Runtime on the CPU
in fp32 with graph optimisations off. It runs in a worker like everything else.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.backends import registry
from peregrine.environments import interpreter_for
from peregrine.errors import BackendUnavailable, PeregrineError, ReferenceFailed
from peregrine.harness import wire
from peregrine.harness.batching import tile
from peregrine.harness.judged import IMAGES as IMAGES
from peregrine.harness.judged import RANDOM_SETS, write_inputs
from peregrine.harness.judged import FeedSet as FeedSet
from peregrine.harness.judged import image_chunk as image_chunk
from peregrine.harness.process import Worker
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.results import ReferenceRecord
from peregrine.types import Array, Candidate, Feeds, Profile, Target
from peregrine.validate import check_reference

_INDEPENDENT = 1e-3
_FILE = "judging.json"


@dataclass(frozen=True, slots=True)
class Judging:
    """Everything a candidate is judged by."""

    workflow: str
    sets: tuple[FeedSet, ...]
    images: tuple[str, ...] = ()
    """Names of the items in `feeds/images`, in order: photos, or rows of arrays that a split left
    to judge. Empty when there are none."""
    labels: tuple[int, ...] = ()
    """Class of each image; empty when they have none."""
    rows_independent: bool = False
    """Whether a row's output does not depend on the other rows of its batch."""
    top1: float | None = None
    kind: str = IMAGES
    """What `images` are, in a word: `images` or `items`."""
    split: str = ""
    """What calibrates and what judges, for the report; empty where nothing calibrates."""
    calibrating: tuple[str, ...] = ()
    """Names of the items that calibrate."""

    @property
    def calibration(self) -> bool:
        """Whether there is calibration data in the run directory."""
        return bool(self.calibrating)

    @property
    def has_real(self) -> bool:
        """Whether anything but random numbers judges."""
        return bool(self.images) or any(s.real for s in self.sets)

    def for_batch(self, batch: int) -> tuple[FeedSet, ...]:
        return tuple(s for s in self.sets if s.batch == batch)

    def lead(self, batch: int) -> FeedSet:
        """The set that stands for a batch: its own, or the first one with its rows repeated."""
        return next(iter(self.for_batch(batch)), self.sets[0])

    def expected(self, run: RunDirectory, model: Model, batch: int) -> dict[str, Array]:
        """The reference's outputs for `lead(batch)` at that batch."""
        outputs = self.lead(batch).outputs(run)
        return tile(model.outputs, model.batch, outputs, batch)

    def image_outputs(self, run: RunDirectory) -> dict[str, Array]:
        return wire.load_arrays(run.file("reference", IMAGES))

    def record(self) -> ReferenceRecord:
        words = list(dict.fromkeys(s.words for s in self.sets))
        if self.images:
            words.append(f"{len(self.images)} {self.kind}" + (", labelled" if self.labels else ""))
        return ReferenceRecord(self.workflow, tuple(words), self.top1, self.split)

    def save(self, run: RunDirectory) -> None:
        run.write_json(_FILE, self)

    @classmethod
    def load(cls, run: RunDirectory) -> Judging | None:
        """What an earlier, interrupted run had made; None when it had not come so far."""
        try:
            record = json.loads(run.file(_FILE).read_text())
        except OSError:
            return None
        record["sets"] = tuple(FeedSet(**s) for s in record["sets"])
        for key in ("images", "labels", "calibrating"):
            record[key] = tuple(record.get(key, ()))
        return cls(**record)


def reference_candidate(model: Model) -> tuple[Candidate, str]:
    """The candidate that others are judged by, and its name in words."""
    if model.module is not None and interpreter_has("pytorch"):
        return Candidate("pytorch", "eager"), "PyTorch fp32 eager"
    return (
        Candidate("onnxruntime", "CPUExecutionProvider", options={"optimization": "disabled"}),
        "ONNX Runtime CPU fp32, graph optimisations off",
    )


def interpreter_has(backend: str) -> bool:
    """Whether a backend could run in this interpreter; imports no runtime."""
    return registry.get(backend).available().ok


def make_judging(
    run: RunDirectory,
    model: Model,
    request: Request,
    given: Sequence[Feeds],
    say: Callable[[str], None],
    calibrating: Iterable[Any] | None = None,
) -> Judging:
    """Write the inputs, run the reference on those that judge, and check that it can be trusted.

    Args:
        run: where they are kept.
        model: what is raced.
        request: what the user named.
        given: a program's inputs to judge on.
        say: told what is at work.
        calibrating: a program's feeds to calibrate with.

    Raises:
        ReferenceFailed: it could not run, or gave NaN or Inf.
        FeedError, OptionError: as of `judged.write_inputs`.
    """
    shutil.rmtree(run.file("reference"), ignore_errors=True)
    written = write_inputs(run, model, request, given, calibrating)
    sets, images, labels = written.sets, written.images, written.labels
    candidate, workflow = reference_candidate(model)
    say(f"computing the reference ({workflow})")
    log = run.file("logs", "reference.log")
    with Worker(interpreter_for(candidate.backend), log=log) as worker:
        try:
            first = sets[0].batch
            target = Target(profile=Profile.fixed(model.sizes(first)), threads=request.threads)
            worker.call(
                "open",
                timeout_s=request.timeout_s,
                backend=registry.resolve(candidate.backend),
                model=str(model.directory),
                candidate=wire.encode_candidate(candidate),
                target=wire.encode_target(target),
            )
            for feed_set in sets:
                _reference_outputs(worker, run, feed_set.name, feed_set.batch, request)
            independent = bool(model.batch) and _rows_independent(worker, run, model, request)
            if images:
                say(f"computing the reference on {len(images)} {written.kind}")
                chunk = image_chunk(model, first)
                _reference_outputs(worker, run, IMAGES, chunk, request, stream=True)
        except BackendUnavailable as error:
            raise ReferenceFailed(
                f"The reference ({workflow}) cannot run here.", why=error.what, fix=error.fix
            ) from error
        except ReferenceFailed:
            raise
        except PeregrineError as error:
            raise ReferenceFailed(
                f"The reference ({workflow}) could not run this model.",
                why=error.reason,
                fix=error.fix or _advice(model, log),
            ) from error
    judging = Judging(
        workflow,
        sets,
        images,
        labels,
        independent,
        kind=written.kind,
        split=written.split,
        calibrating=written.calibrating,
    )
    for feed_set in sets:
        check_reference([feed_set.outputs(run)])
    if images:
        outputs = judging.image_outputs(run)
        check_reference([outputs])
        if labels:
            predicted = outputs[model.outputs[0].name].argmax(axis=-1)
            top1 = float(np.mean(predicted == np.asarray(labels)))
            judging = dataclasses.replace(judging, top1=top1)
    judging.save(run)
    return judging


def _advice(model: Model, log: Path) -> str:
    """What to try when the reference fails: sizes that were guessed are the usual cause."""
    if not model.dims:
        return f"See {log}."
    sizes = ", ".join(f"{name}={size}" for name, size in model.dims.items())
    return (
        f"It ran with {sizes}. If the network is meant for other sizes, name them with --dim; "
        f"else see {log}."
    )


def _reference_outputs(
    worker: Worker,
    run: RunDirectory,
    name: str,
    batch: int,
    request: Request,
    *,
    stream: bool = False,
) -> None:
    worker.call(
        "stream" if stream else "outputs",
        timeout_s=request.timeout_s,
        feeds=str(run.file("feeds", name)),
        batch=batch,
        out=str(run.file("reference", name)),
    )


def _rows_independent(worker: Worker, run: RunDirectory, model: Model, request: Request) -> bool:
    """Whether repeating the rows of a batch repeats its outputs, as the reference has it.

    Only then may a swept batch be made of repeated rows and judged by the rows' own outputs.
    """
    name, single, triple = "independence", run.file("reference", "one"), run.file("reference", "3")
    feeds = random_feeds(model, 2, request.seed + RANDOM_SETS)
    base = wire.save_arrays(run.file("feeds", name), feeds)
    for batch, out in ((2, single), (3, triple)):
        worker.call(
            "outputs", timeout_s=request.timeout_s, feeds=str(base), batch=batch, out=str(out)
        )
    expected = tile(model.outputs, model.batch, wire.load_arrays(single), 3)
    got = wire.load_arrays(triple)
    for path in (single, triple, base):
        shutil.rmtree(path)
    return all(_close(expected[n], got[n]) for n in expected)


def _close(expected: Array, got: Array) -> bool:
    if expected.shape != got.shape:
        return False
    if expected.dtype.kind in "iub":
        return bool(np.array_equal(expected, got))
    scale = float(np.linalg.norm(expected.astype(np.float64).ravel())) or 1.0
    error = float(np.linalg.norm((got.astype(np.float64) - expected).ravel()))
    return error <= _INDEPENDENT * scale
