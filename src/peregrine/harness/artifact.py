"""The winner of a race made into a bundle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from peregrine import bundle
from peregrine.errors import RunDirectoryError
from peregrine.fingerprint import current
from peregrine.harness.graphs import Graphs
from peregrine.harness.rundir import RunDirectory
from peregrine.harness.trial import artifact_of
from peregrine.model.model import Model
from peregrine.results import Report, to_builtins
from peregrine.types import Profile, Target


def keep_winner(run: RunDirectory, report: Report, out: Path, *, force: bool = False) -> Path:
    """Write the winner's artefact, the model and the report to `out`.

    The fingerprint takes its versions from the worker that built the artefact, which may have
    run in another interpreter than this one.

    Raises:
        RunDirectoryError: the run has no winner, or its artefact is gone.
    """
    winner = report.winner
    row = report.candidate(winner.id) if winner else None
    if winner is None or row is None:
        raise RunDirectoryError(f"{run.path} has no winner.", fix="Run the race to its end.")
    request = run.request
    candidate = row.candidate
    model = Graphs(run, Model.open(run.file("model")), request).model(candidate.graph)
    batch = winner.batch
    target = Target(request.device, Profile.fixed(model.sizes(batch)), request.threads)
    artifact = artifact_of(run, candidate, batch)
    if not artifact.is_dir():
        raise RunDirectoryError(
            f"The winner's artefact {artifact} is gone.", fix="Run the race again."
        )
    fingerprint = current(
        model,
        candidate,
        target,
        versions=row.versions,
        python=".".join(row.python.split(".")[:2]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        report_json = Path(scratch) / "report.json"
        report_json.write_text(json.dumps(to_builtins(report)))
        return bundle.write(
            out,
            model=model,
            candidate=candidate,
            target=target,
            fingerprint=fingerprint,
            artifact=artifact,
            report_json=report_json,
            validation=row.validation,
            force=force,
        )
