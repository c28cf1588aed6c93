"""ONNX Runtime's sessions: what opens one, the plain one, and the one that replays a CUDA graph."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peregrine.backends import _ort_errors as errors
from peregrine.backends import _ort_placement as placement
from peregrine.backends import _ort_providers as providers
from peregrine.backends.base import Session, check_feeds, check_sizes
from peregrine.errors import BackendUnavailable
from peregrine.model.model import Model
from peregrine.types import Array, DimRange, Feeds, Placement, Precision, Profile, Target

OPTIMIZATIONS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# Providers whose kernels take any shape; the others compile for the shapes they were given.
_SHAPE_FREE = {providers.CPU, providers.CUDA}
_ANY_SIZE = 2**31 - 1
_QUIET, _CHATTY = 3, 2  # log severities: errors only, warnings too
_NO_GRAPH = -1  # the number that asks for no CUDA graph in this one inference


@dataclass(frozen=True, slots=True)
class Recipe:
    """All it takes to open a session, so that the proof of placement opens a like one."""

    model: Model
    graph: Path
    provider: str
    precision: Precision
    threads: int
    spinning: bool
    optimization: str
    target: Target
    prefer_nhwc: bool = False
    cuda_graph: bool = False

    def open(self, **settings: Any) -> Any:
        """An `onnxruntime.InferenceSession`; `settings` are attributes of its options.

        Raises `Unsupported`, `ModelCorrupt` or `BackendUnavailable`.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        level = OPTIMIZATIONS[self.optimization]
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        for name, value in settings.items():
            if name.startswith("session."):
                options.add_session_config_entry(name, value)
            else:
                setattr(options, name, value)
        try:
            asked = providers.configure(
                options,
                self.provider,
                self.target,
                self.threads,
                self.precision,
                prefer_nhwc=self.prefer_nhwc,
                cuda_graph=self.cuda_graph,
            )
            # Without enable_fallback=0 a provider that fails is replaced by another in silence.
            session = ort.InferenceSession(
                str(self.graph), options, providers=asked, enable_fallback=0
            )
        except errors.exceptions() as error:
            raise errors.on_open(error, self.model.name, self.provider, self.precision) from error
        if self.provider not in session.get_providers():
            raise BackendUnavailable(
                f"{self.provider} did not start; ONNX Runtime dropped it.",
                why=f"The session has only {', '.join(session.get_providers())}. "
                "Mostly a library the provider needs is missing or of another version; "
                "ONNX Runtime's own message is in the log.",
                fix="`peregrine env create onnxruntime` makes an environment where they match.",
            )
        return session


