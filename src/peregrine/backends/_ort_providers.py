"""Which execution providers ONNX Runtime has here, built in or as plugins, and how to ask for one.

A plugin is a distribution named `onnxruntime-ep-*` with a library that plain onnxruntime loads.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peregrine.errors import BackendUnavailable
from peregrine.model.graphs import Graph
from peregrine.types import Precision, Target

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PLUGIN_PREFIX = "onnxruntime-ep-"

# Providers that compute elsewhere than on this machine.
_REMOTE = {"AzureExecutionProvider"}
# What a built-in provider runs on; the others run on the CPU.
_DEVICES = {
    CUDA: "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "nv_tensorrt_rtx": "cuda",
    "ROCMExecutionProvider": "rocm",
    "MIGraphXExecutionProvider": "rocm",
    "DmlExecutionProvider": "dml",
}
# Plugins that refuse hardware by its PCI vendor, whatever it could do.
_VENDORS = {
    "OpenVINOExecutionProvider": (0x8086, "Intel"),
    "NvTensorRTRTXExecutionProvider": (0x10DE, "NVIDIA"),
    "nv_tensorrt_rtx": (0x10DE, "NVIDIA"),
}
# Python packages whose import loads a plugin's libraries. A plugin may call itself otherwise
# than its provider.
_LIBRARIES = {
    "NvTensorRTRTXExecutionProvider": "tensorrt_rtx",
    "nv_tensorrt_rtx": "tensorrt_rtx",
}
_INSTEAD = {
    "OpenVINOExecutionProvider": (
        "Race the `openvino` backend instead: the same engine without that check "
        "(`pip install openvino`)."
    ),
}
# What each provider is raced in: a precision and the graph that brings it. The CPU provider has
# no 16-bit arithmetic on x86. It computes an fp16 graph in fp32 between casts, which placement
# shows, and refuses a bf16 graph for want of kernels. It takes signed activations too, at fp32's
# speed or half of it. CUDA has no INT8: it would run a Q/DQ graph in fp32 with more to do.
_FP32 = (Precision.FP32, "")
_TYPED = ((Precision.FP16, Graph.FP16), (Precision.BF16, Graph.BF16))
_TENSORRT = (_FP32, *_TYPED, (Precision.FP8, Graph.FP8))
_LADDERS: dict[str, tuple[tuple[Precision, str], ...]] = {
    CPU: (_FP32, (Precision.INT8, Graph.U8S8), (Precision.INT8, Graph.DYNAMIC), *_TYPED),
    CUDA: (_FP32, (Precision.TF32, ""), *_TYPED),
    "OpenVINOExecutionProvider": (_FP32, (Precision.BF16, ""), (Precision.INT8, Graph.U8S8)),
    "TensorrtExecutionProvider": (*_TENSORRT, (Precision.INT8, Graph.S8S8)),
    "NvTensorRTRTXExecutionProvider": _TENSORRT,
    "nv_tensorrt_rtx": _TENSORRT,
}
# Full TensorRT's provider builds weakly typed networks: without its flag a precision is not used
# even where the graph has it. FP8 lies over an fp16 graph.
_TENSORRT_FLAGS = {
    Precision.FP16: "trt_fp16_enable",
    Precision.BF16: "trt_bf16_enable",
    Precision.FP8: "trt_fp16_enable",
    Precision.INT8: "trt_int8_enable",
}
_registered: set[str] = set()


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider; `distribution` and `module` are empty when it is built in."""

    name: str
    distribution: str = ""
    module: str = ""


def installed() -> Iterator[Provider]:
    """Every provider of the installed build, CPU first, then every plugin's."""
    import onnxruntime as ort

    plugins = list(_plugins())
    # From its registration on, a plugin's provider is listed beside the built-in ones, and so
    # are its meta devices, as `<name>.AUTO`.
    theirs = {plugin.name for plugin in plugins}
    built_in = [
        name
        for name in ort.get_available_providers()
        if name not in _REMOTE and name.partition(".")[0] not in theirs
    ]
    for name in sorted(built_in, key=lambda name: name != CPU):
        yield Provider(name)
    yield from plugins


def ladder(name: str, target: Target) -> tuple[tuple[Precision, str], ...]:
    """The precisions that a provider is raced in on `target`, each with the name of its graph.

    Just fp32 where the provider runs on another kind of device, or is not known here.
    """
    if _DEVICES.get(name, "cpu") != target.device.partition(":")[0]:
        return (_FP32,)
    return _LADDERS.get(name, (_FP32,))


def plugin_distributions() -> tuple[str, ...]:
    """Names of the installed `onnxruntime-ep-*` distributions."""
    names = (d.metadata["Name"] for d in importlib.metadata.distributions())
    return tuple(sorted({name for name in names if name and name.startswith(PLUGIN_PREFIX)}))


def _plugins() -> Iterator[Provider]:
    for distribution in plugin_distributions():
        module = _module_of(distribution)
        yield Provider(importlib.import_module(module).get_ep_name(), distribution, module)


