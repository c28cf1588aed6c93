"""TensorRT, or TensorRT-RTX: engines are built anywhere and run on an NVIDIA GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from peregrine.backends._nvidia import nvidia_driver as nvidia_driver
from peregrine.backends._trt_engine import (
    DISTRIBUTIONS,
    INSTALL,
    LADDER,
    build_engine,
    import_tensorrt,
    installed_module,
    make_logger,
)
from peregrine.backends._trt_runtime import create_context, serialized
from peregrine.backends.base import Backend, Session, check_feeds, check_sizes, options_of
from peregrine.compiler.capture import capture
from peregrine.errors import BackendError, BackendUnavailable, Unsupported
from peregrine.model.model import Model
from peregrine.types import (
    Array,
    Candidate,
    Feeds,
    Placement,
    Support,
    Target,
    TensorSpec,
    numpy_dtype,
)

if TYPE_CHECKING:
    import torch

DEFAULTS: dict[str, object] = {"cuda_graph": True}
"""`cuda_graph`: an inference is one launch instead of one for each kernel. On an H200 MobileNetV2
at batch 1 took 1.7 times as long without it."""

_ENGINE = "engine.plan"
_KERNELS = "kernels.bin"
"""The runtime cache of TensorRT-RTX."""
_TORCH = "Install a CUDA build of PyTorch: `peregrine env create tensorrt`."


class TensorRtSession(Session):
    """An engine on a GPU. PyTorch owns its memory and its stream, as bytes without a dtype.

    With `cuda_graph`, the first inference of new sizes runs as it is, which TensorRT needs to
    settle (TensorRT-RTX compiles its kernels then), the second is captured, and later ones
    replay it. The addresses are part of a graph: a `bind` of the same sizes copies to the same
    buffers, and one of other sizes ends the graph.
    """

    def __init__(
        self,
        model: Model,
        engine: bytes,
        target: Target,
        *,
        cuda_graph: bool = True,
        kernels: bytes = b"",
    ) -> None:
        """
        Args:
            engine: as it was built or saved.
            kernels: what `compiled_kernels` of an earlier session gave.
        """
        import torch

        trt = import_tensorrt()
        self.inputs, self.outputs = model.inputs, model.outputs
        self.profile = target.profile
        self.serialized = engine
        self._device = torch.device(target.device)
        self._logger = make_logger(trt)
        torch.cuda.set_device(self._device)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendUnavailable(
                f"This GPU cannot load the engine of {model.name}.",
                why=" ".join(self._logger.errors),
                fix="Install a TensorRT that supports this GPU: `peregrine env create tensorrt`.",
            )
        self._context, self._kernels = create_context(
            trt, self._engine, kernels, fixed=target.profile.is_fixed
        )
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._buffers: dict[str, torch.Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._staged_inputs: dict[str, tuple[torch.Tensor, Array]] = {}
        self._staged_outputs: dict[str, tuple[torch.Tensor, Array]] = {}
        self._captures = cuda_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0
        """Inferences since the addresses last changed."""
        self._detail = ""

    def bind(self, feeds: Feeds) -> None:
        import torch

        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        self.synchronize()
        raw = {
            name: torch.from_numpy(np.array(value, order="C").reshape(-1).view(np.uint8))
            for name, value in feeds.items()
        }
        if self._fits(feeds, raw):
            for name, value in raw.items():
                self._buffers[name].copy_(value)
        else:
            self._place(feeds, raw)
        # The copies ran on PyTorch's own stream.
        torch.cuda.current_stream(self._device).synchronize()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """One inference through page-locked memory, from which the GPU copies by itself: all of it
        is queued behind each other and waited for once."""
        import torch

        sizes = check_feeds(self.inputs, feeds)
        staged = self._staged_inputs
        known = all(name in staged and self._shapes[name] == x.shape for name, x in feeds.items())
        if not known or self._runs < 1:
            outputs = super().run(feeds)
            self._stage()
            return outputs
        check_sizes(self.profile, sizes)
        self.synchronize()
        for name, value in feeds.items():
            np.copyto(staged[name][1], value)
        with torch.cuda.stream(self._stream):
            for name, (pinned, _) in staged.items():
                self._buffers[name].copy_(pinned, non_blocking=True)
            self.enqueue()
            for name, (pinned, _) in self._staged_outputs.items():
                pinned.copy_(self._buffers[name], non_blocking=True)
        self._stream.synchronize()
        return {name: view.copy() for name, (_, view) in self._staged_outputs.items()}

    def _stage(self) -> None:
        """Page-locked memory for the sizes that are bound. None where inputs decide sizes by
        their values: these must be looked at first."""
        import torch

        def stage(specs: Sequence[TensorSpec]) -> dict[str, tuple[torch.Tensor, Array]]:
            made = {}
            for spec in specs:
                pinned = torch.empty(
                    self._buffers[spec.name].shape, dtype=torch.uint8, pin_memory=True
                )
                view = pinned.numpy().view(numpy_dtype(spec.dtype))
                made[spec.name] = (pinned, view.reshape(self._shapes[spec.name]))
            return made

        if any(self._engine.is_shape_inference_io(spec.name) for spec in self.inputs):
            return
        self._staged_inputs = stage(self.inputs)
        self._staged_outputs = stage(self.outputs)

    def _fits(self, feeds: Feeds, raw: Mapping[str, torch.Tensor]) -> bool:
        """Whether what is bound has these sizes, and these values where they decide sizes."""
        return all(
            self._shapes.get(name) == value.shape
            and (
                not self._engine.is_shape_inference_io(name)
                or bool((self._buffers[name] == raw[name]).all())
            )
            for name, value in feeds.items()
        )

    def _place(self, feeds: Feeds, raw: Mapping[str, torch.Tensor]) -> None:
        """Allocate inputs and outputs for new sizes."""
        import torch

        self._graph, self._runs, self._shapes = None, 0, {}
        self._staged_inputs, self._staged_outputs = {}, {}
        for name, value in feeds.items():
            host = self._engine.is_shape_inference_io(name)
            self._address(name, raw[name].to("cpu" if host else self._device))
            if not self._context.set_input_shape(name, value.shape):
                raise self._failure(f"refuses the shape {value.shape} of {name!r}")
        if missing := self._context.infer_shapes():
            raise self._failure(f"cannot tell sizes from the inputs: {', '.join(missing)}")
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise Unsupported(
                    f"The size of output {spec.name!r} depends on the values of the inputs.",
                    fix="Race another backend for this model.",
                )
            self._shapes[spec.name] = shape
            count = int(np.prod(shape)) * numpy_dtype(spec.dtype).itemsize
            self._address(spec.name, torch.empty(count, dtype=torch.uint8, device=self._device))
        self._shapes |= {name: value.shape for name, value in feeds.items()}

    def _address(self, name: str, buffer: torch.Tensor) -> None:
        self._buffers[name] = buffer
        self._context.set_tensor_address(name, buffer.data_ptr())

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"TensorRT {what}.", why=" ".join(self._logger.errors[-3:]))

    def enqueue(self) -> None:
        if self._captures and self._graph is None and self._runs > 0:
            self._capture()
        self._runs += 1
        if self._graph is not None:
            self._graph.replay()  # on PyTorch's current stream
        else:
            self._start()

    def _start(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise self._failure("could not start an inference")

    def _capture(self) -> None:
        """Record an inference as a CUDA graph; without one where TensorRT does not allow it.

        `is_stream_capturable` is not asked: TensorRT-RTX 1.5 answered no for every engine of fixed
        sizes. Captured all the same they give what single launches give, and take as long as by
        its own `CudaGraphStrategy.WHOLE_GRAPH_CAPTURE` (ResNet-50 fp16 on an H200: 0.405 and
        0.407 ms, launched one by one 0.534).
        """
        import torch

        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with capture(graph, self._stream):
                self._start()
        except (BackendError, RuntimeError) as error:
            self._captures = False
            self._detail = f"Not a CUDA graph, each kernel is launched: {error}"
            torch.cuda.synchronize(self._device)  # clears what the broken capture left
        else:
            self._graph = graph

    def synchronize(self) -> None:
        self._running_on().synchronize()

    def own_stream(self) -> AbstractContextManager[object]:
        import torch

        # Launches go to the session's own stream, the replays of its graph to the current one.
        return torch.cuda.stream(self._stream)

    def cuda_stream(self) -> int:
        return int(self._running_on().cuda_stream)

    def _running_on(self) -> torch.cuda.Stream:
        """The stream that the last inference started on."""
        if self._graph is None:
            return self._stream
        import torch

        return torch.cuda.current_stream(self._device)

    def fetch(self) -> dict[str, Array]:
        return {
            spec.name: np.array(self._buffers[spec.name].cpu().numpy())
            .view(numpy_dtype(spec.dtype))
            .reshape(self._shapes[spec.name])
            for spec in self.outputs
        }

    def placement(self, feeds: Feeds) -> Placement:
        """An engine is all on its GPU or it does not build; the layers are the engine's own."""
        self.run(feeds)
        self.run(feeds)  # the one that is captured
        return Placement(
            device=str(self._device),
            nodes={"TensorRT": int(self._engine.num_layers)},
            proof="layers of the deserialised engine",
            detail="Replayed as one CUDA graph." if self._graph is not None else self._detail,
        )

    def compiled_kernels(self) -> bytes:
        """What the inferences so far had compiled; empty where the engine holds all kernels."""
        return serialized(self._kernels)

    def close(self) -> None:
        if self._context is not None:
            self.synchronize()
        self._graph = None
        self._buffers, self._staged_inputs, self._staged_outputs = {}, {}, {}
        # In this order: a context must not outlive its engine, nor that its runtime.
        self._context = None
        self._kernels = None
        self._engine = None
        self._runtime = None


