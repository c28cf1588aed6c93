"""What a bundle says of itself, and the proof that its files are what was written.

`manifest.json` lists every file with its size and SHA-256; `manifest.sha256` does the same for
the manifest, in the format of `sha256sum -c`. This tells a truncated, damaged or edited bundle
from a whole one. It is no signature: whoever can rewrite every file can rewrite the hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from peregrine.errors import BundleCorrupt, BundleError
from peregrine.fingerprint import Fingerprint
from peregrine.results import to_builtins
from peregrine.types import Candidate, DimRange, Precision, Profile, Target, TensorSpec

FORMAT = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
MODEL = "model"
ARTIFACT = "artifact"
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 in hex."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a bundle but the bytes of its files."""

    name: str
    created: str
    """UTC, ISO 8601."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    candidate: Candidate
    target: Target
    fingerprint: Fingerprint
    code: str = ""
    """`package.module:factory` where rebuilding the module needs the user's code."""
    validation: Mapping[str, Any] | None = None
    """The judgement that let the candidate win, as in report.json."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Path inside the bundle, with forward slashes -> what it must be."""

    @property
    def has_artifact(self) -> bool:
        return any(name.startswith(f"{ARTIFACT}/") for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` is its inverse."""
        profile = {k: [r.min, r.opt, r.max] for k, r in self.target.profile.dims.items()}
        return {
            "format": FORMAT,
            "name": self.name,
            "created": self.created,
            "inputs": to_builtins(self.inputs),
            "outputs": to_builtins(self.outputs),
            "candidate": {"id": self.candidate.id, **to_builtins(self.candidate)},
            "target": {
                "device": self.target.device,
                "threads": self.target.threads,
                "profile": profile,
            },
            "fingerprint": self.fingerprint.to_json(),
            "code": self.code,
            "validation": self.validation,
            "files": to_builtins(self.files),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """Raises KeyError, TypeError or ValueError for anything `to_json` did not write."""
        candidate, target = record["candidate"], record["target"]
        profile = Profile({k: DimRange(*sizes) for k, sizes in target["profile"].items()})
        return cls(
            name=record["name"],
            created=record["created"],
            inputs=_specs(record["inputs"]),
            outputs=_specs(record["outputs"]),
            candidate=Candidate(
                candidate["backend"],
                candidate["variant"],
                Precision(candidate["precision"]),
                dict(candidate["options"]),
                candidate.get("graph", ""),
            ),
            target=Target(target["device"], profile, target["threads"]),
            fingerprint=Fingerprint.from_json(record["fingerprint"]),
            code=record["code"],
            validation=record["validation"],
            files={name: FileRecord(**file) for name, file in record["files"].items()},
        )


def seal(directory: Path, manifest: Manifest) -> None:
    """Write the manifest and its hash."""
    content = json.dumps(manifest.to_json(), indent=1, sort_keys=True).encode()
    (directory / MANIFEST).write_bytes(content)
    (directory / SEAL).write_bytes(_seal_of(content))


def read(directory: Path, *, verify: bool = True) -> Manifest:
    """The manifest of a bundle, after checking the bundle against it.

    Args:
        verify: hash every file; otherwise only look at names and sizes.

    Raises:
        BundleError: there is no bundle, or it is of a newer format.
        BundleCorrupt: naming the file that is missing, changed, unlisted or outside.
    """
    if not directory.is_dir():
        raise BundleError(
            f"There is no bundle at {directory}.",
            fix="Make one: peregrine build MODEL --out DIRECTORY.",
        )
    content = _read_bytes(directory, MANIFEST)
    if _read_bytes(directory, SEAL) != _seal_of(content):
        raise corrupt(directory, MANIFEST, f"its SHA-256 is not the one in {SEAL}")
    try:
        record = json.loads(content)
        if record["format"] != FORMAT:
            raise BundleError(
                f"{directory} is a bundle of format {record['format']}; this Peregrine reads "
                f"format {FORMAT}.",
                fix="Load it with the version of Peregrine that wrote it, or build it again.",
            )
        manifest = Manifest.from_json(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(directory, MANIFEST, f"{type(error).__name__}: {error}") from error
    for name, expected in manifest.files.items():
        _check(directory, name, expected, verify=verify)
    for part in (MODEL, ARTIFACT):
        # Runtimes look into these themselves: what is not listed must not lie there.
        for name in files_in(directory, part):
            if name not in manifest.files:
                raise corrupt(directory, name, "the manifest does not list it")
    return manifest


def files_in(directory: Path, part: str) -> Iterator[str]:
    """Every file under `directory/part`, as paths inside `directory`, sorted."""
    for path in sorted((directory / part).rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(directory).as_posix()


def _check(directory: Path, name: str, expected: FileRecord, *, verify: bool) -> None:
    pure = PurePosixPath(name)
    path = directory / pure
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name
    if outside or not path.resolve().is_relative_to(directory.resolve()):
        raise corrupt(directory, name, "it lies outside the bundle")
    if not path.is_file():
        raise corrupt(directory, name, "it is missing")
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise corrupt(directory, name, f"it has {size} bytes, {expected.size} were written")
        if verify and FileRecord.of(path).sha256 != expected.sha256:
            raise corrupt(directory, name, "its SHA-256 is not the one in the manifest")
    except OSError as error:
        raise corrupt(directory, name, str(error)) from error


def _read_bytes(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise corrupt(directory, name, error.strerror or str(error)) from error


def corrupt(directory: Path, name: str, why: str) -> BundleCorrupt:
    """The error for a file of a bundle that is not what was written."""
    return BundleCorrupt(
        f"The bundle {directory} is damaged: {name}.",
        why=f"{name}: {why}.",
        fix="Copy the bundle again from where it was built, or build it again.",
    )


def _seal_of(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def _specs(records: list[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(r["name"], r["dtype"], tuple(r["shape"])) for r in records)
