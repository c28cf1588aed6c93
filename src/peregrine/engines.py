"""Engines kept between runs: what a backend saved of a session, by all that it is valid for."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peregrine import backends
from peregrine.fingerprint import Fingerprint, differences
from peregrine.model.model import Model
from peregrine.store import LIMIT, Store, cache_directory
from peregrine.types import Candidate, Precision, Target

# What reading an entry that another version of Peregrine wrote may raise.
_ANOTHER_FORMAT = (KeyError, TypeError, ValueError)
_TIMINGS = "timings"
_WORTH_BYTES_PER_S = 100 << 20
"""An engine is kept where it took a second for each of these bytes to build: about 300 MiB are
copied and hashed in a second, and a runtime takes its time to load them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One engine by everything that decides it."""

    model: str
    """The model's name, for people: the fingerprint has its content."""
    candidate: Candidate
    fingerprint: Fingerprint
    threads: int
    ir: str
    """sha256 of the model's second form (`Model.ir`), which the model's own does not cover; empty
    where it has none."""
    code: str = ""
    """sha256 of the file that the backend is written in, which may be a plugin's."""

    @classmethod
    def of(
        cls,
        model: Model,
        candidate: Candidate,
        target: Target,
        fingerprint: Fingerprint,
        code: str = "",
    ) -> Wanted:
        """The engine of a candidate for a target. Reads the files of `Model.ir`."""
        return cls(model.name, candidate, fingerprint, target.threads, _ir_sha256(model), code)

    @property
    def key(self) -> str:
        """The sha256 of all fields but the model's name, and of our own code that drives the
        runtimes."""
        facts = {**self.to_json(), "driver": _code()}
        del facts["model"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready. Fields of the fingerprint that do not count on its device are empty."""
        fingerprint = self.fingerprint
        if fingerprint.device == "cpu":
            fingerprint = dataclasses.replace(
                fingerprint, gpu="", capability="", driver="", cuda=""
            )
        else:
            fingerprint = dataclasses.replace(fingerprint, cpu="", cpu_flags=())
        return {
            "model": self.model,
            "backend": self.candidate.backend,
            "variant": self.candidate.variant,
            "precision": str(self.candidate.precision),
            "graph": self.candidate.graph,
            "fingerprint": fingerprint.to_json(),
            "threads": self.threads,
            "ir": self.ir,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """An engine that was found, and what it cost when it was built."""

    build_s: float
    built: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Missed:
    """No engine; `differs` says how the nearest of the same model and candidate is another one,
    a sentence a field, and is empty where there is none."""

    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """One kept engine or graph, or the timings of one kind of device, for people."""

    kind: str
    """"engines", "graphs" or "timings"."""
    key: str
    size: int
    """Bytes on disk."""
    used: float
    """Unix seconds of its last use."""
    model: str = ""
    candidate: str = ""


class Engines:
    """The engines kept on this machine; several processes may share them."""

    def __init__(self, directory: Path | None, limit: int = LIMIT) -> None:
        self._store = Store(directory, limit)

    def fetch(self, wanted: Wanted, out: Path) -> Kept | Missed:
        """Copy an engine's files to `out`, each checked by its sha256. A void entry is dropped
        and is a miss."""
        record = self._store.fetch(wanted.key, out)
        if record is not None:
            return Kept(float(record["build_s"]), str(record["built"]))
        return Missed(self._nearest(wanted))

    def keep(self, wanted: Wanted, artifact: Path, build_s: float) -> bool:
        """Keep a copy of what a backend saved, with the seconds that building it took. False for
        a directory without files, since such a backend builds anew when it loads; and for what
        is built about as soon as it would be fetched."""
        files = [path for path in sorted(artifact.rglob("*")) if path.is_file()]
        names = [path.relative_to(artifact).as_posix() for path in files]
        size = sum(path.stat().st_size for path in files)
        if not names or build_s * _WORTH_BYTES_PER_S < size:
            return False
        built = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {**wanted.to_json(), "build_s": build_s, "built": built}
        self._store.put(wanted.key, artifact, names, record)
        return True

    def drop(self, wanted: Wanted) -> None:
        """Forget an engine that its runtime refused to load."""
        self._store.drop(wanted.key)

    def _nearest(self, wanted: Wanted) -> tuple[str, ...]:
        here = wanted.to_json()
        same = ("backend", "variant", "precision", "graph")
        found: list[list[str]] = []
        for entry in self._store.entries():
            there = entry.record
            if not there or any(there.get(name) != here[name] for name in same):
                continue
            with contextlib.suppress(*_ANOTHER_FORMAT):
                if all(
                    there["fingerprint"][name] == here["fingerprint"][name]
                    for name in ("model_sha256", "options")
                ):
                    found.append(_differences(there, here))
        found.sort(key=len)
        return tuple(found[0]) if found else ()


def _differences(there: Any, here: Any) -> list[str]:
    found = differences(
        Fingerprint.from_json(there["fingerprint"]), Fingerprint.from_json(here["fingerprint"])
    )
    if there["threads"] != here["threads"]:
        found.append(f"threads {there['threads']} there, {here['threads']} here")
    if there["ir"] != here["ir"]:
        found.append(f"converted graph {there['ir'][:12]} there, {here['ir'][:12]} here")
    return found or ["the code that drives the backend"]


def kept() -> list[Listed]:
    """All engines, converted graphs and timings that are kept here, last used first."""
    return _listed(prune_to=None)


def prune(max_bytes: int) -> list[Listed]:
    """Drop what was used longest ago until all together fits in `max_bytes`; 0 drops all. Returns
    what went."""
    return _listed(prune_to=max_bytes)


def _listed(prune_to: int | None) -> list[Listed]:
    stores = {kind: Store(cache_directory(kind)) for kind in ("engines", "graphs")}
    found = [
        Listed(kind, e.key, e.size, e.used, _model_of(e.record), _candidate_of(e.record))
        for kind, store in stores.items()
        for e in store.entries()
    ]
    found += _timings()
    found.sort(key=lambda entry: entry.used, reverse=True)
    if prune_to is None:
        return found
    gone, total = [], 0
    for entry in found:
        total += entry.size
        if total > prune_to:
            if entry.kind == _TIMINGS:
                _drop_timings(entry.key)
            else:
                stores[entry.kind].drop(entry.key)
            gone.append(entry)
    return gone


def _timings() -> list[Listed]:
    """What the native engine's tuning measured, a row a kind of device."""
    # A user's environment needs no more than a worker does.
    from peregrine.compiler.timings import timing_files

    found = []
    for file in timing_files(cache_directory(_TIMINGS)):
        device = file.fingerprint.get("gpu") or file.fingerprint.get("cpu") or "unknown"
        words = f"{device}: {file.entries:,} tactics timed"
        found.append(Listed(_TIMINGS, file.path.stem, file.size, file.used, candidate=words))
    return found


def _drop_timings(key: str) -> None:
    directory = cache_directory(_TIMINGS)
    if directory is not None:
        with contextlib.suppress(OSError):
            (directory / f"{key}.jsonl").unlink()


def _model_of(record: Any) -> str:
    return str(record.get("model", ""))


def _candidate_of(record: Any) -> str:
    if "made" in record:  # a converted graph says which library made it
        return str(record["made"].get("by", ""))
    if not record:
        return ""
    with contextlib.suppress(*_ANOTHER_FORMAT):
        return Candidate(
            record["backend"],
            record["variant"],
            Precision(record["precision"]),
            record["fingerprint"]["options"],
            record["graph"],
        ).id
    return ""


def _ir_sha256(model: Model) -> str:
    if not model.ir:
        return ""
    digest = hashlib.sha256()
    xml = model.directory / model.ir
    for path in (xml, xml.with_suffix(".bin")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    code = hashlib.sha256()
    for directory in backends.__path__:
        for path in sorted(Path(directory).glob("*.py")):
            code.update(path.read_bytes())
    return code.hexdigest()
