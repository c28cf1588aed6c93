"""What a suite was asked for, as `suite.json` keeps it, and the races that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from peregrine.backends import registry
from peregrine.errors import ModelNotFound, OptionError, RunDirectoryError
from peregrine.hardware import visible_gpu
from peregrine.harness.request import SWEEP, Request
from peregrine.harness.rundir import slug
from peregrine.model import zoo
from peregrine.objective import Goal, Objective
from peregrine.report.store import write_text
from peregrine.results import Boundary
from peregrine.suite import published
from peregrine.suite.workflows import OF_SUITE, W0, Workflow, kind_of, named, patterns
from peregrine.types import Precision

FILE = "suite.json"
PAPER, RESNET50 = "paper", "resnet50"


@dataclass(frozen=True, slots=True)
class Ask:
    """A suite. The defaults of the last five fields are chosen so that one network at nine
    batches, four workflows and one precision takes about two minutes on an H200, half of it
    building engines and starting processes: a measurement takes 0.2 s and, for batches of which
    50 inferences take longer, at most 1.5 s; the final, which only batch 1 enters, plays five
    rounds. Nobody leaves a final that soon, so that rows of a slower precision have them all."""

    suite: str
    """`paper` or `resnet50`."""
    networks: tuple[str, ...]
    """Zoo names, `package.module:factory`, or paths."""
    devices: tuple[str, ...]
    """`cpu`, `cuda:0`: every network is raced on each."""
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    batches: tuple[int, ...] = SWEEP
    workflows: tuple[str, ...] = ()
    """Keys of the suite's workflows, each alone or with one precision (`native:fp16`); empty for
    all that the study has."""
    limit_memory_mb: float | None = None
    """What takes more does not count: it stands for a smaller card."""
    weights: str = "auto"
    seed: int = 0
    threads: int = 0
    input_specs: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Of validation, in place of the precision's own."""
    min_runs: int = 50
    """The paper's number of runs."""
    measure_s: float = 0.2
    measure_max_s: float = 1.5
    final_rounds: int = 5
    timeout_s: float = 300.0
    jobs: int = 0
    """Rows built at a time, 0 for as many as the machine bears; for a GPU, and no part of what the
    CPU measures."""

    def __post_init__(self) -> None:
        if self.suite not in OF_SUITE:
            raise OptionError(f"There is no suite {self.suite!r}.", fix="Use paper or resnet50.")
        for what, given in (
            ("network", self.networks), ("batch", self.batches), ("precision", self.precisions),
            ("device", self.devices),
        ):  # fmt: skip
            if not given:
                raise OptionError(f"There is no {what} to measure.", fix="Name at least one.")
        for network in self.networks:
            if ":" not in network and not Path(network).suffix:
                try:
                    zoo.entry(network)
                except ModelNotFound as error:
                    raise OptionError(error.what, fix=error.fix) from None
        if list(self.batches) != sorted(set(self.batches)) or self.batches[0] < 1:
            raise OptionError(
                f"{', '.join(map(str, self.batches))} are no batches of a suite.",
                why="They are measured upwards until memory ends.",
                fix="Give each once, from 1, the smallest first: --batches 1,2,4.",
            )
        names = [race.name for race in self.races()]
        if not names:
            raise OptionError(
                f"None of these workflows is for {', '.join(self.devices)}.",
                fix="Name other --workflows, or another --device.",
            )
        if len(set(names)) < len(names):
            raise OptionError(
                "Two of the networks have the same name.",
                why=f"Their races would lie in one directory: {', '.join(sorted(names))}.",
                fix="Name each network once.",
            )

    @property
    def chosen(self) -> tuple[Workflow, ...]:
        """The workflows, in the suite's order."""
        return named(self.suite, self.workflows)

    def races(self) -> tuple[RaceAsk, ...]:
        """In the order they run. A device that none of the workflows is for has none."""
        return tuple(
            RaceAsk(network, device)
            for device in self.devices
            if patterns(self.chosen, device, self.precisions)
            for network in self.networks
        )

    def request(self, race: RaceAsk, command: str = "") -> Request:
        """One network as an ordinary race, decided by the smallest batch at the device boundary:
        the paper's inputs lie on the GPU before the clock starts. Its winner is the fastest row
        of any precision; the tables compare within one."""
        wanted = patterns(self.chosen, race.device, self.precisions)
        backends = {p.split(" ")[0].split("[")[0].rstrip("*") for p in wanted}
        return Request(
            source=race.network,
            objective=Objective(
                Goal.LATENCY, self.batches[0], None, self.limit_memory_mb, Boundary.DEVICE
            ),
            batches=self.batches,
            precisions=self.precisions,
            backends=tuple(name for name in registry.names() if name in backends),
            only=wanted,
            first_in_final=patterns((W0,), race.device, self.precisions),
            device=race.device,
            threads=self.threads,
            seed=self.seed,
            input_specs=self.input_specs,
            weights=self.weights,
            # A hybrid of engines and PyTorch is what W1 is; the tables say where nodes ran.
            allow_fallback=True,
            # A suite shows what a conversion gives, and has no minutes for repairs.
            repair_s=0.0,
            # Its tables show what a build takes, here and now.
            engine_cache=False,
            one_boundary=True,
            thresholds=self.thresholds,
            min_runs=self.min_runs,
            measure_s=self.measure_s,
            measure_max_s=self.measure_max_s,
            final_rounds=self.final_rounds,
            timeout_s=self.timeout_s,
            jobs=self.jobs if race.device.startswith("cuda") else 1,
            command=command,
        )

    def save(self, directory: Path) -> None:
        """Write `suite.json`; RunDirectoryError where that fails."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=1).decode()
        write_text(directory / FILE, text + "\n")

    @classmethod
    def load(cls, directory: Path) -> Ask:
        """What the suite in `directory` was asked for.

        Raises:
            RunDirectoryError: there is none, or its `suite.json` cannot be read.
        """
        try:
            return msgspec.json.decode((directory / FILE).read_bytes(), type=cls)
        except OSError as error:
            raise RunDirectoryError(
                f"{directory} is not a suite's directory.",
                why=f"There is no {FILE} in it: {error.strerror}.",
                fix="Name the directory that was given to `peregrine suite` as --out.",
            ) from error
        except (msgspec.DecodeError, OptionError) as error:
            raise RunDirectoryError(
                f"{directory / FILE} cannot be read.", why=str(error), fix="Start a new suite."
            ) from error


@dataclass(frozen=True, slots=True)
class RaceAsk:
    """One network on one device, in all precisions of the suite: it is loaded, exported and
    judged by one reference, which takes as long as its rows do."""

    network: str
    device: str

    @property
    def label(self) -> str:
        """The network in print: a factory by its own name."""
        return Path(self.network.split(":")[-1]).stem

    @property
    def name(self) -> str:
        """Its run directory below the suite's."""
        return slug(f"{self.label}-{kind_of(self.device)}")

    def of_one_precision(self, precision: Precision) -> str:
        """The directory that earlier versions ran it in, a precision each."""
        return slug(f"{self.label}-{precision}-{kind_of(self.device)}")