class TensorRtBackend(Backend):
    """Without a GPU each row still builds its engine, and then says that nothing can run it."""

    name: ClassVar[str] = "tensorrt"
    distributions: ClassVar[tuple[str, ...]] = (*DISTRIBUTIONS, "torch")

    def available(self) -> Support:
        if installed_module():
            return Support.yes()
        return Support.no("TensorRT is not installed.", INSTALL)

    def supports(self, model: Model, target: Target) -> Support:
        if not model.onnx:
            return Support.no(f"{model.name} has no ONNX graph: {model.onnx_error}")
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterator[Candidate]:
        for precision, graph in LADDER if target.is_cuda else LADDER[:1]:
            yield Candidate(self.name, precision=precision, graph=graph)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> TensorRtSession:
        options = options_of(candidate, DEFAULTS)
        started = time.perf_counter()
        engine = build_engine(model, candidate, target)
        built = f"{len(engine) / 2**20:.1f} MB in {time.perf_counter() - started:.1f} s"
        runs = _runs_here(target)
        if not runs:
            raise BackendUnavailable(
                f"TensorRT built an engine of {model.name} ({built}) but cannot run it.",
                why=runs.reason,
                fix=runs.fix,
            )
        return TensorRtSession(model, engine, target, cuda_graph=bool(options["cuda_graph"]))

    def save(self, session: Session, directory: Path) -> None:
        """The engine, and the kernels that inferences have had compiled for it."""
        assert isinstance(session, TensorRtSession)
        (directory / _ENGINE).write_bytes(session.serialized)
        if kernels := session.compiled_kernels():
            (directory / _KERNELS).write_bytes(kernels)

    def load(
        self, directory: Path, model: Model, candidate: Candidate, target: Target
    ) -> TensorRtSession:
        if not (directory / _ENGINE).exists():
            return self.compile(model, candidate, target)
        options = options_of(candidate, DEFAULTS)
        runs = _runs_here(target)
        if not runs:
            raise BackendUnavailable(
                "TensorRT cannot run the saved engine.", why=runs.reason, fix=runs.fix
            )
        kernels = directory / _KERNELS
        return TensorRtSession(
            model,
            (directory / _ENGINE).read_bytes(),
            target,
            cuda_graph=bool(options["cuda_graph"]),
            kernels=kernels.read_bytes() if kernels.exists() else b"",
        )


def _runs_here(target: Target) -> Support:
    """Whether an engine can run on `target` here."""
    driver = nvidia_driver()
    if not driver:
        return driver
    if not target.is_cuda:
        return Support.no(
            f"An engine runs on an NVIDIA GPU; this race is for {target.device}.", "--device cuda"
        )
    try:
        import torch
    except ImportError:
        return Support.no("PyTorch, which holds the GPU's memory, is not installed.", _TORCH)
    if not torch.cuda.is_available():
        return Support.no("The installed PyTorch cannot use CUDA.", _TORCH)
    return Support.yes()
