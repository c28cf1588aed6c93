"""The workflows that a suite compares, each as the candidates that stand for it."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from peregrine.errors import OptionError, did_you_mean
from peregrine.results import Boundary, CandidateResult, Report, Status
from peregrine.types import Precision

_TENSORRT_PROVIDERS = (
    "onnxruntime[TensorrtExecutionProvider] {p}",
    "onnxruntime[NvTensorRTRTXExecutionProvider] {p}",
    "onnxruntime[nv_tensorrt_rtx] {p}",
)
_CUDA_PROVIDER = ("onnxruntime[CUDAExecutionProvider] {p}",)


@dataclass(frozen=True, slots=True)
class Workflow:
    """One way from a PyTorch network to an inference."""

    key: str
    title: str
    backend: str
    """Whose colour it has, and whose absence ends it."""
    cuda: tuple[tuple[str, ...], ...]
    """Patterns of candidate ids with `{p}` for the precision, in tiers: the first tier with a
    valid row stands for the workflow, and in it the fastest row. Each is a row of every race, so
    there are few: one setting a workflow, the one its runtime recommends."""
    cpu: tuple[tuple[str, ...], ...] = ()
    """The same on a CPU. Where nothing can run there, what asks the backend for its reason."""
    cpu_16bit: tuple[tuple[str, ...], ...] = ()
    """The same in fp16 and bf16 on a CPU, where that has other candidates."""
    by_name: bool = False
    """Raced only where it is named: the study has no such workflow, or it takes long to build."""
    precisions: tuple[Precision, ...] = ()
    """The only ones that it is raced in; empty for all of the suite's."""

    def offers(self, device: str) -> bool:
        """Whether the study has this workflow on such a device."""
        return bool(self._candidates(device))

    def _candidates(self, device: str) -> tuple[tuple[str, ...], ...]:
        return self.cuda if kind_of(device) == "cuda" else self.cpu

    def takes(self, precision: Precision) -> bool:
        return not self.precisions or precision in self.precisions

    def tiers(self, device: str, precision: Precision) -> list[list[str]]:
        if not self.takes(precision):
            return []
        tiers = self._candidates(device)
        if kind_of(device) != "cuda" and precision is not Precision.FP32:
            tiers = self.cpu_16bit or self.cpu
        return [[pattern.format(p=precision) for pattern in tier] for tier in tiers]

    def row(self, report: Report, device: str, precision: Precision) -> CandidateResult | None:
        """The row that stands for this workflow in a precision: valid where one is, else one with
        a reason, which may be that of the whole backend."""
        unfit: list[CandidateResult] = []
        own = [r for r in report.candidates if r.precision is precision]
        for tier in self.tiers(device, precision):
            rows = [r for r in own if any(_matches(r.id, p) for p in tier)]
            valid = [r for r in rows if r.status is Status.OK and r.measurements]
            if valid:
                return min(valid, key=_lead_ms)
            unfit += rows
        absent = [r for r in report.candidates if r.backend == self.backend and r.absent]
        return next(iter([*unfit, *absent]), None)


def _lead_ms(row: CandidateResult) -> float:
    first = row.measurements[0].batch
    found = row.measurement(first, Boundary.DEVICE) or row.measurements[0]
    return found.latency_ms.p50


