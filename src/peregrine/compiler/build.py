"""A model made into an executable plan for one size of each symbol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from peregrine.compiler.lower import Chooser, lower
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.plan import Plan, Step
from peregrine.compiler.slicing import Slices, by_running, by_steps, sliced
from peregrine.types import Precision

if TYPE_CHECKING:
    import onnx_ir as ir

    from peregrine.model.model import Model


def build(
    model: Model,
    dims: Mapping[str, int],
    precision: Precision,
    chooser: Chooser,
    *,
    slices: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Lowered:
    """Rebuild a model's graph for one device.

    Optional fused operators are measured against their parts, each for itself, and the graph is
    rebuilt without those that do not pay.

    Args:
        model: with an ONNX graph.
        dims: the size of every input symbol.
        precision: of its arithmetic; inputs and outputs keep their dtypes.
        chooser: the autotuner of the device.
        slices: whether to try the steps around the largest tensors for a part of the images at a
            time (`slicing`), which saves memory and takes several builds.
        progress: told (steps done, steps in all, the operator that is next).

    Raises:
        Unsupported: an operator, attribute or type that the engine lacks, by name.
        ModelCorrupt: the file is no ONNX graph.
    """
    from peregrine.compiler.passes import OPTIONAL, optimise

    def lowered(
        fuse: Collection[str] | None = None,
        apart: Collection[frozenset[str]] = (),
        slices: Slices = MappingProxyType({}),
    ) -> Lowered:
        graph = optimise(_graph(model, dims, precision), fuse=fuse, apart=apart, slices=slices)
        made = lower(
            graph, chooser, dims=dims, precision=precision, name=model.name, progress=progress
        )
        plan = msgspec.structs.replace(
            made.plan,
            apart=tuple(sorted(tuple(sorted(nodes)) for nodes in apart)),
            slices=tuple((*chain, parts) for chain, parts in slices.items()),
        )
        return replace(made, plan=plan)

    whole, apart = lowered(), set[frozenset[str]]()
    optional = set(OPTIONAL)
    if any(step.operation.operator in optional and step.chosen.ms for step in whole.plan.steps):
        apart = faster_apart(whole.plan.steps, lowered(fuse=()).plan.steps, optional)
    best = lowered(apart=apart) if apart else whole
    if not slices:
        return best
    device = chooser.device
    clock = by_running(device) if device.is_cuda else by_steps
    return sliced(best, lambda chains: lowered(apart=apart, slices=chains), clock)


def rebuild(model: Model, plan: Plan, chooser: Chooser) -> Lowered:
    """The steps of a plan of this model again, as another chooser has them run."""
    from peregrine.compiler.passes import optimise

    precision = Precision(plan.precision)
    graph = optimise(
        _graph(model, plan.dims, precision),
        apart=[frozenset(nodes) for nodes in plan.apart],
        slices={(first, last): parts for first, last, parts in plan.slices},
    )
    return lower(graph, chooser, dims=plan.dims, precision=precision, name=plan.name)


def faster_apart(
    whole: Sequence[Step], parts: Sequence[Step], optional: Collection[str]
) -> set[frozenset[str]]:
    """The nodes, by name, of each step of an optional operator that took longer than the steps
    that do the same without it.

    Args:
        whole: steps of the plan with all optional operators.
        parts: steps of the plan without any.
        optional: operators.
    """
    found = set()
    for step in whole:
        if step.operation.operator not in optional or step.chosen.ms is None:
            continue
        nodes = frozenset(step.sources)
        own = [part.chosen.ms for part in parts if part.sources and nodes.issuperset(part.sources)]
        times = [ms for ms in own if ms is not None]
        if own and len(times) == len(own) and sum(times) < step.chosen.ms:
            found.add(nodes)
    return found


def _graph(model: Model, dims: Mapping[str, int], precision: Precision) -> ir.Model:
    from peregrine.compiler.importing import specialise

    return specialise(model, dims, precision)
