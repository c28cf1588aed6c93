"""Writing a bundle: all of it, or nothing."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from peregrine.bundle.manifest import (
    ARTIFACT,
    MANIFEST,
    MODEL,
    REPORT,
    FileRecord,
    Manifest,
    files_in,
    seal,
)
from peregrine.errors import BundleError
from peregrine.fingerprint import Fingerprint
from peregrine.model.model import Model
from peregrine.results import Validation, to_builtins
from peregrine.types import Candidate, Target


def write(
    out: Path,
    *,
    model: Model,
    candidate: Candidate,
    target: Target,
    fingerprint: Fingerprint,
    artifact: Path | None = None,
    report_json: Path | None = None,
    validation: Validation | None = None,
    force: bool = False,
) -> Path:
    """Write a bundle that `load` brings back, here or elsewhere.

    Args:
        out: the directory to make; missing parents are made too.
        model: its whole directory is copied: the portable graph and what rebuilds the module.
        candidate: the winner, `target`: what it was compiled for.
        fingerprint: what the artefact is valid for, of the interpreter that made it.
        artifact: the directory that the backend's `save` wrote; None, or an empty one, makes a
            bundle that is compiled again at every load.
        report_json: the race's report.
        validation: the judgement that let the candidate win.
        force: replace a bundle that is there. Anything else that is there is never touched.

    Returns:
        `out`, absolute.

    Raises:
        BundleError: something is there already, or cannot be written; nothing is left behind.
    """
    out = Path(out).absolute()
    _refuse_existing(out, force=force)
    # Beside `out`, so that the last step is a rename within one file system.
    draft = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        with _removed_in_the_end(draft):
            draft.mkdir(parents=True)
            _copy_tree(model.directory, draft / MODEL)
            if artifact is not None:
                _copy_tree(artifact, draft / ARTIFACT)
            if report_json is not None:
                shutil.copyfile(report_json, draft / REPORT)
            factory = model.module is not None and model.module.kind == "factory"
            manifest = Manifest(
                name=model.name,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                inputs=model.inputs,
                outputs=model.outputs,
                candidate=candidate,
                target=target,
                fingerprint=fingerprint,
                code=model.module.ref if model.module is not None and factory else "",
                validation=to_builtins(validation) if validation is not None else None,
                files={name: FileRecord.of(draft / name) for name in files_in(draft, ".")},
            )
            seal(draft, manifest)
            _put(draft, out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise BundleError(
            f"The bundle could not be written to {out}.",
            why=f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
            fix="Free disk space or write it elsewhere; nothing half-written was left."
            if full
            else "Write it where you have permission; nothing half-written was left.",
        ) from error
    return out


def _refuse_existing(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        if (out / MANIFEST).is_file():
            if force:
                return
            raise BundleError(
                f"There is a bundle at {out} already.",
                fix="Write to another directory, or allow replacing it with --force.",
            )
    raise BundleError(
        f"{out} exists and is not a bundle, so it is left alone.",
        fix="Write to another directory, or remove it yourself.",
    )


def _copy_tree(source: Path, destination: Path) -> None:
    """Copy the files of a directory, links as what they point at, without byte code."""

    def stop(error: OSError) -> None:
        raise error

    for directory, folders, files in os.walk(source, followlinks=True, onerror=stop):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        target = destination / Path(directory).relative_to(source)
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.copyfile(Path(directory, name), target / name)


def _put(draft: Path, out: Path) -> None:
    """Rename into place; an older bundle is moved aside first and deleted last."""
    if not out.exists():
        draft.rename(out)
        return
    old = draft.with_name(f"{draft.name}.old")
    out.rename(old)
    try:
        draft.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


@contextlib.contextmanager
def _removed_in_the_end(draft: Path) -> Iterator[None]:
    """What is still there under the draft's name at the end is half a bundle."""
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)
