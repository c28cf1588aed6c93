"""An engine in figures: each step's time against its roofline, who else was tried, the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peregrine.compiler import engine
from peregrine.compiler.cost import Cost, roofline_s
from peregrine.compiler.engine import Engine
from peregrine.compiler.lifetimes import last_uses
from peregrine.compiler.memory import Block, alive
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import Activation, ActivationKind, Fused, Window
from peregrine.compiler.plan import Memory, Place, Plan, Step, Tensor, Timed
from peregrine.compiler.tactics.base import Config, Device
from peregrine.errors import BundleError


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """One step; times in milliseconds, None where it was not timed."""

    number: int
    """From 1."""
    name: str
    operator: str
    sizes: str
    """What goes in and comes out, e.g. `1x64x56x56 → 1x64x56x56  3x3, + residual, relu`."""
    sources: tuple[str, ...]
    """Nodes of the user's graph."""
    tactic: str
    config: str
    ms: float | None
    share: float | None
    """Of all steps' time, 0 to 1."""
    roofline_ms: float
    """No kernel takes less."""
    bound: str
    """What the roofline is made of: `compute`, `memory`, or empty where there is none."""
    error: float | None
    """Relative error against the reference."""
    runner_up: Timed | None
    """The fastest of the other tactics, or where there is none, of the tactic's other
    configurations."""
    others: tuple[Timed, ...]
    """All that were tried beside the chosen one."""

    @property
    def achieved(self) -> float | None:
        """The roofline's share of the time: 1 is as fast as the device allows."""
        return self.roofline_ms / self.ms if self.ms else None


@dataclass(frozen=True, slots=True)
class Span:
    """A block of the arena, from its first step to its last, both included and from 0."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ExplainedPlan:
    """The plan of one size."""

    name: str
    dims: Mapping[str, int]
    precision: str
    steps: tuple[ExplainedStep, ...]
    total_ms: float
    """The steps' times added up; each was timed alone."""
    untimed: int
    """Steps that were not timed."""
    roofline_ms: float
    """Of the steps that were timed."""
    tactics: tuple[tuple[str, int, float], ...]
    """(tactic, steps, ms), the longest first."""
    memory: Memory
    spans: tuple[Span, ...]
    alive: tuple[int, ...]
    """Bytes of the arena in use at each step."""
    notes: tuple[str, ...]

    @property
    def achieved(self) -> float | None:
        return self.roofline_ms / self.total_ms if self.total_ms else None

    def longest(self, count: int | None = None) -> tuple[ExplainedStep, ...]:
        """The steps that take longest, first; all of them in their order where `count` is None."""
        if count is None:
            return self.steps
        return tuple(sorted(self.steps, key=lambda step: -(step.ms or 0.0))[:count])


@dataclass(frozen=True, slots=True)
class Explanation:
    """An engine, a plan a size."""

    directory: Path
    device: Device
    fingerprint: Mapping[str, str]
    plans: tuple[ExplainedPlan, ...]


def explain(path: Path | str) -> Explanation:
    """Read an engine and say how its time and memory are spent.

    Args:
        path: an engine's directory, or one that holds an engine, as a bundle does.

    Raises:
        BundleError: there is no engine, or there are several.
        BundleCorrupt: a file of it is damaged.
    """
    return explain_engine(engine.load(find_engine(Path(path))))


def explain_engine(found: Engine) -> Explanation:
    """The same for an engine that was read."""
    plans = tuple(explain_plan(plan, found.device) for plan in found.plans)
    return Explanation(found.directory, found.device, found.fingerprint, plans)


def find_engine(path: Path) -> Path:
    """The directory of the only engine at a path or a few levels below."""
    if (path / engine.PLAN).is_file():
        return path
    depths = ("*", "*/*", "*/*/*")
    below = sorted({at.parent for deep in depths for at in path.glob(f"{deep}/{engine.PLAN}")})
    if len(below) == 1:
        return below[0]
    if below:
        raise BundleError(
            f"{path} holds {len(below)} engines.",
            fix=f"Name one of them: {', '.join(map(str, below[:3]))}.",
        )
    raise BundleError(
        f"{path} holds no engine of Peregrine's own.",
        why=f"There is no {engine.PLAN} in it. Bundles of other backends have none."
        if path.exists()
        else "There is no such directory.",
        fix="Name an engine's directory, or a bundle that the native backend won.",
    )