class OrtSession(Session):
    """Device boundary by an I/O binding; host boundary by `InferenceSession.run`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.inputs, self.outputs = recipe.model.inputs, recipe.model.outputs
        self.profile = _served(recipe)
        self._names = [spec.name for spec in self.outputs]
        self._runtime = recipe.open()
        self._run_options = _run_options(recipe.target)
        self._binding: Any = None
        self._device_inputs: dict[str, Any] = {}
        self._outputs_kept = False

    def bind(self, feeds: Feeds) -> None:
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        binding = self._runtime.io_binding()
        self._device_inputs = {}
        for name, value in feeds.items():
            # A copy: the binding reads this memory at every inference.
            self._bind_input(binding, name, np.array(value, order="C"))
        for name in self._names:
            binding.bind_output(name, *self._device())
        self._binding = binding
        self._outputs_kept = False

    def _device(self) -> tuple[str, int]:
        target = self.recipe.target
        return ("cuda", int(providers.device_index(target))) if target.is_cuda else ("cpu", 0)

    def _bind_input(self, binding: Any, name: str, value: Array) -> None:
        if not self.recipe.target.is_cuda:
            binding.bind_cpu_input(name, value)
            return
        import onnxruntime as ort

        held = ort.OrtValue.ortvalue_from_numpy(value, *self._device())
        self._device_inputs[name] = held
        binding.bind_ortvalue_input(name, held)

    def enqueue(self) -> None:
        try:
            self._runtime.run_with_iobinding(self._binding, self._run_options)
        except errors.exceptions() as error:
            raise errors.on_run(error) from error
        if not self._outputs_kept:
            self._keep_outputs()

    def _keep_outputs(self) -> None:
        """Have later inferences write where the first one did, so that they allocate nothing.

        Only the first inference knows the sizes of every output.
        """
        for name, value in zip(self._names, self._binding.get_outputs(), strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._outputs_kept = True

    def synchronize(self) -> None:
        if self.recipe.target.is_cuda:
            self._binding.synchronize_outputs()

    def fetch(self) -> dict[str, Array]:
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))

    def run(self, feeds: Feeds) -> dict[str, Array]:
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        try:
            outputs = self._runtime.run(self._names, feeds)
        except errors.exceptions() as error:
            raise errors.on_run(error) from error
        return dict(zip(self._names, outputs, strict=True))

    def placement(self, feeds: Feeds) -> Placement:
        """From the profile of another session like this one: profiling costs time."""
        # Nor captured: a graph's replay shows none of its nodes.
        plain = dataclasses.replace(self.recipe, cuda_graph=False)
        with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
            session = plain.open(
                enable_profiling=True,
                profile_file_prefix=str(Path(directory) / "profile"),
                # The one session that may speak its warnings, for the log.
                log_severity_level=_CHATTY,
                **{"session.record_ep_graph_assignment_info": "1"},
            )
            session.run(self._names, feeds)
            ran = placement.read_profile(Path(session.end_profiling()))
        assigned: dict[str, int] = {}
        for part in session.get_provider_graph_assignment_info():
            assigned[part.ep_name] = assigned.get(part.ep_name, 0) + len(part.get_nodes())
        return placement.place(
            ran,
            assigned,
            self.recipe.provider,
            self._runtime.get_providers(),
            self.recipe.target.device,
        )

    def close(self) -> None:
        self._binding = None
        self._device_inputs = {}
        self._runtime = None


@dataclass(frozen=True, slots=True)
class _Capture:
    """What a CUDA graph reads and writes, and how to ask for it."""

    binding: Any
    inputs: dict[str, Any]
    run_options: Any


class CudaGraphSession(OrtSession):
    """An inference is the launch of one CUDA graph, captured for each set of sizes.

    A graph reads and writes the addresses that it was captured with. So the first inference of
    new sizes runs without one and tells where the outputs lie, the second is captured, and a
    later `bind` of the same sizes copies its inputs to the same place.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._captures: dict[tuple[tuple[int, ...], ...], _Capture] = {}
        self._sizes: tuple[tuple[int, ...], ...] = ()

    def bind(self, feeds: Feeds) -> None:
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        if self._binding is not None:
            self.synchronize()  # an inference in flight may still read the inputs
        self._sizes = tuple(np.shape(feeds[spec.name]) for spec in self.inputs)
        known = self._captures.get(self._sizes)
        if known is None:
            super().bind(feeds)
            self._run_options = _run_options(self.recipe.target, _NO_GRAPH)
            return
        for name, value in feeds.items():
            known.inputs[name].update_inplace(np.array(value, order="C"))
        self._binding, self._run_options = known.binding, known.run_options
        self._outputs_kept = True

    def _keep_outputs(self) -> None:
        super()._keep_outputs()
        graph = len(self._captures) + 1
        self._run_options = _run_options(self.recipe.target, graph)
        self._captures[self._sizes] = _Capture(
            self._binding, self._device_inputs, self._run_options
        )

    def run(self, feeds: Feeds) -> dict[str, Array]:
        # Not the runtime's own way from host to host: it places each inference elsewhere.
        return Session.run(self, feeds)

    def close(self) -> None:
        self._captures = {}
        super().close()


def _served(recipe: Recipe) -> Profile:
    """The sizes a session serves: any, unless the provider compiles for shapes."""
    profile = recipe.target.profile
    if recipe.provider not in _SHAPE_FREE:
        return profile
    symbols = {symbol for spec in recipe.model.inputs for symbol in spec.symbols}
    return Profile(
        {symbol: DimRange(1, profile.opt.get(symbol, 1), _ANY_SIZE) for symbol in symbols}
    )


def _run_options(target: Target, graph: int | None = None) -> Any:
    """On a GPU an inference must be able to return before it is done. `graph` is the number of
    the CUDA graph to capture or replay, or `_NO_GRAPH`."""
    if not target.is_cuda:
        return None
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
