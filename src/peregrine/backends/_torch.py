"""What the two PyTorch backends share: arrays in and out of tensors, and one kind of session."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from peregrine.backends.base import Session, check_feeds, check_graph, options_of
from peregrine.errors import BackendUnavailable, FeedError, OptionError, Unsupported, UsageError
from peregrine.model.model import Model
from peregrine.types import (
    Array,
    Candidate,
    Feeds,
    Precision,
    Profile,
    Support,
    Target,
    numpy_dtype,
    physical_cores,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# From glibc's malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_MAX = 32 << 20

CUDA_GRAPH = "cuda_graph"
"""The option of replaying an inference as one CUDA graph (`_torch_graph`)."""

_BESIDE_A_GPU = 4
"""Threads that copy: 600 KB to page-locked memory take 0.009 ms with 4 and 0.016 with 16, alone on
a machine of 16 processors; beside a compiler, 16 took 8 ms."""
_USUAL = frozenset(map(np.dtype, ("float32", "int64", "bool", "int32", "float16", "uint8")))
"""Native dtypes (a swapped one is not equal to them) that torch reads as they are."""
_CPU_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)
_CUDA_PRECISIONS = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16)

# ATen's operators that compute with weights, and attention.
_COMPUTES = re.compile(
    r"aten\.(?:_?conv|linear|addmm|mm|matmul|bmm|baddbmm|lstm|gru|rnn_|scaled_dot_product"
    r"|_native_multi_head|_transformer_encoder)"
)
_WORDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def installed() -> Support:
    """Whether torch is in this interpreter, without the seconds that importing it takes."""
    if importlib.util.find_spec("torch") is None:
        return Support.no(
            "PyTorch is not installed in this interpreter.",
            "pip install 'peregrine-inference[torch]', or: peregrine env create torch",
        )
    return Support.yes()


def has_images(model: Model) -> bool:
    """Whether an input is of four dimensions and floats, which is where layouts differ."""
    return any(s.dtype.startswith("float") and len(s.shape) == 4 for s in model.inputs)


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its convolutions' weights in NHWC, in place.

    The weights decide: a convolution takes its weight's layout whatever its input's, and hands
    it on. Converting the input too measured the same on a ResNet-18.
    """
    import torch

    converted: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return converted


def takes(model: Model) -> Support:
    """Whether there is a module to run."""
    if model.module is None:
        return Support.no(
            f"{model.name} came as ONNX: there is no PyTorch module to run.",
            "Give the PyTorch module, a `package.module:factory`, or a .pt2 of torch.export.save.",
        )
    return Support.yes()


def precisions(target: Target) -> tuple[Precision, ...]:
    """What the device has kernels for, which need not be fast ones.

    On a CPU with AVX512-BF16 ResNet-18 took a third of fp32's time in bf16 and 3 times as long
    in fp16; without such instructions bf16 takes 3 to 5 times as long.
    """
    return _CUDA_PRECISIONS if target.is_cuda else _CPU_PRECISIONS


def arithmetic(operator: object, result: object) -> str:
    """`f32`, `bf16`, ... for an ATen operator that computes with weights, by the dtype of its
    `result` (a tensor, or a sequence of them); empty for any other operator."""
    if not _COMPUTES.match(str(operator)):
        return ""
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    return _WORDS.get(str(getattr(first, "dtype", "")).removeprefix("torch."), "")


