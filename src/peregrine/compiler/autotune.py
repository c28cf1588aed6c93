"""Which tactic runs an operation: all that take it compete, on the device, on checked outputs.

A configuration is first compared with the reference on random inputs; one that is wrong, or
crashes, is out. The rest are timed as CUDA graphs of several launches, so that what is timed is
the kernel and not Python: all of them shortly, then the best few in turns, more thoroughly. What
was measured is kept in the timing cache, and a second build measures nothing.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from peregrine.compiler.attributes import torch_dtype
from peregrine.compiler.capture import capture
from peregrine.compiler.device_memory import release
from peregrine.compiler.lower import Choice
from peregrine.compiler.operation import Operation, TensorType
from peregrine.compiler.operators import DOMAIN
from peregrine.compiler.plan import Timed
from peregrine.compiler.tactics import registry
from peregrine.compiler.tactics._triton import trying, unload
from peregrine.compiler.tactics._triton_compile import stop
from peregrine.compiler.tactics.base import Config, Device, Launch, Tactic, may_write_over
from peregrine.compiler.timings import TimingCache, timing_key
from peregrine.errors import Unsupported
from peregrine.turns import my_turn

if TYPE_CHECKING:
    import torch

TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Largest ||out - ref|| / ||ref|| by the dtype that is narrowest among what is read and written.
A sum in float32 of rounded inputs, rounded once more, is off by 3e-4 in float16."""
TF32_TOLERANCE = 3e-3

_TRIED = 24
"""Configurations of one operation that are run at all, the cheapest by prediction first."""
_FAR = 8.0
"""A configuration predicted to take this many times the best prediction is not tried."""
_FINALISTS = 4
_CLOSE = 1.15
"""How far from the best a short timing may be for another look."""
_SHORT_S, _LONG_S = 0.004, 0.012
"""Seconds of work timed for one configuration."""
_REPLAYS = 5


@dataclass(frozen=True, slots=True)
class _Contender:
    tactic: Tactic
    config: Config
    predicted: float

    def timed(self, ms: float | None, error: float | None = None, refused: str = "") -> Timed:
        return Timed(
            tactic=self.tactic.name,
            config=dict(self.config),
            ms=ms,
            predicted_ms=self.predicted * 1e3,
            error=error,
            refused=refused,
        )


