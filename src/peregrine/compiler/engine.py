"""The engine on disk: a directory that runs without the model, the passes and the autotuner.

    plan.json            format, fingerprint, plans, and the SHA-256 of everything
    weights.safetensors  packed weights, equal ones once
    kernels/             compiled kernels, by name

Nothing in it is a pickle. The hashes tell a damaged or edited engine from a whole one; they are no
signature. Reading needs msgspec alone, and PyTorch and safetensors for the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from peregrine.compiler import fingerprint as fingerprints
from peregrine.compiler.plan import Place, Plan, Step
from peregrine.compiler.tactics.base import Device
from peregrine.compiler.weights import Strided, Weights, restride, share
from peregrine.errors import BundleCorrupt, BundleError

if TYPE_CHECKING:
    import torch

FORMAT = 1
PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
KERNELS = "kernels"
_REBUILD = "Build the engine again."
_CODE = "code of Peregrine's compiler"


class _File(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What plan.json says."""

    fingerprint: dict[str, str]
    code: str
    device: Device
    plans: tuple[Plan, ...]
    names: tuple[dict[str, str], ...]
    """Of each plan: a weight's name -> the name that the file has it under."""
    strided: dict[str, Strided]
    """By the file's name."""
    files: dict[str, _File]
    """Path within the engine, with forward slashes -> what it must be."""


class _Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """plan.json: its contents with their hash in front."""

    format: int
    sha256: str
    contents: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as it was read; its weights stay on disk until they are asked for."""

    directory: Path
    plans: tuple[Plan, ...]
    fingerprint: Mapping[str, str]
    """What it was tuned for."""
    code: str
    """Of the compiler that packed its weights, as `fingerprint.code` hashes it."""
    device: Device
    """The device it was tuned on, with its measured peaks."""
    kernels: tuple[str, ...] = ()
    """Names of its compiled kernels."""
    _names: tuple[Mapping[str, str], ...] = field(default=(), repr=False)
    _strided: Mapping[str, Strided] = field(default_factory=dict, repr=False)

    def kernel(self, name: str) -> bytes:
        """The bytes of a compiled kernel; KeyError for a name that it has not."""
        if name not in self.kernels:
            raise KeyError(name)
        return (self.directory / KERNELS / name).read_bytes()

    def weights(self, device: str = "cpu") -> tuple[dict[str, torch.Tensor], ...]:
        """The weights of each plan by tensor name, with the strides they were saved with. Plans
        share the tensors that are equal. Those that the plan keeps on the host are on the CPU."""
        from safetensors import safe_open

        opened: dict[tuple[str, str], torch.Tensor] = {}
        found: list[dict[str, torch.Tensor]] = []
        with safe_open(self.directory / WEIGHTS, framework="pt") as file:
            for plan, names in zip(self.plans, self._names, strict=True):
                tensors = {}
                for name, stored in names.items():
                    kept = plan.tensors.get(name)
                    at = "cpu" if kept is not None and kept.place is Place.HOST else device
                    if (stored, at) not in opened:
                        tensor = file.get_tensor(stored).to(at)
                        opened[stored, at] = restride(tensor, self._strided.get(stored))
                    tensors[name] = opened[stored, at]
                found.append(tensors)
        return tuple(found)


def save(
    directory: Path | str,
    plans: Sequence[Plan],
    weights: Sequence[Weights],
    fingerprint: Mapping[str, str],
    kernels: Mapping[str, bytes] | None = None,
    *,
    device: Device | None = None,
) -> None:
    """Write an engine in one step: whoever looks finds the old one, or the new one, whole.

    Args:
        directory: what is replaced where it is an engine; may be an empty directory.
        plans: at least one; for several sizes of the symbols.
        weights: of each plan, every tensor of its places WEIGHT and HOST by name, as its steps
            read it: packed, with any strides.
        fingerprint: as `peregrine.compiler.fingerprint` makes it.
        kernels: name -> bytes; a name may have forward slashes.
        device: that it was tuned on, for those who ask how good the times are.

    Raises:
        BundleError: the place is taken by something else, or cannot be written.
        ValueError: a plan lacks weights, or a kernel's name leads out of the engine.
    """
    target = Path(directory).absolute()
    _check(plans, weights, kernels or {})
    if target.exists() and not (target / PLAN).is_file() and not _is_empty(target):
        raise BundleError(
            f"{target} is no engine.",
            why="It would be replaced, and it holds something else.",
            fix="Name another directory.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(draft, plans, weights, fingerprint, kernels or {}, device or Device("cpu"))
            _swap(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"The engine cannot be written to {target}.",
            why=str(error),
            fix="Free space there, or name another directory.",
        ) from error


def load(directory: Path | str) -> Engine:
    """Read an engine and check every file by its hash. Weights are not kept in memory.

    Raises:
        BundleError: there is no engine, or another version of Peregrine wrote it.
        BundleCorrupt: a file is missing, truncated or changed.
    """
    home = Path(directory)
    contents = _read(home)
    for name, file in contents.files.items():
        try:
            path = home / _inside(name)
        except ValueError as error:
            raise _corrupt(home / PLAN, f"{error}.") from error
        _verify(path, file)
    prefix = f"{KERNELS}/"
    return Engine(
        directory=home.absolute(),
        plans=tuple(_revived(plan) for plan in contents.plans),
        fingerprint=contents.fingerprint,
        code=contents.code,
        device=contents.device,
        kernels=tuple(n.removeprefix(prefix) for n in contents.files if n.startswith(prefix)),
        _names=contents.names,
        _strided=contents.strided,
    )


def differences(engine: Engine, fingerprint: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(field, what it was built with, what is here), a row for each field that differs; none where
    its tactics were tuned for this device and these libraries, and are what they were."""
    return fingerprints.differences(
        {**engine.fingerprint, _CODE: engine.code}, {**fingerprint, _CODE: fingerprints.code()}
    )