def check(
    candidate: Candidate,
    model: Model,
    target: Target,
    variants: Iterable[str],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Refuse a candidate that the backend cannot build; its options over `defaults`.

    Raises:
        OptionError: an unknown variant or option, a CUDA graph on a CPU, or a converted graph:
            a module has none.
        Unsupported: a precision that the device lacks.
    """
    options = options_of(candidate, defaults)
    check_graph(candidate, model)
    known = tuple(variants)
    if candidate.variant not in known:
        raise OptionError(
            f"{candidate.backend} has no variant {candidate.variant!r}.",
            fix=f"Use one of: {', '.join(known)}.",
        )
    if candidate.precision not in precisions(target):
        raise Unsupported(
            f"{candidate.backend} does not run {candidate.precision} on {target.device}.",
            fix=f"Use one of: {', '.join(precisions(target))}.",
        )
    if candidate.options.get(CUDA_GRAPH) and not target.is_cuda:
        raise OptionError(
            f"There are no CUDA graphs on {target.device}.",
            fix=f"Leave the option {CUDA_GRAPH} out, or use --device cuda.",
        )
    return options


def threads_of(target: Target) -> int:
    """Those of PyTorch on the CPU. Beside a GPU they only copy and convert what goes there and
    comes back: a few do that as fast, and seldom wait for a processor that others keep busy."""
    if target.threads:
        return target.threads
    return min(physical_cores(), _BESIDE_A_GPU) if target.is_cuda else physical_cores()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next inference, in this whole process.

    PyTorch allocates every activation anew. When the last of them is freed, glibc gives the top
    of the heap back to the kernel, which clears the same pages again at the next inference. With
    nothing given back, EfficientNet-Lite0 at batch 1 took 7.3 in place of 10.3 ms by inductor and
    14.0 in place of 20 ms in channels-last (2 cores, glibc 2.36); ResNet-18, of fewer and
    larger activations, stayed the same. The peak of memory did too: it is what is kept.

    Does nothing where there is no glibc. Eager PyTorch is left as users have it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def ready_module(model: Model, precision: Precision, target: Target) -> nn.Module:
    """The model's module on the target's device in the dtype of `precision`.

    Sets the process's threads and its float32 arithmetic: a worker runs one candidate.

    Raises:
        BackendUnavailable: a CUDA device that torch cannot use.
    """
    import torch

    torch.set_num_threads(threads_of(target))
    module = model.load_module()
    if not target.is_cuda:
        dtype = compute_dtype(precision)
        return module if dtype is None else module.to(dtype)
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"torch {torch.__version__} finds no CUDA device for {target.device}.",
            fix="Use --device cpu, or install a CUDA build of torch and a matching driver.",
        )
    tf32 = precision is Precision.TF32
    # cuDNN takes TF32 unless it is told not to, so that plain fp32 must be asked for.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return module.to(target.device, compute_dtype(precision))


def compute_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype that parameters and float inputs are cast to; None leaves them as they are."""
    import torch

    return {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}.get(precision)


def as_tensor(array: Array) -> Tensor:
    """A CPU tensor over the memory of a C-contiguous native array; over a copy of any other.

    The memory may be read-only: the caller of this must not write to the tensor.
    """
    import torch

    flags = array.flags
    if flags.c_contiguous and flags.writeable and array.dtype in _USUAL:
        return torch.from_numpy(array)  # the usual case, in under a microsecond
    # Not ascontiguousarray, which makes a vector of a scalar.
    array = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    is_bfloat16 = array.dtype.name == "bfloat16"  # of ml_dtypes, which torch does not know
    if is_bfloat16:
        array = array.view(np.int16)
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


class _Writable:
    """The same memory, said to be writable: torch has no read-only tensors and warns of each."""

    def __init__(self, array: Array) -> None:
        self._array = array  # an array made from this object keeps it, and so the memory
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_array(tensor: Tensor, dtype: torch.dtype) -> Array:
    """A tensor as a host array of `dtype`, in memory of its own: the tensor may be an input,
    a parameter, or a view of one."""
    import torch

    if tensor.dtype is dtype and tensor.device.type == "cpu":
        host = tensor.detach().clone(memory_format=torch.contiguous_format)
    else:
        host = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if dtype is torch.bfloat16:
        return host.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return host.numpy()


class TorchSession(Session):
    """Calls something that takes tensors by position and returns one, or a sequence of them."""

    def __init__(
        self,
        forward: Callable[..., Tensor | Sequence[Tensor]],
        model: Model,
        precision: Precision,
        target: Target,
        profile: Profile,
        *,
        mutates_inputs: bool | None = None,
    ) -> None:
        """Args:
        forward: called under `torch.inference_mode`.
        mutates_inputs: whether it writes to its inputs; None finds out at the first run.
        """
        import torch

        self.inputs = model.inputs
        self.outputs = model.outputs
        self.profile = profile
        self.target = target
        self._forward: Callable[..., Any] = forward
        self._name = model.name
        self._inference_mode = torch.inference_mode
        self._dtype = compute_dtype(precision)
        self._wanted = [(spec.name, getattr(torch, spec.dtype)) for spec in model.outputs]
        self._moves = target.is_cuda or self._dtype is not None
        self._mutates = mutates_inputs
        self._bound: list[Tensor] = []
        self._result: Any = ()
        self._stream: torch.cuda.Stream | None = None
        """Its own, where it must not wait for other sessions."""

    @property
    def forward(self) -> Callable[..., Any]:
        """What it calls."""
        return self._forward

    @property
    def mutates_inputs(self) -> bool | None:
        """Whether it writes to its inputs; None before the first run has told."""
        return self._mutates

    def bind(self, feeds: Feeds) -> None:
        self._bound = [self._place(tensor) for tensor in self._host_tensors(feeds)]

    def _host_tensors(self, feeds: Feeds) -> list[Tensor]:
        """The feeds in the inputs' order, in the caller's memory. Raises FeedError."""
        sizes = check_feeds(self.inputs, feeds)
        if not self.profile.covers(sizes):
            raise FeedError(
                f"This session was not compiled for {_sizes(sizes)}.",
                why=f"It serves {_ranges(self.profile)}.",
                fix="Compile it for a profile that covers these sizes.",
            )
        return [as_tensor(np.asarray(feeds[s.name])) for s in self.inputs]

    def _place(self, tensor: Tensor) -> Tensor:
        if not self._moves:
            return tensor
        dtype = self._dtype if tensor.is_floating_point() else None
        return tensor.to(self.target.device, dtype)

    def enqueue(self) -> None:
        inputs = self._bound
        if self._mutates is not False:
            inputs = self._copies()
        with self._inference_mode():
            self._result = self._forward(*inputs)
        if self._mutates is None:
            # What writes to its inputs (an in-place ReLU first, say) would write to the
            # caller's arrays, and would find other values there at the next inference.
            self._mutates = any(t._version != 0 for t in inputs)

    def _copies(self) -> list[Tensor]:
        # Outside inference mode, where tensors count the writes to them.
        with self._inference_mode(False):
            return [tensor.clone() for tensor in self._bound]

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        elif self.target.is_cuda:
            import torch

            torch.cuda.synchronize(self.target.device)

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        if not self.target.is_cuda:
            yield
            return
        with new_stream(self.target) as stream:
            self._stream = stream
            try:
                yield
            finally:
                self._stream = None

    def cuda_stream(self) -> int | None:
        if not self.target.is_cuda:
            return None
        import torch

        return int(torch.cuda.current_stream(self.target.device).cuda_stream)

    def fetch(self) -> dict[str, Array]:
        result = self._result
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        return {
            name: as_array(tensor, dtype)
            for (name, dtype), tensor in zip(self._wanted, tensors, strict=True)
        }

    def close(self) -> None:
        self._forward, self._bound, self._result = closed, [], ()


@contextmanager
def new_stream(target: Target) -> Iterator[torch.cuda.Stream]:
    """A new stream, this thread's current one within, behind what was started before."""
    import torch

    stream = torch.cuda.Stream(torch.device(target.device))  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield stream
        stream.synchronize()


def closed(*_: Tensor) -> None:
    """What a closed session calls."""
    raise UsageError("The session is closed.", fix="Compile or load it again.")


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "these inputs"


def _ranges(profile: Profile) -> str:
    return ", ".join(
        f"{name}={r.min}" if r.min == r.max else f"{name}={r.min}..{r.max}"
        for name, r in profile.dims.items()
    )
