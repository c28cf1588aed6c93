"""Runs a plan: its memory, its steps bound to tensors, and a CUDA graph of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from peregrine.compiler.attributes import (
    CAPTURES,
    PLAN,
    TENSOR,
    decode_tensor,
    is_subgraph,
    torch_dtype,
)
from peregrine.compiler.capture import capture
from peregrine.compiler.device_memory import moved, release
from peregrine.compiler.lifetimes import last_uses
from peregrine.compiler.memory import aligned
from peregrine.compiler.plan import Place, Plan, Step, Tensor
from peregrine.compiler.tactics import registry as tactics
from peregrine.errors import Unsupported

if TYPE_CHECKING:
    import torch

Environment: TypeAlias = "MutableMapping[str, torch.Tensor | None]"
"""Tensors that steps allocated, of the inference that runs."""
Call: TypeAlias = Callable[[Environment], None]
"""A step of one inference."""

# What PyTorch's notes on CUDA graphs run before a capture: libraries choose algorithms and
# allocate meanwhile.
_WARM_UPS = 3


class Executable:
    """A plan on a device. One inference at a time: its tensors are its own and stay."""

    def __init__(self, plan: Plan, weights: Mapping[str, torch.Tensor], device: str) -> None:
        """
        Args:
            plan: what to run.
            weights: by tensor name; moved to the device, or the CPU where the plan says so.
            device: as torch names it.

        Raises:
            Unsupported: a step's tactic cannot run here.
        """
        import torch

        self.plan = plan
        self.device = torch.device(device)
        host = _host_names(plan)
        self._weights = {
            name: moved(weight, "cpu" if name in host else self.device)
            for name, weight in weights.items()
        }
        self._blocks: dict[str, torch.Tensor] = {}
        self._fixed: dict[str, torch.Tensor] = {}
        self._environment: Environment = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0
        self.detail = ""
        """Why an inference is no CUDA graph where it could be; empty where it is or cannot."""
        self._allocate()
        self._calls = self._bind()

    # The caller's side

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The buffers that inputs are copied to, by tensor name."""
        return {name: self._fixed[name] for name in self.plan.inputs}

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """What the last inference wrote; overwritten by the next one."""
        return tuple(self.read(name) for name in self.plan.outputs)

    def launch(self, steps: slice = slice(None)) -> None:
        """Start one inference of what the inputs hold, step by step, on the current stream; or
        some of its steps, which find what those before them left."""
        import torch

        with torch.inference_mode():
            for call in self._calls[steps]:
                call(self._environment)

    def start(self) -> None:
        """Start one inference: as a CUDA graph once it was launched often enough, or as above."""
        if self._graph is None and self.device.type == "cuda" and self._runs == _WARM_UPS:
            self._capture()
        self._runs += 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self.launch()

    def settle(self) -> None:
        """Run until the next `start` replays a graph, if it ever will."""
        while self.device.type == "cuda" and self._runs <= _WARM_UPS:
            self.start()

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def close(self) -> None:
        """Give the memory back."""
        self._graph = None
        self._calls = []
        self._environment = {}
        self._fixed, self._blocks, self._weights = {}, {}, {}

    def _capture(self) -> None:
        import torch

        if not self.plan.capturable:
            return
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with capture(graph):
                self.launch()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.detail = f"Not a CUDA graph: {str(error).strip().partition(chr(10))[0]}"
            torch.cuda.synchronize(self.device)
        else:
            self._graph = graph
        release(str(self.device))  # what the runs before the capture worked with

    # Memory

    def _allocate(self) -> None:
        import torch

        memory = self.plan.memory

        def block(size: int) -> torch.Tensor:
            return torch.zeros(max(size, 1), dtype=torch.uint8, device=self.device)

        self._blocks["arena"] = block(memory.arena)
        self._workspace = block(memory.workspace)
        self._state = block(sum(aligned(step.state) for step in self.plan.steps))
        for tensor in self.plan.tensors.values():
            if tensor.place in (Place.INPUT, Place.OUTPUT) and not tensor.buffer:
                self._blocks[tensor.name] = block(tensor.type.extent)
        for tensor in self.plan.tensors.values():
            if tensor.place in (Place.WEIGHT, Place.HOST):
                self._fixed[tensor.name] = self._weights[tensor.name]
            elif tensor.place is Place.ARENA:
                self._fixed[tensor.name] = view(self._blocks["arena"], tensor)
            elif tensor.place in (Place.INPUT, Place.OUTPUT):
                self._fixed[tensor.name] = view(self._blocks[tensor.buffer or tensor.name], tensor)

    def read(self, name: str) -> torch.Tensor:
        """What a tensor of the plan holds now. Its memory may be another's by the time that a later
        step has run.

        Raises:
            Unsupported: no step has computed it.
        """
        if name in self._fixed:
            return self._fixed[name]
        found = self._environment.get(name)
        if found is None:
            raise Unsupported(
                f"The native engine computed no value for {name!r}.",
                fix="Race another backend for this model.",
            )
        return found

    # Steps

    def _bind(self) -> list[Call]:
        calls, offset = [], 0
        freed = _freed_after(self.plan)
        for index, step in enumerate(self.plan.steps):
            state = self._state[offset : offset + step.state] if step.state else None
            offset += aligned(step.state)
            calls.append(self._call(step, state, freed[index]))
        return calls

    def _call(self, step: Step, state: torch.Tensor | None, freed: Sequence[str]) -> Call:
        names = [name for name in (*step.inputs, *step.outputs) if name]
        if not all(name in self._fixed for name in names) or not all(step.outputs):
            return late_call(step, self._fixed, self._weights, freed, self.device)
        launch = tactics.get(step.chosen.tactic).bind(
            dataclasses.replace(step.operation, attributes=live_attributes(step)),
            step.chosen.config,
            [self._fixed[name] if name else None for name in step.inputs],
            [self._fixed[name] for name in step.outputs],
            self._workspace[: step.workspace] if step.workspace else None,
            state,
        )
        return lambda environment: launch()