def explain_plan(plan: Plan, device: Device) -> ExplainedPlan:
    """One plan's figures on the device that it was tuned on."""
    total = sum(step.chosen.ms or 0.0 for step in plan.steps)
    steps = tuple(_step(i, step, total, device) for i, step in enumerate(plan.steps, 1))
    spent: dict[str, tuple[int, float]] = {}
    for step in steps:
        count, ms = spent.get(step.tactic, (0, 0.0))
        spent[step.tactic] = (count + 1, ms + (step.ms or 0.0))
    spans = arena_spans(plan)
    blocks = [Block(span.name, span.bytes, span.first, span.last) for span in spans]
    return ExplainedPlan(
        name=plan.name,
        dims=plan.dims,
        precision=plan.precision,
        steps=steps,
        total_ms=total,
        untimed=sum(step.ms is None for step in steps),
        roofline_ms=sum(step.roofline_ms for step in steps if step.ms is not None),
        tactics=tuple(
            (name, count, ms)
            for name, (count, ms) in sorted(spent.items(), key=lambda one: (-one[1][1], one[0]))
        ),
        memory=plan.memory,
        spans=spans,
        alive=alive(blocks, len(steps)),
        notes=plan.notes,
    )


def _step(number: int, step: Step, total: float, device: Device) -> ExplainedStep:
    operation, spent = step.operation, Cost(step.flops, step.bytes)
    # Products are computed in the weights' dtype, whatever the input's.
    read = [tensor for tensor in (*operation.inputs[1:2], *operation.inputs[:1]) if tensor]
    dtype = read[0].dtype if read else "float32"
    least = roofline_s(spent, device, dtype=dtype, tf32=operation.tf32)
    moving = spent.bytes / device.bandwidth
    ms = step.chosen.ms
    return ExplainedStep(
        number=number,
        name=step.name,
        operator=operation.operator,
        sizes=sizes(operation),
        sources=step.sources,
        tactic=step.chosen.tactic,
        config=config_words(step.chosen.config),
        ms=ms,
        share=ms / total if ms is not None and total else None,
        roofline_ms=1e3 * least,
        bound="" if least <= 0 else "memory" if moving >= least else "compute",
        error=step.chosen.error,
        runner_up=_runner_up(step),
        others=step.runners_up,
    )


def _runner_up(step: Step) -> Timed | None:
    timed = [
        (one.tactic == step.chosen.tactic, one.ms, i)
        for i, one in enumerate(step.runners_up)
        if one.ms is not None and not one.refused
    ]
    return step.runners_up[min(timed)[2]] if timed else None


# Words


def config_words(config: Config) -> str:
    """`block_m=64 stages=3 split`; empty for none."""
    said = {name: value for name, value in config.items() if value is not False}
    return " ".join(name if v is True else f"{name}={v}" for name, v in said.items())


def sizes(operation: Operation) -> str:
    """The first input's sizes, the outputs', and what shapes the work between."""
    read = next((tensor for tensor in operation.inputs if tensor is not None), None)
    into = _shape(read) if read is not None else ""
    out = ", ".join(_shape(tensor) for tensor in operation.outputs)
    extra = ", ".join(_shaping(operation))
    return f"{into} \N{RIGHTWARDS ARROW} {out}{'  ' if extra else ''}{extra}"


def _shape(tensor: TensorType) -> str:
    if tensor.shape is None:
        return "?"
    return "x".join(map(str, tensor.shape)) or "scalar"


