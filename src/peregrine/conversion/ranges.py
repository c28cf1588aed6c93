"""The ranges of a graph's activations over calibration data, by three calibrators.

Two passes: the first finds every tensor's smallest and largest value, the second counts values
into histograms between them, of the tensors that a quantiser will use. Entropy and percentile
ranges follow from one histogram. Items go through one by one, so memory is that of one item's
activations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from peregrine.conversion.calibration import Calibration
from peregrine.conversion.quiet import quiet
from peregrine.errors import Unsupported
from peregrine.types import Array, physical_cores

if TYPE_CHECKING:
    import onnx

Bounds: TypeAlias = Mapping[str, tuple[float, float]]
"""Tensor name -> (lowest, highest) value that its integers must hold."""

CALIBRATORS = ("minmax", "entropy", "percentile")
PERCENTILE = 99.99
"""Share of a tensor's values that its range holds, in percent; half of the rest on each side."""
_BINS = 2048
"""Over [-amax, amax]."""
_ENTROPY_BINS = 256
"""Of the histogram that the entropy calibrator sees. onnxruntime's default is as many as there
are levels, so that it has nothing to choose from; with more, a spike at the end of the range (a
ReLU6's) is spread over many bins, looks like a loss, and is cut off."""
_LEVELS = 128
"""Of the coarser histogram that stands for the quantised tensor, as in TensorRT's calibrator."""


def collect(
    prepared: onnx.ModelProto,
    calibration: Calibration,
    operators: Collection[str],
    calibrators: Sequence[str] = CALIBRATORS,
    wanted: Callable[[Bounds], Collection[str]] | None = None,
) -> dict[str, Bounds]:
    """Calibrator -> bounds of the float inputs and outputs of nodes of these operators.

    `wanted` names, from the minmax bounds, the tensors that are worth a histogram; the others
    have their minmax bounds everywhere.

    Raises:
        Unsupported: there is no such tensor, a value is not finite, or ONNX Runtime does not run
            the graph.
    """
    minmax = _minmax(prepared, calibration, operators)
    found: dict[str, Bounds] = {"minmax": minmax}
    if set(calibrators) - {"minmax"}:
        names = wanted(minmax) if wanted else minmax
        histograms = _histograms(prepared, calibration, {n: minmax[n] for n in names})
        found["entropy"] = {**minmax, **{n: entropy_bounds(h) for n, h in histograms.items()}}
        found["percentile"] = {**minmax, **{n: percentile_bounds(h) for n, h in histograms.items()}}
        found["entropy"] = _within(found["entropy"], minmax)
        found["percentile"] = _within(found["percentile"], minmax)
    return {name: found[name] for name in calibrators}


def _within(bounds: Bounds, widest: Bounds) -> Bounds:
    """A histogram's edges lie a little outside of what was seen."""
    return {
        n: (max(low, widest[n][0]), min(high, widest[n][1])) for n, (low, high) in bounds.items()
    }


def _minmax(
    prepared: onnx.ModelProto, calibration: Calibration, operators: Collection[str]
) -> dict[str, tuple[float, float]]:
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory(prefix="peregrine-") as directory, quiet():
        graph = Path(directory) / "graph.onnx"
        onnx.save(prepared, graph)
        try:
            calibrator = create_calibrator(
                graph,
                sorted(operators),
                str(Path(directory) / "augmented.onnx"),
                CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Reader(calibration))
            data = calibrator.compute_data()
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise _failed(error) from error
        return {
            name: _finite(name, float(np.min(data[name].lowest)), float(np.max(data[name].highest)))
            for name in data
        }


def _finite(name: str, low: float, high: float) -> tuple[float, float]:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unsupported(
            f"Tensor {name!r} has no finite range on the calibration data: {low:g} to {high:g}.",
            why="Integers cannot hold infinity.",
        )
    return low, high


class _Reader:
    """Calibration items in the form that onnxruntime's calibrators read."""

    def __init__(self, calibration: Calibration) -> None:
        self._items: Iterator[dict[str, Array]] = calibration.items()

    def get_next(self) -> dict[str, Array] | None:
        return next(self._items, None)


class Histogram:
    """Counts of values in equal bins over [-amax, amax]."""

    def __init__(self, amax: float) -> None:
        self.amax = amax
        self.counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)

    def add(self, values: Array) -> None:
        if self.amax:
            counts, _ = np.histogram(values, _BINS, range=(-self.amax, self.amax))
            self.counts += counts

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        return np.linspace(-self.amax, self.amax, _BINS + 1)


def _histograms(
    prepared: onnx.ModelProto, calibration: Calibration, bounds: Bounds
) -> dict[str, Histogram]:
    found = {name: Histogram(max(-low, high)) for name, (low, high) in bounds.items()}
    fed = {value.name for value in prepared.graph.input}
    names = [name for name in found if name not in fed]
    session = open_session(with_outputs(prepared, names))
    for feeds in calibration.items():
        values = dict(zip(names, session.run(names, feeds), strict=True)) if names else {}
        for name, histogram in found.items():
            histogram.add(values[name] if name in values else feeds[name])
    return found


def with_outputs(prepared: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that also returns these tensors, of whatever type and shape."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(prepared)
    there = {value.name for value in proto.graph.output}
    for name in names:
        if name not in there:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return proto


def open_session(proto: onnx.ModelProto, *, optimized: bool = False) -> Any:
    """An ONNX Runtime session on the CPU; as written unless `optimized`.

    Raises:
        Unsupported: it does not open, with ONNX Runtime's reason.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = physical_cores()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise _failed(error) from error


def _failed(error: Exception) -> Unsupported:
    return Unsupported(
        "ONNX Runtime does not run the graph for calibration.", why=str(error).strip()[:600]
    )


def percentile_bounds(histogram: Histogram, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The narrowest bin edges that leave out at most (100 - percentile) / 2 percent of the
    values on each side."""
    total = histogram.counts.sum()
    if not total:
        return -histogram.amax, histogram.amax
    share = np.cumsum(histogram.counts) / total
    tail = (100 - percentile) / 200
    low = int(np.searchsorted(share, tail, side="right"))
    high = int(np.searchsorted(share, 1 - tail))
    edges = histogram.edges
    return float(edges[low]), float(edges[min(high + 1, _BINS)])


def entropy_bounds(histogram: Histogram) -> tuple[float, float]:
    """Bounds where the values clipped there differ least, by Kullback-Leibler divergence, from
    the same in 128 levels: onnxruntime's form of S. Migacz, "8-bit inference with TensorRT",
    GTC 2017."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    if not histogram.counts.any():
        return -histogram.amax, histogram.amax
    collector = HistogramCollector("entropy", False, _ENTROPY_BINS, _LEVELS, PERCENTILE, "same")
    low, high = collector.get_entropy_threshold(
        (
            histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1),
            histogram.edges[:: _BINS // _ENTROPY_BINS].astype(np.float32),
            np.float32(-histogram.amax),
            np.float32(histogram.amax),
        ),
        _LEVELS,
    )[:2]
    return float(low), float(high)