class Subgraph:
    """The body of a control-flow operator. All that it computes it allocates itself."""

    def __init__(
        self,
        plan: Plan,
        captures: Sequence[str],
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self._plan = plan
        self.captures = tuple(captures)
        """Outer tensors that it reads."""
        self._fixed = {
            name: weights[name]
            for name, tensor in plan.tensors.items()
            if tensor.place in (Place.WEIGHT, Place.HOST)
        }
        freed = _freed_after(plan)
        self._calls = [
            late_call(step, self._fixed, weights, freed[index], device)
            for index, step in enumerate(plan.steps)
        ]

    def with_captured(
        self, tensors: Mapping[str, torch.Tensor | None]
    ) -> Callable[..., tuple[torch.Tensor | None, ...]]:
        """The body as a function of its formal inputs."""
        outer = {name: tensors[name] for name in self.captures}

        def run(*formal: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
            environment = {**outer, **dict(zip(self._plan.inputs, formal, strict=False))}
            for call in self._calls:
                call(environment)
            return tuple(
                self._fixed[name] if name in self._fixed else environment[name]
                for name in self._plan.outputs
            )

        return run


def late_call(
    step: Step,
    fixed: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    freed: Sequence[str],
    device: torch.device,
) -> Call:
    """A step that allocates what it writes, or reads what another one allocated.

    Args:
        fixed: tensors that stay where they are.
        weights: for the bodies of control flow.
        freed: tensors of the environment that nothing reads after this step.
        device: that the plan runs on.
    """
    reference = tactics.torch_ops()
    attributes = live_attributes(step)
    bodies = {
        name: Subgraph(msgspec.convert(value[PLAN], Plan), value[CAPTURES], weights, device)
        for name, value in step.operation.attributes.items()
        if is_subgraph(value)
    }
    captures = len(dict.fromkeys(c for body in bodies.values() for c in body.captures))
    formal = len(step.inputs) - captures
    operation = dataclasses.replace(
        step.operation, attributes=attributes, inputs=step.operation.inputs[:formal]
    )
    tables: dict[Hashable, Any] = {}

    def call(environment: Environment) -> None:
        values = {
            name: fixed[name] if name in fixed else environment[name]
            for name in step.inputs
            if name
        }
        asked = operation
        if bodies:
            bound = {name: body.with_captured(values) for name, body in bodies.items()}
            asked = dataclasses.replace(operation, attributes={**attributes, **bound})
        inputs = [values.get(name) for name in step.inputs[:formal]]
        results = reference.evaluate(asked, inputs, device, tables)
        for name, result in zip(step.outputs, results, strict=False):
            if name in fixed:
                assert result is not None
                fixed[name].copy_(result)
            elif name:
                environment[name] = result
        for name in freed:
            environment.pop(name, None)

    return call


def live_attributes(step: Step) -> dict[str, Any]:
    """A step's attributes as `torch_ops` reads them, without subgraphs."""
    live: dict[str, Any] = {}
    for name, value in step.operation.attributes.items():
        if is_subgraph(value):
            continue
        if isinstance(value, Mapping) and TENSOR in value:
            live[name] = decode_tensor(value)
        else:
            live[name] = tuple(value) if isinstance(value, list) else value
    return live


def view(block: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """A planned tensor in its block of bytes."""
    import torch

    assert tensor.shape is not None
    assert tensor.strides is not None
    size = tensor.type.extent
    dtype = torch_dtype(tensor.dtype)
    flat = block[tensor.offset : tensor.offset + size].view(dtype)
    return torch.as_strided(flat, tensor.shape, tensor.strides)


def _host_names(plan: Plan) -> set[str]:
    """Weights that lie in the CPU's memory, those of control-flow bodies among them."""
    names = {name for name, tensor in plan.tensors.items() if tensor.place is Place.HOST}
    for step in plan.steps:
        for value in step.operation.attributes.values():
            if is_subgraph(value):
                names |= _host_names(msgspec.convert(value[PLAN], Plan))
    return names


def _freed_after(plan: Plan) -> list[list[str]]:
    """For each step, the tensors of the environment that nothing reads after it."""
    ends = last_uses(plan.steps, plan.tensors, plan.outputs)
    freed: list[list[str]] = [[] for _ in plan.steps]
    for name, end in ends.items():
        if end < len(plan.steps) and plan.tensors[name].place is Place.STEP:
            freed[end].append(name)
    return freed