class Autotuner:
    """Chooses by measurement on a GPU, and by prediction where nothing can be timed."""

    def __init__(
        self,
        device: Device,
        cache: TimingCache | None = None,
        *,
        tactics: Sequence[Tactic] | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            device: as `devices.describe` says.
            cache: timings of earlier builds; None measures everything and keeps nothing.
            tactics: who competes; by default all there are on a GPU, and on a CPU, where nothing is
                measured, `torch_ops` alone.
            seed: of the inputs that are compared.
        """
        self.device = device
        self._cache = cache
        if tactics is None:
            tactics = registry.tactics() if device.is_cuda else (registry.torch_ops(),)
        self._tactics = tuple(tactics)
        self._seed = seed
        self._known: dict[str, Choice] = {}
        self.measured = 0
        """Configurations that were run on the device."""

    def prepare(self, operations: Iterable[Operation]) -> None:
        """Compile what will be timed, for all operations at once: compilers use all processors.

        Raises:
            Unsupported: no tactic takes one of them; the operator is named, with the reasons.
        """
        jobs: list[tuple[Tactic, Operation, list[Config]]] = []
        for operation in {op.key(): op for op in operations}.values():
            if operation.key() in self._known:
                continue
            unknown = self._without_timings(operation, self._contenders(operation))
            for name, contenders in _by_tactic(unknown).items():
                jobs.append((registry.get(name), operation, [c.config for c in contenders]))
        if not jobs:
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = [pool.submit(t.compile, op, cs, self.device) for t, op, cs in jobs]
            try:
                # What does not compile fails again where it is tried, and is out for that reason.
                for done in started:
                    done.exception()
            except KeyboardInterrupt:
                stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def choose(self, operation: Operation) -> Choice:
        """The fastest right way to run an operation.

        Raises:
            Unsupported: no tactic takes it; the operator is named, with each one's reason.
        """
        key = operation.key()
        if key not in self._known:
            self._known[key] = self._chosen(operation)
        return self._known[key]

    def flush(self) -> None:
        """Write what was measured to the timing cache."""
        if self._cache is not None:
            self._cache.flush()

    def release(self) -> None:
        """Give back the device memory that trials have left with libraries, the allocator and the
        driver."""
        if self.device.is_cuda:
            release(self.device.name)
            unload()

    def _chosen(self, operation: Operation) -> Choice:
        contenders = self._contenders(operation)
        if not self.device.is_cuda or len(contenders) == 1:
            timed = [contender.timed(None) for contender in contenders]
        else:
            timed = self._timed(operation, contenders)
            timed.sort(key=lambda t: float("inf") if t.ms is None else t.ms)
            if timed[0].ms is None:
                raise Unsupported(
                    f"No tactic runs {operation.operator} right.",
                    why="; ".join(f"{t.tactic}: {t.refused}" for t in timed[:3]),
                    fix="Race another backend for this model.",
                )
        return Choice(registry.get(timed[0].tactic), timed[0], tuple(timed[1:]))

    def _timed(self, operation: Operation, contenders: Sequence[_Contender]) -> list[Timed]:
        """Each tactic's configurations, from the cache or measured now."""
        unknown = self._without_timings(operation, contenders)
        found: list[Timed] = []
        if self._cache is not None:
            known = _by_tactic(contenders).keys() - _by_tactic(unknown).keys()
            for name in sorted(known):
                found += self._cache.get(timing_key(registry.get(name), operation)) or ()
        measured = []
        if unknown:
            with trying(), my_turn():
                measured = self._compete(operation, unknown)
        if self._cache is not None:
            for name in _by_tactic(unknown):
                own = tuple(timed for timed in measured if timed.tactic == name)
                self._cache.put(timing_key(registry.get(name), operation), own)
        return found + measured

    def _without_timings(
        self, operation: Operation, contenders: Sequence[_Contender]
    ) -> list[_Contender]:
        if self._cache is None or not self.device.is_cuda:
            return list(contenders)
        return [
            contender
            for contender in contenders
            if self._cache.get(timing_key(contender.tactic, operation)) is None
        ]

    def _contenders(self, operation: Operation) -> list[_Contender]:
        """What is worth running, the cheapest by prediction first; every tactic with its best."""
        found: list[_Contender] = []
        refusals = []
        for tactic in self._tactics:
            if not _has_strides(operation) and tactic is not registry.torch_ops():
                continue
            support = tactic.supports(operation, self.device)
            if not support:
                refusals.append(f"{tactic.name}: {support.reason}")
                continue
            configs = tactic.configs(operation, self.device)
            # Which kernels start early is decided for a whole plan (`compiler.overlap`).
            configs = [tactic.serial(config) for config in configs]
            found += [
                _Contender(tactic, config, tactic.predict(operation, config, self.device))
                for config in configs
            ]
        if not found:
            raise Unsupported(
                f"The native engine does not take operator "
                f"{operation.operator.removeprefix('ai.onnx.')} of this graph.",
                why=next((r for r in refusals if r.startswith("torch_ops")), "; ".join(refusals)),
                fix="Race another backend for this model.",
            )
        found.sort(key=lambda contender: contender.predicted)
        limit = found[0].predicted * _FAR
        kept = [c for c in found if c.predicted <= limit][:_TRIED]
        for tactic in self._tactics:  # predictions are wrong: nobody is out without one try
            first = next((c for c in found if c.tactic is tactic), None)
            if first is not None and not any(c.tactic is tactic for c in kept):
                kept.append(first)
        return kept

    def _compete(self, operation: Operation, contenders: Sequence[_Contender]) -> list[Timed]:
        """Measure; the best first, those that are out last."""
        trial = Trial(operation, self.device, self._seed)
        short: list[tuple[float, _Contender, float]] = []
        refused: list[Timed] = []
        for contender in contenders:
            self.measured += 1
            try:
                launch = trial.bind(contender.tactic, contender.config)
                error = trial.error(launch)
                if not error <= trial.tolerance:
                    refused.append(contender.timed(None, error, f"off by {error:.1e}"))
                    continue
                error = max(error, trial.error_in_place(contender.tactic, contender.config))
                if not error <= trial.tolerance:
                    refused.append(contender.timed(None, error, f"in place off by {error:.1e}"))
                    continue
                seconds = trial.seconds(launch, _SHORT_S)
                # Once more, of the last of many: a race between blocks shows now and then.
                error = max(error, trial.difference())
                if not error <= trial.tolerance:
                    refused.append(contender.timed(None, error, f"at times off by {error:.1e}"))
                    continue
                short.append((seconds, contender, error))
            except Exception as failure:  # noqa: BLE001  # a tactic that fails is out, not the build
                refused.append(contender.timed(None, None, _first_line(failure)))
        if not short:
            return refused
        short.sort(key=lambda entry: entry[0])
        return [*(c.timed(s * 1e3, e) for s, c, e in self._again(trial, short)), *refused]

    def _again(
        self, trial: Trial, short: list[tuple[float, _Contender, float]]
    ) -> list[tuple[float, _Contender, float]]:
        """The best few timed in turns, so that a change of clocks meets all of them."""
        best = short[0][0]
        close = [entry for entry in short[:_FINALISTS] if entry[0] <= best * _CLOSE]
        if len(close) < 2:
            return short
        launches = [trial.bind(c.tactic, c.config) for _, c, _ in close]
        samples: list[list[float]] = [[] for _ in close]
        for _ in range(3):
            for index, launch in enumerate(launches):
                samples[index].append(trial.seconds(launch, _LONG_S))
        final = [(statistics.median(s), c, e) for s, (_, c, e) in zip(samples, close, strict=True)]
        return [*sorted(final, key=lambda entry: entry[0]), *short[len(close) :]]


class Trial:
    """Random inputs of one operation on the device, and what the outputs must be."""

    def __init__(self, operation: Operation, device: Device, seed: int) -> None:
        from peregrine.compiler.torch_ops.fused import reference

        self._operation = operation
        self._device = device
        self._random = random.Random(f"{seed} {operation.key()}")
        self._inputs = [
            None if kind is None else self._fresh(kind, index)
            for index, kind in enumerate(operation.inputs)
        ]
        self._outputs = [self._empty(kind) for kind in operation.outputs]
        exact = operation.operator.startswith(DOMAIN)
        expected = (reference if exact else registry.torch_ops().evaluate)(operation, self._inputs)
        self._expected = [tensor for tensor in expected if tensor is not None]
        self.tolerance = _tolerance(operation)

    def _fresh(self, kind: TensorType, index: int) -> torch.Tensor:
        """Normal numbers; weights scaled so that outputs have the size of the inputs."""
        import torch

        assert kind.shape is not None
        generator = torch.Generator(self._device.name).manual_seed(self._random.getrandbits(32))
        tensor = self._empty(kind)
        if not tensor.dtype.is_floating_point:
            tensor.copy_(torch.randint(0, 2, kind.shape, generator=generator, device=tensor.device))
            return tensor
        scale = 1.0
        if index in self._operation.constants and len(kind.shape) > 1:
            fan_in = kind.elements // kind.shape[0]
            scale = max(1, fan_in) ** -0.5
        tensor.copy_(torch.randn(kind.shape, generator=generator, device=self._device.name) * scale)
        return tensor

    def _empty(self, kind: TensorType) -> torch.Tensor:
        """With the strides of the operation, whatever lies in the gaps."""
        import torch

        assert kind.shape is not None
        assert kind.strides is not None
        dtype = torch_dtype(kind.dtype)
        flat = torch.zeros(
            max(1, kind.extent // kind.itemsize), dtype=dtype, device=self._device.name
        )
        return torch.as_strided(flat, kind.shape, kind.strides)

    def bind(self, tactic: Tactic, config: Config, over: int | None = None) -> Launch:
        """A launch on the inputs of this trial. Scratch memory holds NaN, as it may.

        Args:
            over: the input that is read where the first output lies.
        """
        import torch

        operation, device = self._operation, self._device
        given = [
            tensor if index in operation.constants else None
            for index, tensor in enumerate(self._inputs)
        ]
        packed = tactic.pack(operation, config, given)
        inputs = [
            packed[index] if index in operation.constants else tensor
            for index, tensor in enumerate(self._inputs)
        ]
        if over is not None:
            inputs[over] = self._outputs[0]
        workspace = tactic.workspace(operation, config, device)
        state = tactic.state(operation, config, device)
        return tactic.bind(
            operation,
            config,
            inputs,
            self._outputs,
            torch.full((workspace,), 0xFF, dtype=torch.uint8, device=device.name)
            if workspace
            else None,
            torch.zeros(state, dtype=torch.uint8, device=device.name) if state else None,
        )

    def error(self, launch: Launch) -> float:
        """The largest relative error of two runs; infinite where a number is not finite or was
        not written. The second run finds what the first left in the step's state."""
        worst = 0.0
        for _ in range(2):
            for output in self._outputs:
                output.fill_(float("nan") if output.dtype.is_floating_point else 1)
            launch()
            worst = max(worst, self.difference())
        return worst

    def error_in_place(self, tactic: Tactic, config: Config) -> float:
        """As `error`, of the outputs written over each input that the tactic says it may write
        over; 0 where there is none."""
        worst = 0.0
        for position in may_write_over(tactic, self._operation, config):
            launch = self.bind(tactic, config, position)
            for _ in range(2):
                for output in self._outputs:
                    output.fill_(float("nan") if output.dtype.is_floating_point else 1)
                self._outputs[0].copy_(self._inputs[position])  # type: ignore[arg-type]
                launch()
                worst = max(worst, self.difference())
        return worst

    def difference(self) -> float:
        """The relative error of what the outputs hold now; infinite where one is not finite."""
        import torch

        if self._device.is_cuda:
            torch.cuda.synchronize(self._device.name)
        worst = 0.0
        for output, expected in zip(self._outputs, self._expected, strict=True):
            off = torch.linalg.vector_norm(output.double() - expected.double())
            norm = torch.linalg.vector_norm(expected.double())
            ratio = float(off / norm) if float(norm) else float(off)
            worst = max(worst, ratio) if ratio == ratio else float("inf")
        return worst

    def seconds(self, launch: Launch, budget: float) -> float:
        """The time of one launch within a CUDA graph of several: the shortest of some, since what
        others do on the GPU meanwhile only adds to it. By medians, a SqueezeNet that was built
        beside others came out 1.7 times as slow."""
        stream = _stream(self._device.name)
        once = self._capture(launch, 1, stream)
        rough = max(min(self._replay(once, stream, 1) for _ in range(3)), 1e-6)
        count = max(1, min(50, int(budget / _REPLAYS / rough)))
        graph = self._capture(launch, count, stream) if count > 1 else once
        return min(self._replay(graph, stream, count) for _ in range(_REPLAYS))

    def _capture(
        self, launch: Launch, count: int, stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph:
        import torch

        graph = torch.cuda.CUDAGraph()
        with capture(graph, stream):
            for _ in range(count):
                launch()
        return graph

    def _replay(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, count: int) -> float:
        import torch

        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count


@cache
def _stream(device: str) -> torch.cuda.Stream:
    """The one stream that trials are captured and timed on: cuBLAS keeps a workspace of 32 MiB for
    each that it has seen."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _by_tactic(contenders: Iterable[_Contender]) -> dict[str, list[_Contender]]:
    grouped: dict[str, list[_Contender]] = {}
    for contender in contenders:
        grouped.setdefault(contender.tactic.name, []).append(contender)
    return grouped


def _has_strides(operation: Operation) -> bool:
    """Whether every tensor's place in memory is known: what torch allocates itself is not."""
    tensors = [t for t in (*operation.inputs, *operation.outputs) if t is not None]
    return all(tensor.strides is not None for tensor in tensors)


def _tolerance(operation: Operation) -> float:
    dtypes = {t.dtype for t in (*operation.inputs, *operation.outputs) if t is not None}
    loosest = max((TOLERANCE[name] for name in dtypes if name in TOLERANCE), default=0.0)
    if operation.tf32 and operation.operator.startswith(DOMAIN):
        return max(loosest, TF32_TOLERANCE)
    return loosest


def _first_line(failure: Exception) -> str:
    text = str(failure).strip().partition("\n")[0]
    return f"{type(failure).__name__}: {text}"[:200]
