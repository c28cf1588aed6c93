"""From an optimised graph to a plan: operations, their tactics, and the memory they work in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import onnx_ir as ir

from peregrine.compiler.attributes import CAPTURES, PLAN, encode, tensor_of
from peregrine.compiler.cost import cost
from peregrine.compiler.layout import Location, is_free, locate, operator_name, value_type
from peregrine.compiler.lifetimes import arena_blocks, merged, written_over
from peregrine.compiler.lowered import Lowered
from peregrine.compiler.memory import plan_arena
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import DOMAIN
from peregrine.compiler.passes.rewriting import SOURCES
from peregrine.compiler.plan import Memory, Place, Plan, Step, Tensor, Timed
from peregrine.compiler.tactics.base import Device, Tactic, may_write_over
from peregrine.compiler.torch_ops import registry as torch_ops
from peregrine.errors import Unsupported

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Choice:
    """What won for an operation, and what else was tried, best first."""

    tactic: Tactic
    chosen: Timed
    runners_up: tuple[Timed, ...] = ()


class Chooser(Protocol):
    """Who decides how an operation runs: the autotuner, or tests."""

    device: Device

    def prepare(self, operations: Iterable[Operation]) -> None:
        """All operations of a graph, before the first is asked for: compiles ahead."""

    def choose(self, operation: Operation) -> Choice:
        """The way to run one. Raises `Unsupported` where there is none, naming the operator."""


def lower(
    model: ir.Model,
    chooser: Chooser,
    *,
    dims: Mapping[str, int],
    precision: str,
    name: str = "",
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Lowered:
    """Make the plan of a graph whose sizes are all set.

    Args:
        model: as `passes.optimise` left it.
        chooser: picks a tactic for each operation.
        dims: the size of each symbol, for the record.
        precision: the candidate's; `tf32` lets float32 products round.
        progress: told (steps done, steps in all, what is next).

    Raises:
        Unsupported: an operator or type that no tactic has, by name.
    """
    graph = model.graph
    opset = graph.opset_imports.get("", 0) or model.opset_imports.get("", 0)
    scope = _Scope(graph, chooser, opset, precision == "tf32")
    scope.run(progress)
    return scope.finish(name, dict(dims), precision)


@dataclass
class _Drafted:
    """A node on its way to a step."""

    node: ir.Node
    operation: Operation
    constants: dict[int, ir.Value]
    captures: list[str] = field(default_factory=list)


class _Scope:
    """One graph: the model's, or the body of a control-flow operator."""

    def __init__(
        self, graph: ir.Graph, chooser: Chooser, opset: int, tf32: bool, *, body: bool = False
    ) -> None:
        self._graph = graph
        self._chooser = chooser
        self._opset = opset
        self._tf32 = tf32
        self._body = body
        self._locations = locate(graph)
        if body:
            self._locations = {
                name: Location(TensorType(at.type.dtype, at.type.shape, None), Place.STEP, name)
                for name, at in self._locations.items()
            }
        self._tensors: dict[str, Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._steps: list[Step] = []
        self._over: list[tuple[str, ...]] = []
        """Of each step the inputs that its tactic could write over."""
        self._outputs: list[str] = []
        self._capturable = True
        self._captured: list[str] = []
        """Outer values that a body reads."""

    def run(self, progress: Callable[[int, int, str], None]) -> None:
        drafts = [self._draft(node) for node in self._graph if not is_free(node, self._locations)]
        self._chooser.prepare(draft.operation for draft in drafts)
        for value in self._graph.inputs:
            self._tensor(value.name or "")
        choices = []
        for index, draft in enumerate(drafts):
            progress(index, len(drafts), draft.operation.operator)
            choices.append(self._chooser.choose(draft.operation))
        for draft, choice in zip(drafts, choices, strict=True):
            self._step(draft, choice)
        for value in self._graph.outputs:
            self._outputs.append(self._output(value))

    # Types

    def _draft(self, node: ir.Node) -> _Drafted:
        operator = operator_name(node)
        inputs: list[TensorType | None] = []
        constants = {}
        for index, value in enumerate(node.inputs):
            if value is None or not value.name:
                inputs.append(None)
                continue
            if value.const_value is not None:
                dtype, shape = value_type(value)
                if shape is None:
                    shape = tuple(int(s) for s in value.const_value.shape.numpy())
                dtype = dtype or value.const_value.dtype.numpy().name
                inputs.append(TensorType.contiguous(dtype, shape))
                constants[index] = value
            else:
                inputs.append(self._type_of(value))
        attributes, captures = {}, []
        for name, attribute in node.attributes.items():
            if not isinstance(attribute, ir.Attr) or attribute.is_ref():
                raise Unsupported(f"The native engine does not take functions ({node.name}).")
            if attribute.type is ir.AttributeType.GRAPH:
                body = self._subgraph(attribute.as_graph())
                captures += [c for c in body[CAPTURES] if c not in captures]
                attributes[name] = body
            else:
                attributes[name] = encode(attribute)
        inputs += [self._type_of_name(name) for name in captures]
        operation = Operation(
            operator,
            attributes,
            tuple(inputs),
            tuple(self._type_of(value) for value in node.outputs),
            frozenset(constants),
            self._opset if not node.domain else node.version or self._opset_of(node.domain),
            self._tf32,
        )
        return _Drafted(node, operation, constants, captures)

    def _opset_of(self, domain: str) -> int:
        if domain == DOMAIN:
            return 1
        return self._graph.opset_imports.get(domain, 1)

    def _type_of(self, value: ir.Value) -> TensorType:
        if value.name in self._locations:
            return self._locations[value.name].type
        if self._body and value.name:  # of an outer graph
            if value.name not in self._captured:
                self._captured.append(value.name)
            dtype, shape = value_type(value)
            return TensorType(dtype, shape, None)
        return TensorType("", None, None)  # an output nobody named

    def _type_of_name(self, name: str) -> TensorType:
        if name in self._locations:
            return self._locations[name].type
        if name not in self._captured:
            self._captured.append(name)
        return TensorType("", None, None)

    def _subgraph(self, graph: ir.Graph) -> dict[str, Any]:
        scope = _Scope(graph, self._chooser, self._opset, self._tf32, body=True)
        scope.run(lambda done, total, what: None)
        lowered = scope.finish(graph.name or "", {}, "")
        self._weights |= lowered.weights
        # A branch is taken by what the device computed.
        self._capturable = False
        return {PLAN: msgspec.to_builtins(lowered.plan), CAPTURES: list(scope._captured)}

    # Steps

    def _step(self, draft: _Drafted, choice: Choice) -> None:
        operation = draft.operation
        device = self._chooser.device
        config = choice.chosen.config
        name = self._unique(draft.node.name or draft.node.outputs[0].name or operation.operator)
        host = self._host(operation)
        # What a step reads on the host it waits for, as it does to know sizes that are computed.
        read_back = {i for i, t in enumerate(operation.inputs) if t} & host - operation.constants
        if read_back or any(t.shape is None for t in operation.outputs):
            self._capturable = False
        constants = {
            index: tensor_of(value.const_value.numpy())  # type: ignore[union-attr]
            for index, value in draft.constants.items()
        }
        given = [
            constants[i].to("cpu" if i in host else device.name) if i in constants else None
            for i in range(len(operation.inputs))
        ]
        packed = choice.tactic.pack(operation, config, given)
        inputs = []
        names = [v.name if v is not None else "" for v in draft.node.inputs] + draft.captures
        for index, value in enumerate(names):
            if index in constants:
                weight = packed[index]
                inputs.append(
                    "" if weight is None else self._weight(name, index, weight, index in host)
                )
            else:
                inputs.append(self._tensor(value) if value else "")
        spent = cost(operation)
        over = sorted(may_write_over(choice.tactic, operation, config))
        self._over.append(tuple(inputs[index] for index in over))
        self._steps.append(
            Step(
                name=name,
                operation=operation,
                inputs=tuple(inputs),
                outputs=tuple(self._tensor(v.name) if v.name else "" for v in draft.node.outputs),
                chosen=choice.chosen,
                runners_up=choice.runners_up,
                workspace=choice.tactic.workspace(operation, config, device),
                state=choice.tactic.state(operation, config, device),
                sources=_sources(draft.node),
                flops=spent.flops,
                bytes=spent.bytes,
            )
        )

    def _host(self, operation: Operation) -> frozenset[int]:
        entry = torch_ops.find(operation.operator, operation.opset)
        return entry.host if entry is not None else frozenset()

    def _unique(self, name: str) -> str:
        taken = {step.name for step in self._steps}
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        return unique

    def _weight(self, step: str, index: int, weight: torch.Tensor, host: bool) -> str:
        prefix = f"{self._graph.name}/" if self._body else ""
        name = self._unused(f"{prefix}{step}:{index}")
        self._weights[name] = weight
        self._tensors[name] = Tensor(
            name=name,
            dtype=str(weight.dtype).removeprefix("torch."),
            shape=tuple(weight.shape),
            strides=tuple(weight.stride()),
            place=Place.HOST if host else Place.WEIGHT,
        )
        return name

    def _unused(self, name: str) -> str:
        """The name, or one like it that no value has: TensorFlow calls the first output of a node
        `node:0`."""
        while name in self._locations or name in self._tensors:
            name += "'"
        return name

    def _tensor(self, name: str) -> str:
        """Note a value of the graph among the tensors."""
        at = self._locations.get(name)
        if name and name not in self._tensors:
            if at is None:  # of an outer graph
                at = Location(TensorType("", None, None), Place.STEP, name)
            self._tensors[name] = Tensor(
                name=name,
                dtype=at.type.dtype,
                shape=at.type.shape,
                strides=at.type.strides,
                place=at.place,
                offset=at.offset,
                buffer=at.root
                if at.place in (Place.INPUT, Place.OUTPUT) and at.root != name
                else "",
            )
        return name

    def _output(self, value: ir.Value) -> str:
        """The tensor that holds an output of the graph. One that no node makes, or that two
        outputs share, is copied."""
        name = value.name or ""
        made = name in self._locations and self._locations[name].place is not Place.INPUT
        if made and name not in self._outputs and (self._body or value.producer() is not None):
            return self._tensor(name)
        dtype, shape = value_type(value)
        if value.const_value is not None:
            dtype = value.const_value.dtype.numpy().name
            shape = tuple(int(s) for s in value.const_value.shape.numpy())
        copy = self._unused(f"{name}:out{len(self._outputs)}")
        planned = shape is not None and not self._body
        kind = TensorType.contiguous(dtype, shape) if planned else TensorType(dtype, shape, None)  # type: ignore[arg-type]
        self._locations[copy] = Location(kind, Place.OUTPUT if planned else Place.STEP, copy)
        if value.const_value is None:
            source, constants = self._type_of(value), {}
        else:
            source, constants = TensorType.contiguous(dtype, shape or ()), {0: value}
        node = ir.node("Identity", [value], name=copy)
        node.outputs[0].name = copy
        operation = Operation(
            "ai.onnx.Identity", {}, (source,), (kind,), frozenset(constants), self._opset
        )
        self._chooser.prepare([operation])
        choice = self._chooser.choose(operation)
        self._step(_Drafted(node, operation, constants), choice)
        node.replace_input_with(0, None)
        return copy

    # Memory

    def finish(self, name: str, dims: dict[str, int], precision: str) -> Lowered:
        memory = self._place_arena()
        inputs = [value.name or "" for value in self._graph.inputs]
        plan = Plan(
            name=name,
            dims=dims,
            precision=precision,
            inputs=tuple(inputs),
            outputs=tuple(self._outputs),
            tensors=self._tensors,
            steps=tuple(self._steps),
            memory=memory,
            capturable=self._capturable,
        )
        return Lowered(plan, self._weights)

    def _place_arena(self) -> Memory:
        roots = {
            name: self._locations[name].root
            for name, tensor in self._tensors.items()
            if tensor.place is Place.ARENA
        }
        sizes = {root: self._locations[root].type.bytes for root in roots.values()}
        blocks = arena_blocks(self._steps, self._tensors, self._outputs, roots, sizes)
        over = written_over(self._steps, blocks, roots, self._over)
        self._steps = [
            msgspec.structs.replace(step, over=over.get(index, ""))
            for index, step in enumerate(self._steps)
        ]
        shared, homes = merged(self._steps, blocks)
        layout = plan_arena(shared)
        for name, root in roots.items():
            offset = layout.offsets[homes[root]] + self._locations[name].offset
            self._tensors[name] = msgspec.structs.replace(self._tensors[name], offset=offset)
        return Memory(
            arena=layout.arena,
            lower_bound=layout.lower_bound,
            sum_of_tensors=sum(block.bytes for block in blocks.values()),
            weights=sum(w.numel() * w.element_size() for w in self._weights.values()),
            workspace=max((step.workspace for step in self._steps), default=0),
            state=sum(step.state for step in self._steps),
        )


def _sources(node: ir.Node) -> tuple[str, ...]:
    kept = node.metadata_props.get(SOURCES)
    return tuple(json.loads(kept)) if kept else ((node.name,) if node.name else ())
