"""Torch-TensorRT: an exported module in which TensorRT engines stand for all that converts.

Both packages install the module `torch_tensorrt`: `torch-tensorrt` (over TensorRT) and
`torch-tensorrt-rtx` (over TensorRT-RTX). They take the dynamo path: torch.export takes the module
as one graph, `torch_tensorrt.dynamo.compile` replaces what TensorRT can compute by engines and
leaves the rest to PyTorch. Networks are strongly typed: the precision is the exported module's.
Each release wants one torch and one TensorRT, so that it lives in an environment of its own.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from peregrine.backends import _torch
from peregrine.backends._gpu_package import GpuPackage, PackageBackend
from peregrine.backends._torch_export import check_profile, example, export, short
from peregrine.backends._torch_graph import RecordedSession
from peregrine.backends._trt_engine import DISTRIBUTIONS
from peregrine.backends.base import Session
from peregrine.errors import OptionError, Unsupported
from peregrine.model.model import Model
from peregrine.types import Candidate, Feeds, Placement, Precision, Target

DEFAULTS: dict[str, object] = {_torch.CUDA_GRAPH: False, "min_block_size": 1, "workspace_mb": 0}
"""`min_block_size`: operators that a TensorRT engine must hold at least; fewer stay in PyTorch.
`workspace_mb`: scratch memory that a kernel may take while it runs, MiB; 0 is TensorRT's own."""

_PROGRAM = "torch_tensorrt.pt2"
PACKAGE = GpuPackage(
    "torch_tensorrt",
    "Torch-TensorRT",
    "Each release wants one torch and one TensorRT beside it.",
    "peregrine env create torch-tensorrt-rtx, or: pip install torch-tensorrt-rtx beside the torch "
    "that it names",
)
_ENGINE_CALL = "tensorrt.execute_engine"
_ENGINE_MODULE = "TorchTensorRTModule"  # and PythonTorchTensorRTModule

# Operators that compute nothing: bookkeeping around the engines.
_BOOKKEEPING = frozenset(
    {
        *("_assert_scalar", "_assert_tensor_metadata", "_to_copy", "alias", "clone", "detach"),
        *("expand", "flatten", "lift_fresh", "lift_fresh_copy", "permute", "reshape", "select"),
        *("slice", "squeeze", "sym_constrain_range", "sym_constrain_range_for_size"),
        *("sym_numel", "sym_size", "sym_stride", "transpose", "unsqueeze", "view"),
    }
)


class TorchTensorRtBackend(PackageBackend):
    """One workflow in two packages; whichever is installed in the worker's interpreter."""

    name: ClassVar[str] = "torch_tensorrt"
    package: ClassVar[GpuPackage] = PACKAGE
    distributions: ClassVar[tuple[str, ...]] = (
        "torch-tensorrt",
        "torch-tensorrt-rtx",
        *DISTRIBUTIONS,
        "torch",
    )

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Export, convert, and build the engines: for the profile's sizes where it fixes them,
        for its ranges where it does not.

        Raises:
            Unsupported: the module does not export or convert, or none of it does.
            OptionError: an unknown option, or a profile that does not size every symbol.
            BackendUnavailable: no GPU, no CUDA build of torch, or a package that does not import.
        """
        options = _torch.check(candidate, model, target, ("",), DEFAULTS)
        min_block_size = _integer(options, "min_block_size", least=1)
        workspace_mb = _integer(options, "workspace_mb", least=0)
        torch_tensorrt = PACKAGE.ready(candidate, target)
        check_profile(model, target)
        module = _torch.ready_module(model, candidate.precision, target)
        import torch

        try:
            with (
                tempfile.TemporaryDirectory(prefix="peregrine-") as scratch,
                warnings.catch_warnings(),
                torch.no_grad(),
                torch.cuda.device(target.device),
            ):
                warnings.simplefilter("ignore")  # of its own deprecated options, set or not
                program = export(module, model, candidate.precision, target)
                compiled = torch_tensorrt.dynamo.compile(
                    program,
                    inputs=_inputs(torch_tensorrt, model, candidate.precision, target),
                    device=torch.device(target.device),
                    use_explicit_typing=True,
                    disable_tf32=candidate.precision is not Precision.TF32,
                    min_block_size=min_block_size,
                    workspace_size=workspace_mb << 20,
                    # Its default is one file in /tmp for all: a build would depend on others'.
                    timing_cache_path=str(Path(scratch) / "timing_cache.bin"),
                )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise Unsupported(
                f"Torch-TensorRT cannot compile {model.name}.",
                why=short(error),
                fix="Race it without torch_tensorrt, or simplify what the reason names.",
            ) from error
        placed = census(compiled, target)
        if not placed.nodes.get("TensorRT"):
            raise Unsupported(
                f"Torch-TensorRT converts nothing of {model.name}.",
                why=placed.detail or "No run of operators is long enough for an engine.",
                fix="Race it without torch_tensorrt, or lower its option min_block_size.",
            )
        return _session(compiled, compiled, placed, model, candidate, target)

    def save(self, session: Session, directory: Path) -> None:
        """Write the graph with its engines by torch.export's format; nothing where a graph does
        not go into it, and `load` then compiles."""
        assert isinstance(session, (_PlainSession, _RecordedSession))
        path = directory / _PROGRAM
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Not traced anew: what is kept is the graph that raced.
                PACKAGE.load().save(session.program, str(path), retrace=False)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # its exporter fails in many ways on split graphs
            path.unlink(missing_ok=True)

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        """Load what `save` wrote. Such a file can run code: check the bundle's hashes first."""
        path = directory / _PROGRAM
        if not path.exists():
            return self.compile(model, candidate, target)
        _torch.check(candidate, model, target, ("",), DEFAULTS)
        PACKAGE.ready(candidate, target)
        import torch

        with warnings.catch_warnings(), torch.cuda.device(target.device):
            warnings.simplefilter("ignore")
            program = torch.export.load(str(path))
            compiled = program.module()
        placed = census(compiled, target)
        return _session(compiled, program, placed, model, candidate, target)


