"""ONNX Runtime: every execution provider of the installed build, and every plugin provider."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from peregrine.backends import _ort_errors as errors
from peregrine.backends import _ort_placement as placement
from peregrine.backends import _ort_providers as providers
from peregrine.backends.base import Backend, Session, check_feeds, check_sizes, options_of
from peregrine.errors import BackendUnavailable, OptionError, Unsupported
from peregrine.model.model import Model
from peregrine.types import (
    Array,
    Candidate,
    DimRange,
    Feeds,
    Placement,
    Precision,
    Profile,
    Scalar,
    Support,
    Target,
    physical_cores,
)

OPTIMIZATIONS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
DEFAULTS: dict[str, object] = {"threads": 0, "spinning": True, "optimization": "all"}
"""`threads` 0 follows the target. `spinning`: idle compute threads poll for work instead of
sleeping. `optimization`: the graph optimisation level; "disabled" runs the graph as it was
written, which makes it the reference of models without a module."""

# The CPU rows worth racing, measured on resnet18, efficientnet_lite0 (mobilenet-like), LCNet,
# SqueezeNet, a text recogniser and a recurrent voice detector, interleaved on 2 cores:
# - the default won on quiet cores, by 15 to 25% over threads that sleep;
# - not spinning won by 1.3 to 2.5 times while other processes wanted the same cores;
# - one thread won by 4% on the recurrent network of 0.1 ms, where handing out work costs more
#   than it brings, and by 1.3 to 2 times, again, where cores were contended.
# Never won anywhere: less optimisation (without the NCHWc layout convolutions took 1.2 to 2
# times as long, the rest as long), parallel execution of nodes (1.5 to 2 times as long), and,
# within 1% of CPU time, memory patterns off and fixed dimensions.
CPU_ROWS: tuple[dict[str, Scalar], ...] = ({}, {"spinning": False}, {"threads": 1})

# Providers whose kernels take any shape; the others compile for the shapes they were given.
_SHAPE_FREE = {providers.CPU, "CUDAExecutionProvider"}
_ANY_SIZE = 2**31 - 1
_OPTIMIZED = "optimized.onnx"
_OPTIMIZED_WEIGHTS = "optimized.bin"
_QUIET, _CHATTY = 3, 2  # log severities: errors only, warnings too


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
                options, self.provider, self.target, self.threads, self.precision
            )
            # Without enable_fallback=0 a provider that fails is replaced by another in silence.
            session = ort.InferenceSession(
                str(self.graph), options, providers=asked, enable_fallback=0
            )
        except errors.exceptions() as error:
            raise errors.on_open(error, self.model.name, self.provider) from error
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
        self._outputs_kept = False

    def bind(self, feeds: Feeds) -> None:
        check_sizes(self.profile, check_feeds(self.inputs, feeds))
        binding = self._runtime.io_binding()
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

        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, *self._device()))

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
        with tempfile.TemporaryDirectory(prefix="peregrine-") as directory:
            session = self.recipe.open(
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
        self._runtime = None


class OnnxRuntimeBackend(Backend):
    """A row per provider as its variant, and a few rows for the CPU's."""

    name: ClassVar[str] = "onnxruntime"

    @property
    def distributions(self) -> tuple[str, ...]:  # type: ignore[override]
        builds = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
        return (*builds, *providers.plugin_distributions())

    def available(self) -> Support:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return Support.no(f"onnxruntime does not import: {error}", "pip install onnxruntime")
        return Support.yes()

    def supports(self, model: Model, target: Target) -> Support:
        if not model.onnx:
            return Support.no(f"{model.name} has no ONNX graph: {model.onnx_error}")
        return Support.yes()

    def candidates(self, model: Model, target: Target) -> Iterator[Candidate]:
        for provider in providers.installed():
            for options in self._rows(provider, target):
                yield Candidate(self.name, provider.name, Precision.FP32, options)

    def _rows(self, provider: providers.Provider, target: Target) -> Iterable[dict[str, Scalar]]:
        if provider.name != providers.CPU:
            return ({},)
        if target.device != "cpu":
            return ()
        threads = target.threads or physical_cores()
        return (row for row in CPU_ROWS if row.get("threads") != threads)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> OrtSession:
        return OrtSession(_recipe(model, candidate, target))

    def save(self, session: Session, directory: Path) -> None:
        """The optimised graph, for the CPU: it opens in about half the time."""
        assert isinstance(session, OrtSession)
        recipe = session.recipe
        if recipe.provider != providers.CPU:
            return
        if recipe.graph.name == _OPTIMIZED:
            for name in (_OPTIMIZED, _OPTIMIZED_WEIGHTS):
                shutil.copyfile(recipe.graph.with_name(name), directory / name)
            return
        # Weights go to a file of their own: a graph whose weights lie in external data would
        # else be saved pointing at files that are not in this directory. Small ones stay: shape
        # inference cannot read constants from another file.
        recipe.open(
            **{
                "optimized_model_filepath": str(directory / _OPTIMIZED),
                "session.optimized_model_external_initializers_file_name": _OPTIMIZED_WEIGHTS,
                "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
            }
        )

    def load(
        self, directory: Path, model: Model, candidate: Candidate, target: Target
    ) -> OrtSession:
        recipe = _recipe(model, candidate, target)
        if (directory / _OPTIMIZED).exists():
            recipe = dataclasses.replace(
                recipe, graph=directory / _OPTIMIZED, optimization="disabled"
            )
        return OrtSession(recipe)


def _recipe(model: Model, candidate: Candidate, target: Target) -> Recipe:
    settings = options_of(candidate, DEFAULTS)
    if settings["optimization"] not in OPTIMIZATIONS:
        raise OptionError(
            f"onnxruntime has no optimization={settings['optimization']!r}.",
            fix=f"Use one of: {', '.join(OPTIMIZATIONS)}.",
        )
    allowed = (Precision.FP32, Precision.TF32) if target.is_cuda else (Precision.FP32,)
    if candidate.precision not in allowed:
        raise Unsupported(
            f"{candidate.id}: ONNX Runtime computes in the precision that the graph has.",
            fix="Give a model that was converted to that precision, as an fp32 candidate.",
        )
    return Recipe(
        model=model,
        graph=model.onnx_path,
        provider=candidate.variant or providers.CPU,
        precision=candidate.precision,
        threads=int(str(settings["threads"])) or target.threads or physical_cores(),
        spinning=bool(settings["spinning"]),
        optimization=str(settings["optimization"]),
        target=target,
    )


def _served(recipe: Recipe) -> Profile:
    """The sizes a session serves: any, unless the provider compiles for shapes."""
    profile = recipe.target.profile
    if recipe.provider not in _SHAPE_FREE:
        return profile
    symbols = {symbol for spec in recipe.model.inputs for symbol in spec.symbols}
    return Profile(
        {symbol: DimRange(1, profile.opt.get(symbol, 1), _ANY_SIZE) for symbol in symbols}
    )


def _run_options(target: Target) -> Any:
    """On a GPU an inference must be able to return before it is done."""
    if not target.is_cuda:
        return None
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
