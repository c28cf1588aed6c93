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

There is one variant. Channels-last weights were tried on the same networks at batch 1 and 8:
between 13% slower and 5% faster than plain ones, since freezing already picks the layout of each
convolution. That is not worth a second build.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.backends import _torch
from peregrine.backends.base import Backend, Session
from peregrine.errors import OptionError, Unsupported
from peregrine.model.inputs import random_array
from peregrine.model.model import Model
from peregrine.types import Candidate, Feeds, Placement, Precision, Support, Target

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

INDUCTOR = "inductor"

_PACKAGE = "inductor.pt2"
_FACTS = "inductor.json"
_REASON_CHARS = 300
_NOISE = (
    r"The tensor attributes? self\.",  # nn.LSTM lists its weights anew while it is traced
    "TensorFloat32 tensor cores",  # fp32 and tf32 are candidates of their own
    r"`isinstance\(treespec, LeafSpec\)`",  # torch of itself
)


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
            if precision is Precision.FP16 and not target.is_cuda:
                continue  # slow on CPUs, as eager's row shows without a build of half a minute
            yield Candidate(self.name, INDUCTOR, precision)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Build a session. Tens of seconds, most of them in the C++ compiler.

        Sizes that `target.profile` fixes are compiled in; the others stay dynamic.

        Raises:
            Unsupported: the module does not compile; says why in a line or two.
            OptionError: the profile does not size every symbol of the inputs.
            BackendUnavailable: there is no CUDA device for the target.
        """
        _torch.check(candidate, model, target, (INDUCTOR,))
        _check_profile(model, target)
        module = _torch.ready_module(model, candidate.precision, target)
        if target.is_cuda:
            return _just_in_time(module, model, candidate, target, "")
        _torch.keep_freed_memory()
        try:
            return _ahead_of_time(module, model, candidate, target)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a tracer can fail in any way; placement tells
            reason = f"not compiled ahead of time: {_short(error)}"
        return _just_in_time(module, model, candidate, target, reason)

    def save(self, session: Session, directory: Path) -> None:
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
                return _AheadOfTimeSession(package, facts, model, candidate, target)
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
        with _scratch():  # it unpacks itself there; a mapped library needs no file
            loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)

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
        return Placement(
            device=self._device,
            nodes={self._device: self._facts["nodes"]},
            precisions=self._facts.get("precisions", {}),
            fell_back=self._device != self.target.device.partition(":")[0],
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

    def placement(self, feeds: Feeds) -> Placement:
        return self.counted


def _ahead_of_time(
    module: nn.Module, model: Model, candidate: Candidate, target: Target
) -> Session:
    """Export one graph, compile it to a package, load the package."""
    import torch
    import torch._inductor

    with _scratch() as scratch, _inductor(scratch), torch.no_grad():
        program = _export(module, model, candidate.precision, target)
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
    session.run(_example(model, target))
    return session


def _export(
    module: nn.Module, model: Model, precision: Precision, target: Target
) -> ExportedProgram:
    """The module as a torch.export program, dynamic in the sizes that the profile leaves open."""
    import torch

    from peregrine.model.module import Positional

    open_sizes = {
        name: torch.export.Dim(f"size{i}", min=r.min, max=r.max)
        for i, (name, r) in enumerate(target.profile.dims.items())
        if r.min != r.max
    }
    dynamic = tuple(
        {axis: open_sizes[dim] for axis, dim in enumerate(spec.shape) if dim in open_sizes}
        for spec in model.inputs
    )
    dtype = _torch.compute_dtype(precision)
    tensors = (_torch.as_tensor(a) for a in _example(model, target, least=2).values())
    example = tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)
    return torch.export.export(Positional(module), example, dynamic_shapes=(dynamic,))


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
) -> Session:
    """torch.compile, run until it has compiled what the profile asks for.

    Raises:
        Unsupported: it fails, or finds nothing in the module to compile.
    """
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    dynamic = not target.profile.is_fixed
    with (
        _scratch() as scratch,
        _inductor(scratch),
        # Off by default for training's sake; without it an LSTM is left to eager code.
        torch._dynamo.config.patch(allow_rnn=True),
    ):
        try:
            forward = torch.compile(module, dynamic=dynamic)
            session = _JustInTimeSession(
                forward, model, candidate.precision, target, target.profile
            )
            session.run(_example(model, target, least=2 if dynamic else 1))
            session.counted = _count(counters, target, detail)
            if dynamic and any(r.min == 1 for r in target.profile.dims.values()):
                # Dynamo makes a graph of its own for size 1. Better now than while measured.
                session.run(_example(model, target, most=1))
        except MemoryError:
            raise
        except Exception as error:
            raise Unsupported(
                f"torch.compile cannot compile {model.name}.", why=_short(error), fix=_fix(error)
            ) from error
    if not session.counted.nodes:
        raise Unsupported(
            f"torch.compile found nothing in {model.name} that it can compile.",
            why=detail or "The module disables the compiler.",
            fix="Race it without torch_compile.",
        )
    return session


def _count(counters: Mapping[str, Counter[str]], target: Target, detail: str) -> Placement:
    """What dynamo counted in the first run, when each graph was compiled once."""
    graphs = counters["stats"]["unique_graphs"]
    reasons = counters["graph_break"]
    if reasons:
        first = next(iter(reasons)).strip().partition("\n")[0]
        detail = f"{detail}; first graph break: {first[:_REASON_CHARS]}".removeprefix("; ")
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


def _check_profile(model: Model, target: Target) -> None:
    symbols = {symbol for spec in model.inputs for symbol in spec.symbols}
    if missing := sorted(symbols - set(target.profile.dims)):
        raise OptionError(
            f"The profile gives no size for {', '.join(missing)}.",
            fix=f"Give one for each of {', '.join(sorted(symbols))}.",
        )


def _example(model: Model, target: Target, *, least: int = 1, most: int = 2**31) -> dict[str, Any]:
    """Valid random feeds at the sizes to optimise for, within `least` and `most` where the
    profile allows: a traced size of 1 would be taken for a constant."""
    sizes = {
        name: min(max(r.opt, min(least, r.max)), max(most, r.min))
        for name, r in target.profile.dims.items()
    }
    rng = np.random.default_rng(0)
    return {
        spec.name: random_array(spec, spec.resolve(sizes), model.ranges.get(spec.name), rng)
        for spec in model.inputs
    }


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary directory that takes the temporary files of C++ code and compilers too."""
    with (
        tempfile.TemporaryDirectory(prefix="peregrine-") as directory,
        _environment(TMPDIR=directory),
    ):
        yield Path(directory)