class _PlainSession(_torch.TorchSession):
    """Engines and PyTorch's operators, launched one after the other."""

    program: Any
    """What `torch_tensorrt.save` takes: the compiled graph, or the program it was loaded as."""
    placed: Placement

    def placement(self, feeds: Feeds) -> Placement:
        return self.placed


class _RecordedSession(RecordedSession):
    """The same, recorded as one CUDA graph."""

    program: Any
    placed: Placement

    def placement(self, feeds: Feeds) -> Placement:
        return self.placed


def census(compiled: Any, target: Target) -> Placement:
    """How many engines a compiled graph holds, and how many ATen operators beside them.

    It counts what Torch-TensorRT left: modules that are engines, or calls of an engine once it
    was saved. It fell back where an operator that computes stays in PyTorch; copies and views
    between engines are counted and forgiven.

    Args:
        compiled: a torch.fx.GraphModule.
    """
    import torch

    engines = 0
    left: Counter[str] = Counter()
    graphs = [m for m in compiled.modules() if isinstance(m, torch.fx.GraphModule)]
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op == "call_module":
                called = graph.get_submodule(str(node.target))
                engines += type(called).__name__.endswith(_ENGINE_MODULE)
            elif node.op == "call_function":
                name = str(node.target)
                if name.startswith(_ENGINE_CALL):
                    engines += 1
                elif name.startswith("aten."):
                    left[name.split(".")[1]] += 1
    computing = Counter({name: n for name, n in left.items() if name not in _BOOKKEEPING})
    nodes = {"TensorRT": engines} if engines else {}
    if left:
        nodes[target.device] = left.total()
    detail = ""
    if computing:
        names = ", ".join(f"{name} ({n})" for name, n in sorted(computing.items()))
        detail = f"{computing.total()} operators are left to PyTorch: {names}."
    return Placement(
        device=target.device,
        nodes=nodes,
        fell_back=bool(computing),
        proof="the compiled graph: TensorRT engines, and ATen operators beside them",
        detail=detail,
    )


def _session(
    compiled: Callable[..., Any],
    program: Any,
    placed: Placement,
    model: Model,
    candidate: Candidate,
    target: Target,
) -> Session:
    records = bool(candidate.options.get(_torch.CUDA_GRAPH))
    kind = _RecordedSession if records else _PlainSession
    session = kind(compiled, model, candidate.precision, target, target.profile)
    session.program, session.placed = program, placed
    if records:
        session.bind(example(model, target))  # so that what cannot be recorded says so now
    return session


def _inputs(
    torch_tensorrt: ModuleType, model: Model, precision: Precision, target: Target
) -> list[Any]:
    """Each input with its smallest, best and largest shape, in the dtype that it arrives in."""
    import torch

    dims = target.profile.dims
    least, best, most = (
        {name: getattr(r, size) for name, r in dims.items()} for size in ("min", "opt", "max")
    )
    lower = _torch.compute_dtype(precision)
    made = []
    for spec in model.inputs:
        dtype = getattr(torch, spec.dtype)
        dtype = lower if lower is not None and dtype.is_floating_point else dtype
        shapes = [spec.resolve(sizes) for sizes in (least, best, most)]
        if shapes[0] == shapes[2]:
            made.append(torch_tensorrt.Input(shape=shapes[1], dtype=dtype))
        else:
            made.append(
                torch_tensorrt.Input(
                    min_shape=shapes[0], opt_shape=shapes[1], max_shape=shapes[2], dtype=dtype
                )
            )
    return made


def _integer(options: Mapping[str, object], name: str, *, least: int) -> int:
    """An option that is a count. Raises OptionError where it is none."""
    value = options[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(
            f"The option {name} of torch_tensorrt is {value!r}.",
            fix=f"Give a whole number of at least {least}.",
        )
    return value
