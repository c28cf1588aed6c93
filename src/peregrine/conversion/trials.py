"""Converted graphs tried out: made with some nodes in fp32, run on calibration items, compared."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peregrine.conversion.calibration import Calibration
from peregrine.conversion.job import GRAPH_FILE, Job, Made
from peregrine.conversion.probe_tensors import Runner
from peregrine.conversion.quantize import choose, collect_ranges, fusing_is_exact, quantize
from peregrine.conversion.ranges import Bounds
from peregrine.conversion.typed import emulate
from peregrine.conversion.untracked import import_openvino
from peregrine.discrepancy import comparable, is_exact, measure
from peregrine.errors import Unsupported
from peregrine.model.graphs import Graph
from peregrine.model.model import Model
from peregrine.results import CalibratorTrial
from peregrine.types import Array, Precision

if TYPE_CHECKING:
    import onnx

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Judged:
    """A graph's outputs against fp32, over items."""

    scaled_error: float
    """Mean over items of ||converted - fp32|| / ||fp32||, of the worst output; where values are
    not finite they count as zero, and `sound` is false."""
    sound: bool
    """Everything is finite where fp32 is."""
    zeros: bool
    """An output is all zeros where fp32 has some values."""
    agreement: float | None = None
    """Share of items with fp32's class; None where the model is no classifier."""

    @property
    def words(self) -> str:
        """Of the error, for a sentence."""
        if not self.sound:
            return "NaN or Inf"
        return f"{self.scaled_error:.2g}" + (" (all zeros)" if self.zeros else "")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a converted graph must keep to on the calibration items."""

    scaled_error: float
    """Largest allowed `Judged.scaled_error`."""
    top1_agreement: float = 0.0
    """Smallest allowed `Judged.agreement`; for classifiers."""

    def passed(self, judged: Judged) -> bool:
        """Whether it keeps to them. NaN, Inf and outputs that became zero never do."""
        return (
            judged.sound
            and not judged.zeros
            and judged.scaled_error <= self.scaled_error
            and (judged.agreement is None or judged.agreement >= self.top1_agreement)
        )


def judge(reference: Sequence[Outputs], got: Sequence[Outputs], classifier: bool) -> Judged:
    """Compare item by item. The classes are those of the first output."""
    errors: dict[str, list[float]] = {}
    sound, zeros, same = True, False, []
    for want, have in zip(reference, got, strict=True):
        for name, exact in want.items():
            value = have[name]
            if not comparable(exact, value):
                return Judged(math.inf, False, False)
            if not exact.size:
                continue
            found = measure(exact, value)
            sound &= found.sound
            zeros |= found.candidate_squared == 0 and found.reference_squared > 0
            error = found.unequal / found.size if is_exact(exact.dtype) else found.scaled_error
            errors.setdefault(name, []).append(error)
        if classifier:
            first = next(iter(want))
            classes = [np.argmax(outputs[first], axis=-1) for outputs in (want, have)]
            same.append(bool(np.array_equal(*classes)))
    worst = max((float(np.mean(each)) for each in errors.values()), default=0.0)
    return Judged(worst, sound, zeros, float(np.mean(same)) if same else None)


class Trials:
    """Makes and runs one graph of a model with any nodes left in fp32.

    fp16 and bf16 are emulated in fp32, INT8 runs as ONNX Runtime runs it, and OpenVINO's graph in
    OpenVINO. Ranges are computed once.
    """

    def __init__(
        self,
        model: Model,
        prepared: onnx.ModelProto,
        graph: Graph,
        calibration: Calibration,
        items: int,
    ) -> None:
        self._model = model
        self._graph = graph
        self._calibration = calibration
        self.prepared = prepared
        self.items = min(items, len(calibration))

    @cached_property
    def blamed_graph(self) -> Graph:
        """What nodes are ranked by. OpenVINO's graph is of its own operators, and quantises the
        same tensors as u8s8. FP8 lies over fp16: where that alone is broken, it comes first."""
        if self._graph is Graph.NNCF:
            return Graph.U8S8
        if self._graph is Graph.FP8 and self._broken_in_half(frozenset()):
            return Graph.FP16
        return self._graph

    @cached_property
    def reference(self) -> list[dict[str, Array]]:
        """Outputs of the prepared graph in fp32, item by item."""
        return self._outputs(Runner(self.prepared, optimised=False))

    def unconverted(self) -> Judged:
        """The prepared graph, nothing converted, against the model as it came; of one item."""
        import onnx

        runner = Runner(onnx.load(self._model.onnx_path), optimised=False)
        item = next(self._calibration.items(1))
        return judge([runner.run(item)], self.reference[:1], self._model.classifier)

    @cached_property
    def calibrator(self) -> str:
        """Which calibrator's ranges the graph takes: of the least error while all is converted;
        empty where the graph has no such ranges."""
        if self._graph not in (Graph.U8S8, Graph.S8S8):
            return ""
        tried = []
        for name in self._ranges:
            outputs = self._quantised(name, frozenset())
            found = judge(self.reference, outputs, self._model.classifier)
            tried.append(CalibratorTrial(name, found.scaled_error, found.agreement))
        return choose(tried)

    def run(self, keep: frozenset[str]) -> list[dict[str, Array]]:
        """Outputs of the graph that leaves `keep` in fp32, item by item.

        Raises:
            Unsupported: it cannot be made, or there is nothing here that runs it.
        """
        if self._graph in (Graph.FP16, Graph.BF16):
            return self._in_half(keep)
        if self.calibrator:
            return self._quantised(self.calibrator, keep)
        if self._graph is Graph.FP8 and (broken := self._broken_in_half(keep)):
            return broken
        with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
            made = self._make(Path(directory), keep)
            return self._run_made(Path(directory) / made.file)

    def to_blame(self, keep: frozenset[str]) -> onnx.ModelProto:
        """The graph that `blame.rank` takes apart."""
        import onnx

        if self.blamed_graph in (Graph.FP16, Graph.BF16):
            return self._emulated(keep)
        if self.blamed_graph in (Graph.DYNAMIC, Graph.FP8):
            with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
                return onnx.load(Path(directory) / self._make(Path(directory), keep).file)
        bounds = self._ranges[self.calibrator or "minmax"]
        return quantize(self.prepared, bounds, self.blamed_graph, keep)

    @cached_property
    def _ranges(self) -> dict[str, Bounds]:
        return collect_ranges(self._job(self.blamed_graph, Path()))

    def _job(self, graph: Graph, out: Path, keep: frozenset[str] = frozenset()) -> Job:
        return Job(self._model, self.prepared, graph, out, self._calibration, keep)

    def _emulated(self, keep: frozenset[str]) -> onnx.ModelProto:
        precision = Precision.BF16 if self._graph is Graph.BF16 else Precision.FP16
        return emulate(self.prepared, precision, keep)

    def _in_half(self, keep: frozenset[str]) -> list[dict[str, Array]]:
        return self._outputs(Runner(self._emulated(keep), optimised=False))

    def _broken_in_half(self, keep: frozenset[str]) -> list[dict[str, Array]]:
        """Outputs of the graph in fp16 alone, where they are not finite or zero; else none. ONNX
        Runtime's CPU computes most fp16 nodes in fp32 and would hide it."""
        outputs = self._in_half(keep)
        found = judge(self.reference, outputs, self._model.classifier)
        return [] if found.sound and not found.zeros else outputs

    def _quantised(self, calibrator: str, keep: frozenset[str]) -> list[dict[str, Array]]:
        made = quantize(self.prepared, self._ranges[calibrator], self._graph, keep)
        return self._outputs(Runner(made, optimised=fusing_is_exact(self._graph)))

    def _make(self, out: Path, keep: frozenset[str]) -> Made:
        """With the converter of the graph, each in a module of its own."""
        try:
            module = importlib.import_module(f"peregrine.conversion.{self._graph}")
        except ImportError as error:
            raise Unsupported(
                f"A library that makes {self._graph} graphs does not import.", why=str(error)
            ) from error
        maker: Callable[[Job], Made] = getattr(module, f"make_{self._graph}")
        return maker(self._job(self._graph, out, keep))

    def _run_made(self, path: Path) -> list[dict[str, Array]]:
        import onnx

        if path.name != GRAPH_FILE:
            return self._in_openvino(path)
        # ONNX Runtime moves FP8 Q/DQ pairs across operators that do not take FP8.
        optimised = self._graph is not Graph.FP8
        return self._outputs(Runner(onnx.load(path), optimised=optimised))

    def _in_openvino(self, path: Path) -> list[dict[str, Array]]:
        compiled = (
            import_openvino().Core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        )
        names = [spec.name for spec in self._model.outputs]
        outputs = []
        for feeds in self._calibration.items(self.items):
            values = compiled(feeds)
            outputs.append({name: np.array(values[name]) for name in names})
        return outputs

    def _outputs(self, runner: Runner) -> list[dict[str, Array]]:
        return [runner.run(feeds) for feeds in self._calibration.items(self.items)]
