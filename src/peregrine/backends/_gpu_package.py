"""A package that runs PyTorch modules on an NVIDIA GPU, and may be absent or not import."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from peregrine.backends import _torch
from peregrine.backends._nvidia import nvidia_driver
from peregrine.backends._torch_export import short
from peregrine.backends.base import Backend
from peregrine.errors import BackendUnavailable
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Support, Target


@dataclass(frozen=True, slots=True)
class GpuPackage:
    """What is asked of it before anything is built."""

    module: str
    """The name that is imported."""
    title: str
    needs: str
    """What it wants beside it, as a sentence: why it may be here and not import."""
    install: str
    """The fix where it is missing."""

    def available(self) -> Support:
        """Imports the package where there is a GPU for it, which takes seconds: with another
        release of torch or of TensorRT beside it, it is installed and does not import."""
        if not (torch_installed := _torch.installed()):
            return torch_installed
        if importlib.util.find_spec(self.module) is None:
            return Support.no(f"{self.title} is not installed in this interpreter.", self.install)
        if not (driver := nvidia_driver()):
            return driver
        try:
            self.load()
        except BackendUnavailable as error:
            return Support.no(f"{error.what} {error.why}", error.fix)
        return Support.yes()

    def ready(self, candidate: Candidate, target: Target) -> ModuleType:
        """The package, where an engine could run.

        Raises:
            BackendUnavailable: what is missing, and what brings it.
        """
        if not target.is_cuda:
            raise BackendUnavailable(
                f"{candidate.id} cannot run on {target.device}.",
                why=f"{self.title}'s engines run on an NVIDIA GPU.",
                fix="--device cuda",
            )
        if not (driver := nvidia_driver()):
            raise BackendUnavailable(
                f"{candidate.id} cannot run here.", why=driver.reason, fix=driver.fix
            )
        return self.load()

    def load(self) -> ModuleType:
        """Import it; raises BackendUnavailable, for that fails in many ways."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(self.module)
        except Exception as error:
            raise BackendUnavailable(
                f"{self.title} does not import.",
                why=f"{short(error)}. {self.needs}",
                fix=self.install,
            ) from error


class PackageBackend(Backend):
    """Engines that such a package builds of a module: what is asked before one is built."""

    package: ClassVar[GpuPackage]

    def available(self) -> Support:
        return self.package.available()

    def supports(self, model: Model, target: Target) -> Support:
        return _torch.takes(model)

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        """Those that it has rows of on a GPU."""
        return _torch.precisions(target)

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        if not target.is_cuda:
            # One row says why nothing runs; the others would say the same.
            yield Candidate(self.name)
            return
        for precision in self.precisions(target):
            yield Candidate(self.name, "", precision, {_torch.CUDA_GRAPH: True})
            yield Candidate(self.name, "", precision)

    def refines(self, candidate: Candidate, target: Target) -> bool:
        """The same engines without a CUDA graph."""
        return target.is_cuda and not candidate.options.get(_torch.CUDA_GRAPH)