def _matches(name: str, pattern: str) -> bool:
    """A shell pattern in which brackets are themselves: ids are full of them."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


W0 = Workflow(
    "W0",
    "PyTorch",
    "pytorch",
    cuda=(("pytorch[eager] {p}",),),
    cpu=(("pytorch[eager] {p}",),),
    # 16-bit convolutions of a CPU are raced in channels-last alone.
    cpu_16bit=(("pytorch[channels_last] {p}",),),
)
W1 = Workflow(
    "W1",
    "Torch-TensorRT",
    "torch_tensorrt",
    cuda=(("torch_tensorrt {p} cuda_graph",),),
    cpu=(("torch_tensorrt {p}",),),
)
W2 = Workflow(
    "W2",
    "ONNX to TensorRT",
    "tensorrt",
    cuda=(("tensorrt {p}",),),
    cpu=(("tensorrt {p}",),),
)
W3 = Workflow(
    "W3",
    "ONNX Runtime",
    "onnxruntime",
    cuda=(_TENSORRT_PROVIDERS, _CUDA_PROVIDER),
    cpu=(("onnxruntime[CPUExecutionProvider] {p}",),),
)
NATIVE = Workflow(
    "native",
    "Peregrine's own engine",
    "native",
    cuda=(("native {p}",),),
    cpu=(("native {p}",),),
    by_name=True,
)
PAPER = (W0, W1, W2, W3, NATIVE)

# The cells of the ResNet-50 table that the paper's workflows do not name. `torch2trt` is what the
# table's author used; Torch-TensorRT does the same job where that is absent.
TORCH_TRT = Workflow(
    "torch-tensorrt",
    "PyTorch by TensorRT",
    "torch_tensorrt",
    cuda=(("torch2trt* {p}*", "torch_tensorrt {p} cuda_graph"),),
    cpu=(),
)
ORT_CUDA = Workflow(
    "onnxruntime-cuda", "ONNX Runtime, CUDA provider", "onnxruntime", cuda=(_CUDA_PROVIDER,)
)
ORT_TRT = Workflow(
    "onnxruntime-tensorrt",
    "ONNX Runtime, TensorRT provider",
    "onnxruntime",
    cuda=(_TENSORRT_PROVIDERS,),
)
ORT_CPU = Workflow(
    "onnxruntime-cpu", "ONNX Runtime, CPU provider", "onnxruntime", cuda=(), cpu=W3.cpu
)
RESNET50 = (W0, TORCH_TRT, ORT_CPU, ORT_CUDA, ORT_TRT, W2, NATIVE)

OF_SUITE: dict[str, tuple[Workflow, ...]] = {"paper": PAPER, "resnet50": RESNET50}


def named(suite: str, words: Sequence[str]) -> tuple[Workflow, ...]:
    """The workflows that `words` name, in the suite's order; without words all that the study has.

    Args:
        words: keys, each of them alone or with one precision: `W0`, `native:fp16`.

    Raises:
        OptionError: an unknown word, with the nearest that is known.
    """
    every = OF_SUITE[suite]
    if not words:
        return tuple(workflow for workflow in every if not workflow.by_name)
    asked: dict[str, set[str]] = {}
    known = {workflow.key.lower(): workflow.key for workflow in every}
    for word in words:
        name, _, precision = word.partition(":")
        key = name.lower()
        if key not in known:
            raise OptionError(
                f"The {suite} suite has no workflow {name!r}.{did_you_mean(key, known)}",
                fix=f"Use some of: {', '.join(known.values())}.",
            )
        if precision not in ("", *Precision):
            raise OptionError(
                f"{word}: there is no precision {precision!r}.{did_you_mean(precision, Precision)}",
                fix=f"Name the workflow alone, or with a precision of the suite: {name}:fp16.",
            )
        asked.setdefault(known[key], set()).add(precision)
    return tuple(
        dataclasses.replace(workflow, precisions=_only(asked[workflow.key]))
        for workflow in every
        if workflow.key in asked
    )


def _only(names: set[str]) -> tuple[Precision, ...]:
    return () if "" in names else tuple(p for p in Precision if p in names)


def patterns(
    workflows: Sequence[Workflow], device: str, precisions: Sequence[Precision]
) -> tuple[str, ...]:
    """What a race is asked for, so that every workflow has its rows and nothing else runs."""
    tiers = (tier for p in precisions for w in workflows for tier in w.tiers(device, p))
    return tuple(dict.fromkeys(pattern for tier in tiers for pattern in tier))


def kind_of(device: str) -> str:
    """`cpu` or `cuda`, as names of files have it."""
    return "cuda" if device.startswith("cuda") else device