def _shaping(operation: Operation) -> list[str]:
    attributes = operation.attributes
    words = []
    if len(attributes.get("kernel_shape", ())) == 2:
        words.append(_window(Window.read(attributes)))
    if "pool_kernel_shape" in attributes:
        words.append(f"pool {_window(Window.read(attributes, 'pool_'))}")
    if attributes.get("group", 1) != 1:
        words.append(f"{attributes['group']} groups")
    at = _RESIDUAL.get(operation.operator)
    if at is not None and len(operation.inputs) > at and operation.inputs[at] is not None:
        words.append("+ residual")
    for prefix in ("inner_", ""):
        if f"{prefix}activation" in attributes:
            kind = Activation.read(attributes, prefix).kind
            words += [str(kind)] if kind is not ActivationKind.IDENTITY else []
    return words


_RESIDUAL: dict[str, int] = {Fused.CONV: 3, Fused.LINEAR: 3, Fused.DEPTHWISE_POINTWISE: 5}


def _window(window: Window) -> str:
    words = "x".join(map(str, window.kernel))
    if window.strides != (1, 1):
        words += f"/{'x'.join(map(str, dict.fromkeys(window.strides)))}"
    if window.dilations != (1, 1):
        words += f" dilated {'x'.join(map(str, dict.fromkeys(window.dilations)))}"
    return words


# Memory


def arena_spans(plan: Plan) -> tuple[Span, ...]:
    """The blocks of the arena. Tensors that lie in each other while both are alive, as the slices
    of a concatenation do, are one."""
    made = {name: i for i, step in enumerate(plan.steps) for name in step.outputs if name}
    ends = last_uses(plan.steps, plan.tensors, plan.outputs)
    arena = [t for t in plan.tensors.values() if t.place is Place.ARENA and t.shape is not None]
    found: list[Span] = []
    for tensor in sorted(arena, key=lambda t: (-_reach(t), t.offset)):
        first = (
            made[tensor.name] if tensor.name in made else _first_write(tensor, arena, made, ends)
        )
        if first is None:
            first = _made_with(tensor, arena, made, ends)
        if first is None:
            continue
        last = min(max(first, ends.get(tensor.name, first)), len(plan.steps) - 1)
        span = Span(tensor.name, tensor.offset, _reach(tensor), first, last)
        whole = next((i for i, other in enumerate(found) if _lies_in(span, other)), None)
        if whole is None:
            found.append(span)
        else:
            other = found[whole]
            found[whole] = Span(
                other.name, other.offset, other.bytes,
                min(first, other.first), max(last, other.last),
            )  # fmt: skip
    return tuple(sorted(found, key=lambda span: (span.first, span.offset)))


def _made_with(
    part: Tensor, arena: Sequence[Tensor], made: Mapping[str, int], ends: Mapping[str, int]
) -> int | None:
    """When a tensor that no step writes was made as a part of one that a step did, the last of
    them before it is read."""
    around = [
        made[t.name]
        for t in arena
        if t.name in made
        and t.offset <= part.offset
        and part.offset + _reach(part) <= t.offset + _reach(t)
        and made[t.name] <= ends.get(part.name, -1)
    ]
    return max(around, default=None)


def _reach(tensor: Tensor) -> int:
    """Bytes from its first element to behind its last, gaps included."""
    kind = tensor.type
    if not kind.elements or kind.shape is None or kind.strides is None:
        return 0
    steps = zip(kind.shape, kind.strides, strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * kind.itemsize


def _lies_in(inner: Span, outer: Span) -> bool:
    inside = outer.offset <= inner.offset
    inside = inside and inner.offset + inner.bytes <= outer.offset + outer.bytes
    return inside and inner.first <= outer.last and outer.first <= inner.last


def _first_write(
    whole: Tensor, arena: Sequence[Tensor], made: Mapping[str, int], ends: Mapping[str, int]
) -> int | None:
    """When a tensor that no step writes as a whole is begun: by the first of the slices that fill
    it, the last ones before it is read. They have its strides."""
    slices = [
        (made[t.name], t)
        for t in arena
        if t.name in made
        and t.strides == whole.strides
        and whole.offset <= t.offset
        and t.offset + _reach(t) <= whole.offset + _reach(whole)
        and made[t.name] <= ends.get(whole.name, -1)
    ]
    missing, first = whole.type.elements, None
    for at, part in sorted(slices, key=lambda one: one[0], reverse=True):
        if missing > 0:
            missing, first = missing - part.type.elements, at
    return first