# Writing


def _check(plans: Sequence[Plan], weights: Sequence[Weights], kernels: Mapping[str, bytes]) -> None:
    if not plans:
        raise ValueError("an engine has at least one plan")
    for plan, own in zip(plans, weights, strict=True):
        constant = (Place.WEIGHT, Place.HOST)
        needed = {name for name, tensor in plan.tensors.items() if tensor.place in constant}
        if lost := sorted(needed - set(own)):
            raise ValueError(f"plan {plan.name!r} lacks weights: {', '.join(lost)}")
    for name in kernels:
        _inside(name)


def _write(
    draft: Path,
    plans: Sequence[Plan],
    weights: Sequence[Weights],
    fingerprint: Mapping[str, str],
    kernels: Mapping[str, bytes],
    device: Device,
) -> None:
    from safetensors.torch import save_file

    stored, strided, names = share(weights)
    save_file(stored, draft / WEIGHTS)
    for name, code in kernels.items():
        path = draft / KERNELS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(code)
    written = [WEIGHTS, *(f"{KERNELS}/{name}" for name in sorted(kernels))]
    contents = msgspec.json.encode(
        _Contents(
            fingerprint=dict(fingerprint),
            code=fingerprints.code(),
            device=device,
            plans=tuple(_plain(plan) for plan in plans),
            names=names,
            strided=strided,
            files={name: _file(draft / name) for name in written},
        )
    )
    sealed = _Sealed(
        format=FORMAT,
        sha256=hashlib.sha256(contents).hexdigest(),
        contents=msgspec.Raw(contents),
    )
    (draft / PLAN).write_bytes(msgspec.json.encode(sealed))
    for name in (*written, PLAN):
        _sync(draft / name)
    mask = os.umask(0)
    os.umask(mask)
    draft.chmod(0o777 & ~mask)


def _swap(draft: Path, target: Path) -> None:
    """Put the new engine in the old one's place."""
    if target.exists() and not _is_empty(target):
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as grave:
            target.rename(Path(grave) / "old")
            draft.rename(target)
    else:
        draft.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # a directory that may not be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


# Reading


def _read(home: Path) -> _Contents:
    path = home / PLAN
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{home} is no engine.",
            why=f"It has no {PLAN} that can be read: {error.strerror}.",
            fix="Name a directory that holds one.",
        ) from error
    try:
        found = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("format")
        number = msgspec.json.decode(found, type=int) if found is not None else None
    except msgspec.MsgspecError as error:
        raise _corrupt(path, f"It is not JSON as it was written: {error}.") from error
    if number is None:
        raise BundleError(
            f"{path} is no plan of an engine.",
            why="It does not say its format.",
            fix="Name a directory that holds an engine.",
        )
    if number != FORMAT:
        raise BundleError(
            f"{home} is an engine of format {number}, and this Peregrine reads {FORMAT}.",
            why="Another version of Peregrine wrote it.",
            fix=_REBUILD,
        )
    try:
        sealed = msgspec.json.decode(text, type=_Sealed)
        if hashlib.sha256(bytes(sealed.contents)).hexdigest() != sealed.sha256:
            raise _corrupt(path, "Its contents are not what was written: their SHA-256 differs.")
        return msgspec.json.decode(sealed.contents, type=_Contents)
    except msgspec.MsgspecError as error:
        raise _corrupt(path, f"It is not what this version writes: {error}.") from error


def _verify(path: Path, expected: _File) -> None:
    try:
        size = path.stat().st_size
        found = _file(path) if size == expected.size else None
    except OSError as error:
        raise _corrupt(path, f"It cannot be read: {error.strerror}.") from error
    if found is None:
        raise _corrupt(path, f"It has {size:,} bytes, and {expected.size:,} were written.")
    if found.sha256 != expected.sha256:
        why = f"Its SHA-256 is {found.sha256[:12]}, and that of what was written is "
        raise _corrupt(path, f"{why}{expected.sha256[:12]}.")


def _file(path: Path) -> _File:
    with path.open("rb") as file:
        return _File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _corrupt(path: Path, why: str) -> BundleCorrupt:
    return BundleCorrupt(f"{path} of the engine is damaged.", why=why, fix=_REBUILD)


def _inside(name: str) -> str:
    """A file's path within the engine."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} leads out of the engine")
    return name


# Attributes: JSON has no infinity and no tuples

_FLOAT = "float"
_NOT_FINITE = ("inf", "-inf", "nan")


def _plain(plan: Plan) -> Plan:
    return _with_attributes(plan, _encoded)


def _revived(plan: Plan) -> Plan:
    return _with_attributes(plan, _decoded)


def _with_attributes(plan: Plan, change: Any) -> Plan:
    def changed(step: Step) -> Step:
        attributes = {name: change(v) for name, v in step.operation.attributes.items()}
        operation = dataclasses.replace(step.operation, attributes=attributes)
        return msgspec.structs.replace(step, operation=operation)

    return msgspec.structs.replace(plan, steps=tuple(map(changed, plan.steps)))


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, tuple | list):
        return [_encoded(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _encoded(item) for key, item in value.items()}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if isinstance(value, Mapping):
        if value.keys() == {_FLOAT} and value[_FLOAT] in _NOT_FINITE:
            return float(value[_FLOAT])
        return {key: _decoded(item) for key, item in value.items()}
    return value
