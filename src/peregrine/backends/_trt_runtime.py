"""How TensorRT-RTX runs an engine: kernels compiled on the GPU's own machine, and kept.

TensorRT-RTX compiles an engine's kernels at its first inference, which took a second for ResNet-18
on an H200. Its runtime cache holds them; saved beside the engine, they come back with it. It drops
a cache of another GPU, CUDA or version by itself. Full TensorRT has no such thing: its engines hold
their kernels.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
"""

from __future__ import annotations

import contextlib
from typing import Any

# What bindings raise for a method or an overload that they do not have, or a call that failed.
_REFUSALS = (AttributeError, TypeError, RuntimeError)


def create_context(trt: Any, engine: Any, kernels: bytes, *, fixed: bool) -> tuple[Any, Any]:
    """An execution context of an engine, and its runtime cache: both must be held as long as the
    context is used.

    Args:
        trt: the TensorRT module.
        engine: a deserialised engine.
        kernels: what `serialized` gave for an earlier context; empty for none.
        fixed: the engine serves one size alone. Where it serves a range, TensorRT-RTX would by
            default run a new size on general kernels at first and replace them later: a CUDA
            graph captured meanwhile would stay slow, so kernels are compiled at once.

    Returns:
        The context, None where TensorRT could not make one; and the cache, None without one.
    """
    with contextlib.suppress(*_REFUSALS):
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if kernels and not cache.deserialize(kernels):
            cache = config.create_runtime_cache()
        if config.set_runtime_cache(cache):
            if not fixed:
                config.dynamic_shapes_kernel_specialization_strategy = (
                    trt.DynamicShapesKernelSpecializationStrategy.EAGER
                )
            context = engine.create_execution_context(runtime_config=config)
            if context is not None:
                return context, cache
    return engine.create_execution_context(), None


def serialized(cache: Any) -> bytes:
    """The kernels compiled so far; empty where there are none, or no cache."""
    with contextlib.suppress(*_REFUSALS):
        return bytes(cache.serialize())
    return b""
