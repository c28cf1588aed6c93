"""TorchInductor: the module compiled to C++ (or Triton) with its weights frozen into it.

Two ways lead through the same compiler, and `compile` takes the first that works:

*Ahead of time* (CPU): torch.export takes the module as one graph, AOTInductor makes a shared
library of it. *Just in time*: torch.compile, where the module does not export as one graph
(control flow that depends on values, TorchScript, ...), and on CUDA. Placement says which it was.

Ahead of time comes first because it is faster and because it can be kept. Measured on 2 cores
(AVX512-VNNI, torch 2.13), batch 1, milliseconds, ahead / just in time / eager channels-last:
ResNet-18 16.8 / 18.1 / 23.9, MobileNetV2 6.1 / 7.7 / 11.6, EfficientNet-Lite0 7.2 / 8.6 / 13.5.
A ResNet-18 package takes 14 s to build and 0.05 s to load, 280 times less, and what is loaded
is the library that raced. torch.compile's own caches (`torch.compiler.save_cache_artifacts`, an
inductor cache directory) are pickles and still trace the module again, so that a just-in-time
session saves nothing and compiles anew.

On a CPU there is one variant. Channels-last weights were tried on the same networks at batch 1
and 8: between 13% slower and 5% faster than plain ones, since freezing already picks the layout of
each convolution. That is not worth a second build.

On CUDA the variants are torch.compile's modes, all with freezing: `inductor` (its default mode),
`reduce-overhead` (CUDA graphs by PyTorch) and `max-autotune` (kernels by trial as well: 183 s for
a ResNet-50 on an H200, and no faster there, so that it is raced only where it is named:
`--only 'torch_compile[max-autotune]*'`). `aot` is a package of AOTInductor's there, as on a CPU; it
is not proposed either before it has raced on a GPU. The option `cuda_graph` records an inference of
`inductor` or `aot` ourselves: PyTorch's own graphs copy the inputs at each call and check the
call's guards before every launch (ResNet-18 in fp16 at batch 1 took 0.244 ms a synchronised call in
`reduce-overhead`, 0.190 back to back).
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peregrine.backends import _torch
from peregrine.backends._torch_export import check_profile, example, export, short
from peregrine.backends._torch_graph import RecordedSession
from peregrine.backends._torch_inductor import inductor, scratch_directory
from peregrine.backends.base import Backend, Session
from peregrine.errors import OptionError, Unsupported
from peregrine.model.model import Model
from peregrine.types import (
    Candidate,
    Feeds,
    Placement,
    Precision,
    Support,
    Target,
    physical_cores,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

INDUCTOR = "inductor"
REDUCE_OVERHEAD = "reduce-overhead"
MAX_AUTOTUNE = "max-autotune"
AHEAD_OF_TIME = "aot"

_MODES = {INDUCTOR: "default", REDUCE_OVERHEAD: REDUCE_OVERHEAD, MAX_AUTOTUNE: MAX_AUTOTUNE}
_DEFAULTS: dict[str, object] = {_torch.CUDA_GRAPH: False}
_GRAPH_RUNS = 3
"""PyTorch runs a function once, records it the second time, and replays it from the third on."""
_POOL = 8

_PACKAGE = "inductor.pt2"
_FACTS = "inductor.json"
_REASON_CHARS = 300


class TorchCompileBackend(Backend):
    """torch.compile's compiler, with constants folded and weights laid out for the machine."""

    name = "torch_compile"
    distributions = ("torch",)

    def available(self) -> Support:
        if not (torch_installed := _torch.installed()):
            return torch_installed
        default = "clang++" if sys.platform == "darwin" else "g++"
        compiler = os.environ.get("CXX", default).split()[0]
        if shutil.which(compiler) is None:
            fix = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
            return Support.no(
                f"TorchInductor needs a C++ compiler, and there is no {compiler} on the PATH.",
                fix if compiler == default else f"{fix}, or set CXX to a compiler that exists",
            )
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        return _torch.takes(model)

    def candidates(self, model: Model, target: Target) -> Iterable[Candidate]:
        for precision in _torch.precisions(target):
            if target.is_cuda:
                yield Candidate(self.name, INDUCTOR, precision, {_torch.CUDA_GRAPH: True})
                yield Candidate(self.name, REDUCE_OVERHEAD, precision)
            if precision is Precision.FP16 and not target.is_cuda:
                continue  # slow on CPUs, as eager's row shows without a build of half a minute
            yield Candidate(self.name, INDUCTOR, precision)

    def refines(self, candidate: Candidate, target: Target) -> bool:
        """Without a CUDA graph of ours each launch costs more, and the kernels are the same."""
        return target.is_cuda and not candidate.options.get(_torch.CUDA_GRAPH)

    def on_request(self, model: Model, target: Target) -> Iterable[Candidate]:
        if target.is_cuda:
            for precision in _torch.precisions(target):
                yield Candidate(self.name, MAX_AUTOTUNE, precision)
                yield Candidate(self.name, AHEAD_OF_TIME, precision, {_torch.CUDA_GRAPH: True})

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Build a session. Tens of seconds, most of them in the C++ compiler.

        Sizes that `target.profile` fixes are compiled in; the others stay dynamic.

        Raises:
            Unsupported: the module does not compile; says why in a line or two.
            OptionError: the profile does not size every symbol of the inputs.
            BackendUnavailable: there is no CUDA device for the target.
        """
        variants = (*_MODES, AHEAD_OF_TIME) if target.is_cuda else (INDUCTOR,)
        options = _torch.check(candidate, model, target, variants, _DEFAULTS)
        records = bool(options[_torch.CUDA_GRAPH])
        if records and candidate.variant in (REDUCE_OVERHEAD, MAX_AUTOTUNE):
            raise OptionError(
                f"The mode {candidate.variant} makes CUDA graphs of its own.",
                fix=f"Leave the option {_torch.CUDA_GRAPH} out, or use the variant {INDUCTOR}.",
            )
        check_profile(model, target)
        module = _torch.ready_module(model, candidate.precision, target)
        compiled: _JustInTimeSession | _AheadOfTimeSession
        if target.is_cuda:
            if _torch.has_images(model):
                module = _torch.channels_last(module)
            if candidate.variant == AHEAD_OF_TIME:
                compiled = _packaged(module, model, candidate, target)
            else:
                compiled = _just_in_time(module, model, candidate, target, "")
            return _recorded(compiled, model, candidate) if records else compiled
        _torch.keep_freed_memory()
        try:
            return _ahead_of_time(module, model, candidate, target)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a tracer can fail in any way; placement tells
            reason = f"not compiled ahead of time: {short(error)}"
        return _just_in_time(module, model, candidate, target, reason)

    def save(self, session: Session, directory: Path) -> None:
        if isinstance(session, _RecordedSession):
            session = session.compiled
        if isinstance(session, _AheadOfTimeSession):
            session.save(directory)

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        """Load the shared library that `save` wrote. It is native code: check the bundle's
        hashes first. Built for another number of threads, it is compiled again."""
        import torch

        package = directory / _PACKAGE
        if package.exists():
            facts = json.loads((directory / _FACTS).read_text())
            if facts["threads"] == _torch.threads_of(target):
                torch.set_num_threads(facts["threads"])
                _torch.keep_freed_memory()
                loaded = _AheadOfTimeSession(package, facts, model, candidate, target)
                records = candidate.options.get(_torch.CUDA_GRAPH)
                return _recorded(loaded, model, candidate) if records else loaded
        return self.compile(model, candidate, target)


class _AheadOfTimeSession(_torch.TorchSession):
    """A shared library that AOTInductor made, and the package file it came in."""

    def __init__(
        self,
        package: Path,
        facts: dict[str, Any],
        model: Model,
        candidate: Candidate,
        target: Target,
    ) -> None:
        import torch

        # The loader of `torch._inductor.aoti_load_package`, without the seconds that importing
        # the compiler takes and without its parsing of the call signature at every call.
        with scratch_directory():  # it unpacks itself there; a mapped library needs no file
            # On a GPU without locks between runs, which query events and so break a capture.
            index = int(target.device.partition(":")[2] or 0) if target.is_cuda else -1
            loader = torch._C._aoti.AOTIModelPackageLoader(
                str(package), "model", target.is_cuda, 1, index
            )

        def forward(*inputs: Tensor) -> Any:
            return loader.boxed_run(list(inputs))

        super().__init__(
            forward,
            model,
            candidate.precision,
            target,
            target.profile,
            mutates_inputs=facts["mutates_inputs"],
        )
        self._device = loader.get_metadata()["AOTI_DEVICE_KEY"]
        self._facts = facts
        # Kept open rather than by name: a worker is killed, and must leave no file behind.
        self._package = os.open(package, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._package)

    def placement(self, feeds: Feeds) -> Placement:
        right = self._device == self.target.device.partition(":")[0]
        device = self.target.device if right else self._device
        return Placement(
            device=device,
            nodes={device: self._facts["nodes"]},
            precisions=self._facts.get("precisions", {}),
            fell_back=not right,
            graph_breaks=0,
            proof="the AOTInductor package: one exported graph, and the device it was built for",
        )

    def save(self, directory: Path) -> None:
        with (
            os.fdopen(os.dup(self._package), "rb") as package,
            (directory / _PACKAGE).open("wb") as file,
        ):
            package.seek(0)
            shutil.copyfileobj(package, file)
        (directory / _FACTS).write_text(json.dumps(self._facts))

    def close(self) -> None:
        super().close()
        self._release()


class _JustInTimeSession(_torch.TorchSession):
    """What torch.compile returned, with what dynamo counted while it compiled."""

    counted: Placement
    alone = "Compiling a second one discards what torch.compile made of the first."
    marks_steps = False
    """Whether PyTorch replays CUDA graphs, which reuse the memory of earlier outputs."""

    def enqueue(self) -> None:
        if self.marks_steps:
            import torch

            # Says that nobody reads what the last inference returned: it is overwritten.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        super().enqueue()

    def placement(self, feeds: Feeds) -> Placement:
        return self.counted


class _RecordedSession(RecordedSession):
    """What a compiled session calls, replayed as one CUDA graph of ours."""

    compiled: _JustInTimeSession | _AheadOfTimeSession

    def placement(self, feeds: Feeds) -> Placement:
        placed = self.compiled.placement(feeds)
        detail = f"{placed.detail}; replayed as one CUDA graph".removeprefix("; ")
        return dataclasses.replace(placed, detail=detail)

    def close(self) -> None:
        super().close()
        self.compiled.close()


def _recorded(
    compiled: _JustInTimeSession | _AheadOfTimeSession, model: Model, candidate: Candidate
) -> _RecordedSession:
    target = compiled.target
    session = _RecordedSession(
        compiled.forward,
        model,
        candidate.precision,
        target,
        target.profile,
        mutates_inputs=compiled.mutates_inputs,
    )
    session.compiled, session.alone = compiled, compiled.alone
    session.bind(example(model, target))
    return session


def _packaged(
    module: nn.Module, model: Model, candidate: Candidate, target: Target
) -> _AheadOfTimeSession:
    """A package and nothing in its place. Raises Unsupported where none is made."""
    import torch

    try:
        return _ahead_of_time(module, model, candidate, target)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise Unsupported(
            f"AOTInductor makes no package of {model.name}.",
            why=short(error),
            fix=f"Race it by the variant {INDUCTOR}.",
        ) from error


def _ahead_of_time(
    module: nn.Module, model: Model, candidate: Candidate, target: Target
) -> _AheadOfTimeSession:
    """Export one graph, compile it to a package, load the package."""
    import torch
    import torch._inductor

    with scratch_directory() as scratch, inductor(scratch), torch.no_grad():
        program = export(module, model, candidate.precision, target)
        facts = {
            "threads": torch.get_num_threads(),
            "nodes": sum(node.op == "call_function" for node in program.graph.nodes),
            "precisions": _precisions(program),
            "mutates_inputs": _writes_to_inputs(program),
        }
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(scratch / _PACKAGE)
        )
        del program
        session = _AheadOfTimeSession(Path(package), facts, model, candidate, target)
    gc.collect()  # the compiler's graphs hold the weights in cycles
    session.run(example(model, target))
    return session


def _precisions(program: ExportedProgram) -> dict[str, int]:
    """The arithmetic of its layers with weights: inductor keeps an operator's dtype."""
    nodes = program.graph.nodes
    words = (_torch.arithmetic(n.target, n.meta.get("val")) for n in nodes)
    return dict(Counter(word for word in words if word))