@contextlib.contextmanager
def _inductor(scratch: Path) -> Iterator[None]:
    """Inductor as the race wants it, with caches of its own.

    Fresh caches make every build an honest one, and no pickle is read from a directory that
    others may write to. In this process alone: inductor's pool would outlive a killed worker.
    """
    import torch._inductor.config as config
    from torch._inductor.utils import clear_caches

    settings: dict[str, Any] = {"freezing": True, "compile_threads": 1}
    if platform.machine() in ("x86_64", "AMD64"):
        # The CPU's flags decide. Compiling a probe for each instruction set takes 8 s, and every
        # compiler that reads torch's headers knows them.
        settings["cpp.vec_isa_ok"] = True
    inductor, triton = str(scratch / "inductor"), str(scratch / "triton")
    clear_caches()  # in memory, of paths that are gone
    try:
        with (
            config.patch(settings),
            _environment(TORCHINDUCTOR_CACHE_DIR=inductor, TRITON_CACHE_DIR=triton),
            warnings.catch_warnings(),
        ):
            for message in _NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        clear_caches()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short(error: BaseException) -> str:
    """The telling line of an exception of the compiler: the C++ compiler's first error, or
    the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "error:" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {telling}"[:_REASON_CHARS]


def _fix(error: BaseException) -> str:
    if "Python.h" in str(error):
        return "apt-get install python3-dev"
    return "Race it without torch_compile, or simplify what the reason names."
