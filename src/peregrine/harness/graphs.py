"""The converted graphs of a race: each made once, in a worker, when the first row asks for it.

`graphs/NAME/` in the run directory is a whole model directory, and `graphs/NAME.json` says how it
was made; the record is written last, so that half a graph is never taken for one.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peregrine.conversion.calibration import Calibration
from peregrine.environments import Interpreter, interpreter_for
from peregrine.errors import PeregrineError, RunDirectoryError
from peregrine.harness.process import Worker
from peregrine.harness.request import Request
from peregrine.harness.rundir import RunDirectory
from peregrine.model.graphs import REPAIRED, Graph, base_graph
from peregrine.model.inputs import random_feeds
from peregrine.model.model import Model
from peregrine.results import Conversion, from_builtins

GRAPHS = "graphs"
CALIBRATION = "calibration"
_DEVELOPMENT_SEED = 10_000
_DEVELOPMENT_ITEMS = 16


class Graphs:
    """Names of graphs to model directories. The empty name is the user's own graph."""

    def __init__(self, run: RunDirectory, model: Model, request: Request) -> None:
        self._run = run
        self._model = model
        self._request = request
        self._refused: dict[str, PeregrineError] = {}
        self._making = threading.Lock()

    def directory(self, name: str) -> Path:
        """The model directory of a graph that was made."""
        return self._run.file(GRAPHS, name) if name else self._model.directory

    def model(self, name: str) -> Model:
        """The model of a graph that was made."""
        return Model.open(self.directory(name)) if name else self._model

    def make(self, name: str) -> Conversion | None:
        """Convert, unless that was done; None for the user's own graph.

        Raises:
            PeregrineError: it cannot be converted; said again, at once, to the next row that asks.
        """
        if not name:
            return None
        with self._making:  # once, whichever row asks first
            return self._make(name)

    def _make(self, name: str) -> Conversion:
        if (made := self.record(name)) is not None:
            return made
        if name in self._refused:
            raise self._refused[name]
        if name != base_graph(name):
            raise RunDirectoryError(
                f"The repaired graph {name} is gone from the run.", fix="Run the race again."
            )
        out = self.directory(name)
        shutil.rmtree(out, ignore_errors=True)
        try:
            with self.worker(name, "convert") as worker:
                answer = worker.call(
                    "convert",
                    timeout_s=self._request.timeout_s,
                    model=str(self._model.directory),
                    graph=name,
                    out=str(out),
                    calibration=self.calibration,
                )
        except PeregrineError as error:
            self._refused[name] = error
            raise
        return self.keep(name, answer["conversion"])

    def repairer(self, name: str) -> Repairer:
        """To be closed: a worker that repairs the graph `name`."""
        return Repairer(self, base_graph(name))

    def keep(self, name: str, conversion: Mapping[str, Any]) -> Conversion:
        """Note how a graph was made."""
        self._run.file(GRAPHS).mkdir(exist_ok=True)
        self._run.write_json(f"{GRAPHS}/{name}.json", conversion)
        return from_builtins(conversion, Conversion)

    def record(self, name: str) -> Conversion | None:
        """How a graph of an earlier row, or of an interrupted race, was made."""
        try:
            return from_builtins(
                json.loads(self._run.file(GRAPHS, f"{name}.json").read_text()), Conversion
            )
        except (OSError, ValueError):
            return None

    @property
    def calibration(self) -> str | None:
        """The directory of the calibration data, where the user gave some."""
        directory = self._run.file(CALIBRATION)
        return str(directory) if directory.is_dir() else None

    def development(self) -> Path:
        """Inputs that layers are chosen by: the calibration data, else random ones of seeds that
        judge nothing."""
        if self.calibration is not None:
            return Path(self.calibration)
        directory = self._run.file("development")
        if not directory.is_dir():
            first = self._request.seed + _DEVELOPMENT_SEED
            feeds = [random_feeds(self._model, 1, first + n) for n in range(_DEVELOPMENT_ITEMS)]
            Calibration.write(directory, self._model, feeds, "random numbers", random=True)
        return directory

    @property
    def source(self) -> Path:
        return self._model.directory

    def worker(self, name: str, purpose: str) -> Worker:
        """A worker in the interpreter that holds the graph's quantiser."""
        nncf = base_graph(name) is Graph.NNCF
        interpreter = interpreter_for("openvino") if nncf else Interpreter(Path(sys.executable))
        return Worker(interpreter, log=self._run.file("logs", f"{purpose}-{name}.log"))


class Repairer:
    """A worker that holds the ranking of a graph's layers between attempts at a repair."""

    def __init__(self, graphs: Graphs, graph: Graph) -> None:
        self._graphs = graphs
        self._graph = graph
        self._worker = graphs.worker(graph, "repair")
        self.attempts = 0

    def attempt(
        self,
        limits: Mapping[str, float],
        budget_s: float,
        timeout_s: float,
        progress: Callable[[str], None],
    ) -> tuple[str, dict[str, Any]]:
        """Find layers to leave as they were, so that the graph keeps to `limits` on the
        calibration data.

        Returns:
            The name of the repaired graph, empty where nothing helps; and the worker's answer,
            whose `repair` is a `results.Repair` without what only the race knows.
        """
        self.attempts += 1
        name = f"{self._graph}{REPAIRED}" + (str(self.attempts) if self.attempts > 1 else "")
        progress(name)
        out = self._graphs.directory(name)
        shutil.rmtree(out, ignore_errors=True)
        answer = self._worker.call(
            "repair",
            timeout_s=timeout_s,
            model=str(self._graphs.source),
            graph=str(self._graph),
            out=str(out),
            data=str(self._graphs.development()),
            limits=dict(limits),
            budget_s=budget_s,
        )
        if answer["conversion"] is None:
            return "", answer
        self._graphs.keep(name, answer["conversion"])
        return name, answer

    def close(self) -> None:
        self._worker.kill()
