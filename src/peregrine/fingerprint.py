"""What a compiled engine is valid for, and in which ways another place differs from that."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from peregrine import hardware, processor
from peregrine.hardware import machine
from peregrine.model.model import Model
from peregrine.results import to_builtins
from peregrine.types import Candidate, DimRange, Profile, Scalar, Target

__all__ = ["Fingerprint", "current", "differences", "machine", "versions_of"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that an engine depends on. Empty text where there is no such thing.

    The CPU's fields count for an engine on the CPU, the GPU's for one on a GPU; the rest
    counts for both.
    """

    device: str
    os: str
    arch: str
    python: str
    """major.minor"""
    cpu: str
    cpu_flags: tuple[str, ...]
    gpu: str
    capability: str
    driver: str
    cuda: str
    versions: Mapping[str, str]
    """Distribution -> version, of the backend's `distributions`; empty where not installed."""
    model_sha256: str
    precision: str
    profile: Mapping[str, tuple[int, int, int]]
    """Symbol -> min, opt, max."""
    options: Mapping[str, Scalar] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` is its inverse."""
        return dict(to_builtins(self))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Fingerprint:
        """Raises TypeError, KeyError or ValueError for anything `to_json` did not write."""
        return cls(
            **{
                **record,
                "cpu_flags": tuple(record["cpu_flags"]),
                "versions": dict(record["versions"]),
                "profile": {
                    k: (int(a), int(b), int(c)) for k, (a, b, c) in record["profile"].items()
                },
            }
        )


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution -> installed version in this interpreter, empty where it is not installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def current(
    model: Model,
    candidate: Candidate,
    target: Target,
    *,
    distributions: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
    python: str = "",
) -> Fingerprint:
    """The fingerprint of an engine compiled here and now.

    Args:
        distributions: the backend's, whose versions are looked up in this interpreter.
        versions: given instead where the engine came from another interpreter.
        python: major.minor of that interpreter.
    """
    gpu = hardware.visible_gpu(_gpu_index(target.device)) if target.is_cuda else None
    return Fingerprint(
        device=target.device.partition(":")[0],
        os=platform.system(),
        arch=platform.machine(),
        python=python or "{}.{}".format(*sys.version_info[:2]),
        cpu=processor.cpu_name(),
        cpu_flags=processor.cpu_flags(),
        gpu=gpu.name if gpu else "",
        capability=gpu.capability if gpu else "",
        driver=gpu.driver if gpu else "",
        cuda=gpu.cuda if gpu else "",
        versions=dict(versions) if versions is not None else versions_of(distributions),
        model_sha256=model.sha256,
        precision=str(candidate.precision),
        profile=_profile(target.profile),
        options=dict(candidate.options),
    )


def differences(saved: Fingerprint, here: Fingerprint) -> list[str]:
    """In which ways `here` is not what `saved` was made for, one sentence each; empty: it fits.

    An engine may run only where there is none: runtimes do not promise that one built for
    another processor, driver or version gives right results, or does not crash.
    """
    found = []

    def compare(what: str, there: object, now: object) -> None:
        if there != now:
            found.append(f"{what} {_word(there)} there, {_word(now)} here")

    compare("device", saved.device, here.device)
    compare("operating system", saved.os, here.os)
    compare("architecture", saved.arch, here.arch)
    compare("Python", saved.python, here.python)
    if saved.device == here.device == "cpu":
        compare("CPU", saved.cpu, here.cpu)
        if lost := set(saved.cpu_flags) - set(here.cpu_flags):
            found.append(f"CPU extensions {_listed(lost)} there, missing here")
        if gained := set(here.cpu_flags) - set(saved.cpu_flags):
            found.append(f"CPU extensions {_listed(gained)} here, missing there")
    elif saved.device == here.device:
        compare("GPU", saved.gpu, here.gpu)
        compare("compute capability", saved.capability, here.capability)
        compare("driver", saved.driver, here.driver)
        compare("CUDA", saved.cuda, here.cuda)
    for name in sorted({*saved.versions, *here.versions}):
        there, now = saved.versions.get(name, ""), here.versions.get(name, "")
        if there != now:
            found.append(f"{name} {there or 'not installed'} there, {now or 'not installed'} here")
    compare("model sha256", saved.model_sha256[:12], here.model_sha256[:12])
    compare("precision", saved.precision, here.precision)
    compare("profile", _sizes(saved.profile), _sizes(here.profile))
    compare("options", dict(saved.options), dict(here.options))
    return found


def _gpu_index(device: str) -> int:
    index = device.partition(":")[2]
    return int(index) if index.isdigit() else 0


def _profile(profile: Profile) -> dict[str, tuple[int, int, int]]:
    def sizes(dim: DimRange) -> tuple[int, int, int]:
        return dim.min, dim.opt, dim.max

    return {name: sizes(dim) for name, dim in profile.dims.items()}


def _sizes(profile: Mapping[str, tuple[int, int, int]]) -> str:
    return ", ".join(
        f"{name} {low}" if low == high else f"{name} {low} to {high} (best {opt})"
        for name, (low, opt, high) in sorted(profile.items())
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _word(value: object) -> str:
    return str(value) if value not in ("", {}) else "none"