def _writes_to_inputs(program: ExportedProgram) -> bool:
    """Whether an in-place operator reaches an input. The library's writes leave no trace in
    the tensors' version counters, so that the session cannot find out by running it."""
    schemas = [getattr(node.target, "_schema", None) for node in program.graph.nodes]
    if not any(schema is not None and schema.is_mutable for schema in schemas):
        return False
    functional = program.run_decompositions({})  # which knows views and aliases; a second or so
    return bool(functional.graph_signature.user_inputs_to_mutate)


def _just_in_time(
    module: nn.Module, model: Model, candidate: Candidate, target: Target, detail: str
) -> _JustInTimeSession:
    """torch.compile, run until it has compiled what the profile asks for.

    Raises:
        Unsupported: it fails, or finds nothing in the module to compile.
    """
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    dynamic = not target.profile.is_fixed
    mode = _MODES[candidate.variant]
    with (
        scratch_directory() as scratch,
        inductor(scratch, compile_threads=_compile_threads(target)),
        # Off by default for training's sake; without it an LSTM is left to eager code.
        torch._dynamo.config.patch(allow_rnn=True),
    ):
        try:
            forward = torch.compile(module, dynamic=dynamic, mode=mode)
            session = _JustInTimeSession(
                forward, model, candidate.precision, target, target.profile
            )
            session.marks_steps = mode != _MODES[INDUCTOR]
            _settle(session, example(model, target, least=2 if dynamic else 1))
            session.counted = _count(counters, target, detail)
            if dynamic and any(r.min == 1 for r in target.profile.dims.values()):
                # Dynamo makes a graph of its own for size 1. Better now than while measured.
                _settle(session, example(model, target, most=1))
        except torch.OutOfMemoryError:
            raise  # a row of its own, and no fault of the compiler
        except MemoryError:
            raise
        except Exception as error:
            raise Unsupported(
                f"torch.compile cannot compile {model.name}.", why=short(error), fix=_fix(error)
            ) from error
    if not session.counted.nodes:
        raise Unsupported(
            f"torch.compile found nothing in {model.name} that it can compile.",
            why=detail or "The module disables the compiler.",
            fix="Race it without torch_compile.",
        )
    return session