_CALIBRATED = (Precision.INT8, Precision.FP8)


def make_ask(
    suite: str,
    *,
    networks: Sequence[str] = (),
    batches: Sequence[int] | None = None,
    precisions: Sequence[Precision | str] = (Precision.FP32,),
    device: str = "auto",
    **fields: Any,
) -> Ask:
    """An ask with what the study has where nothing is named: its networks and batches, and the
    devices that are here. The paper is about a GPU, or the CPU where there is none; the
    ResNet-50 table is about both.

    Raises:
        OptionError: something unknown, or a precision that a suite cannot bring.
    """
    if unfit := [p for p in precisions if p not in list(Precision) or p in _CALIBRATED]:
        raise OptionError(
            f"A suite has no precision {unfit[0]}.",
            why="It calibrates nothing, and each of its tables is of one precision.",
            fix="Use fp32 as published, or some of: fp32, tf32, fp16, bf16.",
        )
    if device == "auto":
        gpu = ("cuda:0",) if visible_gpu(0) else ()
        devices = ("cpu", *gpu) if suite == RESNET50 else gpu or ("cpu",)
    else:
        devices = ("cuda:0" if device == "cuda" else device,)
    if not networks:
        networks = ("resnet50",) if suite == RESNET50 else published.paper().networks
    return Ask(
        suite=suite,
        networks=tuple(networks),
        devices=devices,
        precisions=tuple(Precision(p) for p in precisions),
        batches=tuple(batches or ((1,) if suite == RESNET50 else SWEEP)),
        **fields,
    )
