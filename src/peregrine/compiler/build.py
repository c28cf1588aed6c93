"""A model made into an executable plan for one size of each symbol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from peregrine.compiler.lower import Chooser, lower
from peregrine.compiler.lowered import Lowered
from peregrine.types import Precision

if TYPE_CHECKING:
    from peregrine.model.model import Model


def build(
    model: Model,
    dims: Mapping[str, int],
    precision: Precision,
    chooser: Chooser,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Lowered:
    """Rebuild a model's graph for one device.

    Args:
        model: with an ONNX graph.
        dims: the size of every input symbol.
        precision: of its arithmetic; inputs and outputs keep their dtypes.
        chooser: the autotuner of the device.
        progress: told (steps done, steps in all, the operator that is next).

    Raises:
        Unsupported: an operator, attribute or type that the engine lacks, by name.
        ModelCorrupt: the file is no ONNX graph.
    """
    from peregrine.compiler.importing import specialise
    from peregrine.compiler.passes import optimise

    graph = optimise(specialise(model, dims, precision))
    return lower(graph, chooser, dims=dims, precision=precision, name=model.name, progress=progress)