def _settle(session: _JustInTimeSession, feeds: Feeds) -> None:
    """Run until nothing is compiled or recorded any more for these sizes."""
    for _ in range(_GRAPH_RUNS if session.marks_steps else 1):
        session.run(feeds)


def _compile_threads(target: Target) -> int:
    """Processes that compile: on CUDA there are dozens of Triton kernels, of a second each."""
    return min(_POOL, physical_cores()) if target.is_cuda else 1


def _count(counters: Mapping[str, Counter[str]], target: Target, detail: str) -> Placement:
    """What dynamo counted in the first run, when each graph was compiled once."""
    graphs = counters["stats"]["unique_graphs"]
    reasons = counters["graph_break"]
    if reasons:
        first = next(iter(reasons)).strip().partition("\n")[0]
        detail = f"{detail}; first graph break: {first[:_REASON_CHARS]}".removeprefix("; ")
    if skips := counters["inductor"]["cudagraph_skips"]:
        detail = f"{detail}; {skips} graphs without a CUDA graph".removeprefix("; ")
    operators = counters["stats"]["calls_captured"]
    return Placement(
        device=target.device,
        nodes={target.device: operators} if graphs else {},
        # As torch._dynamo.explain counts them; but a break with nothing to compile on one side
        # of it leaves no second graph, while its counter may count one break in several frames.
        graph_breaks=max(len(reasons), graphs - 1, 0),
        proof=f"dynamo's counters of the compilation: {graphs} graphs, {operators} operators",
        detail=detail,
    )


def _fix(error: BaseException) -> str:
    if "Python.h" in str(error):
        return "apt-get install python3-dev"
    return "Race it without torch_compile, or simplify what the reason names."
