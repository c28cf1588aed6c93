"""torch2trt: a module's operators, one by one as it runs, made into the layers of one engine.

https://github.com/NVIDIA-AI-IOT/torch2trt. It needs full TensorRT, and what it cannot convert ends
the conversion: nothing is left to PyTorch. Installed beside Peregrine (`pip install
plugins/torch2trt`), it is a workflow of every race of a PyTorch model on a GPU. Versions go
together with Peregrine's, whose parts for PyTorch it shares.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

from peregrine.backends import _torch
from peregrine.backends._gpu_package import GpuPackage, PackageBackend
from peregrine.backends._torch_export import check_profile, example, short
from peregrine.backends._torch_graph import RecordedSession
from peregrine.backends._trt_engine import WORKSPACE
from peregrine.backends.base import Session
from peregrine.errors import BackendUnavailable, Unsupported
from peregrine.model.model import Model
from peregrine.types import Candidate, Feeds, Placement, Precision, Target

DEFAULTS: dict[str, object] = {_torch.CUDA_GRAPH: False}
PRECISIONS = (Precision.TF32, Precision.FP16)
"""Its networks are weakly typed: float32 in and out, and TensorRT may take TF32, which torch2trt
does not forbid; with `fp16_mode` float16 too."""

PACKAGE = GpuPackage(
    "torch2trt",
    "torch2trt",
    "It wants full TensorRT beside it.",
    "Install it beside full TensorRT: https://github.com/NVIDIA-AI-IOT/torch2trt#setup",
)
_ENGINE = "engine.plan"


class Torch2TrtBackend(PackageBackend):
    """An engine is built for the profile's sizes, or for its ranges."""

    name: ClassVar[str] = "torch2trt"
    package: ClassVar[GpuPackage] = PACKAGE
    distributions: ClassVar[tuple[str, ...]] = ("torch2trt", "tensorrt", "torch")
    times_kernels: ClassVar[bool] = True

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return PRECISIONS

    def compile(self, model: Model, candidate: Candidate, target: Target) -> Session:
        """Convert the module and build its engine.

        Raises:
            Unsupported: an operator without a converter, a precision or a range of sizes that this
                torch2trt does not have, or an engine that TensorRT does not build.
            OptionError: an unknown option, or a profile that does not size every symbol.
            BackendUnavailable: no GPU, no CUDA build of torch, or a package that does not import.
        """
        _check(candidate, model, target)
        torch2trt = PACKAGE.ready(candidate, target)
        check_profile(model, target)
        import torch

        from peregrine.model.module import Positional

        # Its inputs stay float32; what is computed in float16 TensorRT decides.
        module = Positional(_torch.ready_module(model, Precision.TF32, target))
        known = inspect.signature(torch2trt.torch2trt).parameters
        if not target.profile.is_fixed and "min_shapes" not in known:
            raise Unsupported(
                f"This torch2trt builds {model.name} for one size alone.",
                why="Its torch2trt() has no parameter min_shapes; since 0.5 it has.",
                fix="Update torch2trt, or race one size at a time: --batch 1.",
            )
        inputs = [
            _torch.as_tensor(value).to(target.device) for value in example(model, target).values()
        ]
        try:
            with torch.no_grad(), torch.cuda.device(target.device):
                converted = torch2trt.torch2trt(
                    module, inputs, **arguments(model, candidate.precision, target)
                )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise Unsupported(
                f"torch2trt cannot convert {model.name}.",
                why=short(error),
                fix="Race it without torch2trt, or add a converter for what the reason names.",
            ) from error
        return _session(converted, model, candidate, target)

    def save(self, session: Session, directory: Path) -> None:
        """The engine alone: torch2trt's own state is a pickle."""
        assert isinstance(session, (_PlainSession, _RecordedSession))
        (directory / _ENGINE).write_bytes(bytes(session.engine.serialize()))

    def load(self, directory: Path, model: Model, candidate: Candidate, target: Target) -> Session:
        path = directory / _ENGINE
        if not path.exists():
            return self.compile(model, candidate, target)
        _check(candidate, model, target)
        torch2trt = PACKAGE.ready(candidate, target)
        import tensorrt

        # torch2trt before 0.5 takes no path, and none of them keeps the runtime of its engine.
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BackendUnavailable(
                f"This GPU cannot load the saved engine of {model.name}.",
                why="It is of another GPU or another TensorRT, or damaged.",
                fix="Build it again here.",
            )
        session = _session(torch2trt.TRTModule(engine, *_names(model)), model, candidate, target)
        session.runtime = runtime
        return session


class _PlainSession(_torch.TorchSession):
    engine: Any
    runtime: Any = None
    """Of an engine that was loaded: it must outlive that."""

    def placement(self, feeds: Feeds) -> Placement:
        return _placement(self.engine, self.target)


class _RecordedSession(RecordedSession):
    """The same, recorded as one CUDA graph."""

    engine: Any
    runtime: Any = None

    def placement(self, feeds: Feeds) -> Placement:
        return _placement(self.engine, self.target)


def arguments(model: Model, precision: Precision, target: Target) -> dict[str, Any]:
    """What torch2trt is asked for beside a module and inputs: names, arithmetic and sizes."""
    inputs, outputs = _names(model)
    asked: dict[str, Any] = {
        "input_names": inputs,
        "output_names": outputs,
        "fp16_mode": precision is Precision.FP16,
        "max_workspace_size": WORKSPACE,
    }
    if not target.profile.is_fixed:
        for edge in ("min", "opt", "max"):
            sizes = {name: getattr(r, edge) for name, r in target.profile.dims.items()}
            asked[f"{edge}_shapes"] = [spec.resolve(sizes) for spec in model.inputs]
    return asked


def _names(model: Model) -> tuple[list[str], list[str]]:
    """Of an engine's inputs and outputs, as the module takes and gives them."""
    return [spec.name for spec in model.inputs], [spec.name for spec in model.outputs]


def _session(
    converted: Any, model: Model, candidate: Candidate, target: Target
) -> _PlainSession | _RecordedSession:
    """
    Args:
        converted: a `torch2trt.TRTModule`.
    """
    if converted.engine is None:
        raise Unsupported(
            f"TensorRT builds no engine of what torch2trt made of {model.name}.",
            why="TensorRT's log says what it lacks; torch2trt passes nothing on.",
            fix="Race it without torch2trt, or through ONNX: the backend tensorrt.",
        )
    records = bool(candidate.options.get(_torch.CUDA_GRAPH))
    kind = _RecordedSession if records else _PlainSession
    session = kind(converted, model, Precision.TF32, target, target.profile, mutates_inputs=False)
    session.engine = converted.engine
    if records:
        session.bind(example(model, target))  # so that what cannot be recorded says so now
    return session


def _placement(engine: Any, target: Target) -> Placement:
    return Placement(
        device=target.device,
        nodes={"TensorRT": int(engine.num_layers)},
        proof="layers of the engine: torch2trt converts a module as a whole",
    )


def _check(candidate: Candidate, model: Model, target: Target) -> None:
    """Refuse what `compile` and `load` cannot serve."""
    if target.is_cuda and candidate.precision not in PRECISIONS:
        raise Unsupported(
            f"torch2trt does not run {candidate.precision}.",
            why="Its networks take TF32, or float16 where they may.",
            fix=f"Use one of: {', '.join(PRECISIONS)}.",
        )
    _torch.check(candidate, model, target, ("",), DEFAULTS)
