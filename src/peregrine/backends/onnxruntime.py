"""ONNX Runtime: every execution provider of the installed build, and every plugin provider."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from peregrine.backends import _ort_providers as providers
from peregrine.backends._ort_session import (
    OPTIMIZATIONS,
    CudaGraphSession,
    OrtSession,
    Recipe,
)
from peregrine.backends.base import Backend, Session, check_graph, options_of
from peregrine.errors import OptionError, Unsupported
from peregrine.model.graphs import Graph, base_graph
from peregrine.model.model import Model
from peregrine.types import Candidate, Precision, Scalar, Support, Target, physical_cores

DEFAULTS: dict[str, object] = {
    "threads": 0,
    "spinning": True,
    "optimization": "all",
    "prefer_nhwc": False,
    "cuda_graph": False,
}
"""`threads` 0 follows the target. `spinning`: idle compute threads poll for work instead of
sleeping. `optimization`: the graph optimisation level; "disabled" runs the graph as it was
written, which makes it the reference of models without a module. Of the CUDA provider alone:
`prefer_nhwc`, channels-last convolutions, and `cuda_graph`, one launch for all kernels."""

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

# On an H200 at batch 1, where launching a kernel takes longer than running it, the best setting
# had a CUDA graph on every network tried, and for ResNet-18 in fp16 channels-last too. The plain
# row stays beside it: not every graph can be captured, and where cuDNN has no channels-last plan
# for a convolution the provider falls back to a slow one without a word.
CUDA_ROWS: tuple[dict[str, Scalar], ...] = ({}, {"prefer_nhwc": True, "cuda_graph": True})

_OPTIMIZED = "optimized.onnx"
_OPTIMIZED_WEIGHTS = "optimized.bin"


class OnnxRuntimeBackend(Backend):
    """A row per provider as its variant, and a few rows for the CPU's."""

    name: ClassVar[str] = "onnxruntime"
    times_kernels: ClassVar[bool] = True  # the CUDA provider searches cuDNN's algorithms

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
            if provider.name == providers.CPU and target.device != "cpu":
                continue
            for precision, graph in providers.ladder(provider.name, target):
                if graph == Graph.DYNAMIC and _takes_images(model):
                    continue
                for options in self._rows(provider.name, precision, target):
                    yield Candidate(self.name, provider.name, precision, options, graph)

    def _rows(
        self, provider: str, precision: Precision, target: Target
    ) -> Iterable[dict[str, Scalar]]:
        if provider == providers.CUDA and target.is_cuda:
            return CUDA_ROWS
        if provider != providers.CPU or precision is not Precision.FP32:
            return ({},)
        threads = target.threads or physical_cores()
        return (row for row in CPU_ROWS if row.get("threads") != threads)

    def compile(self, model: Model, candidate: Candidate, target: Target) -> OrtSession:
        return _session(_recipe(model, candidate, target))

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
        return _session(recipe)


def _takes_images(model: Model) -> bool:
    """Whether an input has the shape of images. Such networks are convolutions, which dynamic
    quantisation makes slower: it is for the matrix products of transformers and for LSTMs."""
    return any(len(s.shape) == 4 and s.dtype.startswith("float") for s in model.inputs)


def _session(recipe: Recipe) -> OrtSession:
    return CudaGraphSession(recipe) if recipe.cuda_graph else OrtSession(recipe)


def _recipe(model: Model, candidate: Candidate, target: Target) -> Recipe:
    settings = options_of(candidate, DEFAULTS)
    if settings["optimization"] not in OPTIMIZATIONS:
        raise OptionError(
            f"onnxruntime has no optimization={settings['optimization']!r}.",
            fix=f"Use one of: {', '.join(OPTIMIZATIONS)}.",
        )
    provider = candidate.variant or providers.CPU
    cuda_only = [name for name in ("prefer_nhwc", "cuda_graph") if settings[name]]
    if cuda_only and provider != providers.CUDA:
        raise OptionError(
            f"{provider} has no {' and no '.join(cuda_only)}.",
            fix=f"They are options of {providers.CUDA}.",
        )
    check_graph(candidate, model)
    graph = base_graph(candidate.graph) if candidate.graph else ""
    offered = providers.ladder(provider, target)
    if (candidate.precision, graph) not in offered:
        raise Unsupported(
            f"{provider} is given no {candidate.precision}"
            f"{f' as the graph {candidate.graph}' if candidate.graph else ''} here.",
            why="It has no kernels for it, or would compute in another precision.",
            fix=f"Use one of: {', '.join(f'{p} {g}'.strip() for p, g in offered)}.",
        )
    return Recipe(
        model=model,
        graph=model.onnx_path,
        provider=provider,
        precision=candidate.precision,
        threads=int(str(settings["threads"])) or target.threads or physical_cores(),
        spinning=bool(settings["spinning"]),
        optimization=str(settings["optimization"]),
        target=target,
        prefer_nhwc=bool(settings["prefer_nhwc"]),
        cuda_graph=bool(settings["cuda_graph"]),
    )