def _module_of(distribution: str) -> str:
    """The top-level package a plugin's distribution installs."""
    for file in importlib.metadata.files(distribution) or ():
        if len(file.parts) == 2 and file.name == "__init__.py":
            return file.parts[0]
    return distribution.replace("-", "_")


def configure(
    session_options: Any,
    name: str,
    target: Target,
    threads: int,
    precision: Precision = Precision.FP32,
    *,
    prefer_nhwc: bool = False,
    cuda_graph: bool = False,
) -> list[tuple[str, dict[str, str]]] | None:
    """Ask for a provider, on `target`'s device; returns what `InferenceSession(providers=)` takes.

    A plugin is asked for in `session_options` itself, and the answer is None. The CPU provider
    stays behind every other one, or a session would not open at all for a model with one node
    that the provider lacks: what falls to it is for placement to tell.

    Raises:
        BackendUnavailable: the provider is not installed, or has no such device here.
    """
    provider = next((p for p in installed() if p.name == name), None)
    if provider is None:
        raise BackendUnavailable(
            f"ONNX Runtime has no {name} here.",
            why="The installed build lacks it, and no plugin brings it.",
            fix="`peregrine doctor` lists what is installed and what to install.",
        )
    options = _provider_options(name, target, threads, precision)
    if prefer_nhwc:
        options["prefer_nhwc"] = "1"
    if cuda_graph:
        options["enable_cuda_graph"] = "1"
    if provider.module:
        session_options.add_provider_for_devices([_plugin_device(provider, target)], options)
        return None
    runs_on = _DEVICES.get(name, "cpu")
    if runs_on != target.device.partition(":")[0]:
        raise BackendUnavailable(
            f"{name} runs on {runs_on}; this race is for {target.device}.",
            fix=f"Race for a device of its kind: --device {runs_on}.",
        )
    return [(name, options)] if name == CPU else [(name, options), (CPU, {})]


def _provider_options(
    name: str, target: Target, threads: int, precision: Precision
) -> dict[str, str]:
    if name == "OpenVINOExecutionProvider":
        # On a CPU with bf16 instructions OpenVINO computes fp32 models in bf16 unless told
        # otherwise: a scaled error of 1e-2 where the model asked for fp32.
        hint = "bf16" if precision is Precision.BF16 else "f32"
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(threads)}
        return {"load_config": json.dumps({"CPU": settings})}
    if name == CUDA:
        tf32 = str(int(precision is Precision.TF32))
        return {"device_id": device_index(target), "use_tf32": tf32}
    if name == "TensorrtExecutionProvider":
        flag = _TENSORRT_FLAGS.get(precision)
        return {"device_id": device_index(target), **({flag: "1"} if flag else {})}
    if _DEVICES.get(name) == "cuda":
        return {"device_id": device_index(target)}
    return {}


def device_index(target: Target) -> str:
    """ "1" of `cuda:1`; "0" where no index is given."""
    return target.device.partition(":")[2] or "0"


def _plugin_device(provider: Provider, target: Target) -> Any:
    """The device of a plugin that `target` means, registering the plugin's library once."""
    import onnxruntime as ort

    if provider.module not in _registered:
        library = importlib.import_module(provider.module).get_library_path()
        _preload(provider.name)
        # By the provider's own name: some plugins take the name they are registered by for it.
        ort.register_execution_provider_library(provider.name, library)
        _registered.add(provider.module)
    devices = ort.get_ep_devices()
    wanted = "CPU" if target.device == "cpu" else "GPU"
    offered = [d for d in devices if d.ep_name == provider.name and d.device.type.name == wanted]
    index = int(device_index(target))
    if index < len(offered):
        return offered[index]
    version = importlib.metadata.version(provider.distribution)
    raise BackendUnavailable(
        f"{provider.name} ({provider.distribution} {version}) offers no {wanted} device here.",
        why=_why_no_device(provider.name, wanted, devices),
        fix=_INSTEAD.get(
            provider.name,
            f"Install the driver of its device, or `pip uninstall {provider.distribution}`.",
        ),
    )


def _preload(name: str) -> None:
    """Load the libraries that a plugin needs and another package brings, where it is installed:
    the plugin looks for them by name among what the process has loaded."""
    with contextlib.suppress(ImportError):
        importlib.import_module(_LIBRARIES.get(name, "onnxruntime"))


def _why_no_device(name: str, wanted: str, devices: Any) -> str:
    hardware = {
        (d.device.vendor_id, f"{d.device.type.name} by {d.device.vendor or 'unknown'}")
        for d in devices
        if d.device.type.name == wanted
    }
    there_is = ", ".join(sorted(text for _, text in hardware)) or f"no {wanted}"
    vendor, maker = _VENDORS.get(name, (None, ""))
    if vendor is not None and hardware and all(v != vendor for v, _ in hardware):
        return f"The plugin takes {maker} hardware only; ONNX Runtime found {there_is}."
    return f"ONNX Runtime found {there_is}, and the plugin took none of it."
