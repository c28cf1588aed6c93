"""Every operator computes where its inputs lie, on a machine without a GPU.

PyTorch's fake tensors have a device but no values. On them an operator of ONNX's node tests
fails where it mixes devices, reads a value that is not among its `host` inputs, or copies between
the CPU and the GPU: each of these keeps an inference from being captured as a CUDA graph. Tables
that the first inference copies and keeps (`registry.Call.table`) are no hindrance.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compiler import node_evaluator
from peregrine.compiler.torch_ops import registry
from peregrine.errors import Unsupported

# Sizes that depend on values, and constants, which the importer folds.
WAITING = {"Compress", "Constant", "NonMaxSuppression", "NonZero", "Unique"}
# Boxes that are read, and what follows from them copied.
COPYING = {"RoiAlign"}
# Counts on the CPU, which a tensor without values cannot; nothing on the device waits for it.
COUNTING = {"Col2Im"}
KNOWN = WAITING | COPYING | COUNTING

# Some functions of PyTorch ask the driver even about tensors without values.
NO_DRIVER = ("not linked with support for cuda", "not compiled with CUDA", "NVIDIA driver")


class Host(torch.Tensor):
    """A tensor in the CPU's memory whose values may be read."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if any(isinstance(x, torch.Tensor) and not isinstance(x, Host) for x in args):
            return super().__torch_function__(func, types, args, kwargs or {})
        with _disable_current_modes():
            return super().__torch_function__(func, types, args, kwargs or {})


class Transfer(Exception):
    """A tensor was copied between devices."""


class NoTransfers(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func is aten._to_copy.default and args[0].device != result.device:
            raise Transfer
        if func is aten.copy_.default and args[0].device != args[1].device:
            raise Transfer
        return result


class Watch:
    """Runs every operator that it is told of once more, on tensors without values."""

    def __init__(self):
        self.found = defaultdict(set)
        self.checked = set()
        self._seen = set()

    def __call__(self, entry, call, inputs, result):
        if any(callable(v) and not isinstance(v, torch.Tensor) for v in call.attributes.values()):
            return  # Control flow has bodies with values of their own.
        types = tuple((tuple(x.shape), x.dtype) if x is not None else None for x in inputs)
        key = (entry.operator, entry.since, str(call.attributes), types)
        if key in self._seen:
            return
        self._seen.add(key)
        name = entry.operator.rpartition(".")[2]
        try:
            self._run(entry, call, inputs, result)
        except (Transfer, DataDependentOutputException, DynamicOutputShapeException) as error:
            self.found[name].add(type(error).__name__)
        except (RuntimeError, AssertionError) as error:
            if not any(word in str(error) for word in NO_DRIVER):
                self.found[name].add(f"{type(error).__name__}: {error}")
        else:
            self.checked.add(name)

    def _run(self, entry, call, inputs, result):
        attributes = {
            key: value.as_subclass(Host) if isinstance(value, torch.Tensor) else value
            for key, value in call.attributes.items()
        }
        on_device = registry.Call(attributes, call.opset, call.outputs, device="cuda")
        with FakeTensorMode(allow_non_fake_inputs=True):
            given = [
                x if x is None else x.as_subclass(Host) if i in entry.host else _fake(x)
                for i, x in enumerate(inputs)
            ]
            entry.function(on_device, *given)
            with NoTransfers():
                got = entry.function(on_device, *given)
        results = zip(*(x if isinstance(x, tuple) else (x,) for x in (got, result)), strict=True)
        for fake, real in results:
            if real is not None:
                assert fake.device.type == "cuda", entry.operator
                assert (fake.shape, fake.dtype) == (real.shape, real.dtype), entry.operator


def _fake(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


@pytest.mark.slow
def test_nothing_but_what_must_waits_for_the_device():
    watch = Watch()
    node_evaluator.OBSERVERS.append(watch)
    try:
        for case in node_evaluator.node_tests().values():
            try:
                node_evaluator.check(case)
            except Unsupported:
                continue
    finally:
        node_evaluator.OBSERVERS.remove(watch)
    surprising = {k: v for k, v in watch.found.items() if k not in KNOWN}
    assert not surprising
    assert len(watch.checked) > 120
