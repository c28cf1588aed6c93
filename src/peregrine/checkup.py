"""What can run here, what cannot, why, and the exact command that fixes it."""

from __future__ import annotations

from dataclasses import dataclass

from peregrine.backends import registry
from peregrine.environments import list_all
from peregrine.fingerprint import machine
from peregrine.harness.plan import Probe, probe_all
from peregrine.results import MachineRecord
from peregrine.types import Target


@dataclass(frozen=True, slots=True)
class Checkup:
    """The machine, each backend's own answer, and the environments made for some of them."""

    machine: MachineRecord
    backends: tuple[Probe, ...]
    environments: dict[str, str]
    """Backend -> name of the environment its workers run in."""

    @property
    def anything_runs(self) -> bool:
        return any(probe.status == "ok" for probe in self.backends)


def doctor() -> Checkup:
    """Ask every registered backend, each in a process of its own, whether it can run here."""
    names = list(registry.names())
    answers = probe_all(names, None, None, Target())
    serving = {backend: env.name for env in list_all() for backend in env.backends}
    return Checkup(machine(), tuple(answers), serving)
