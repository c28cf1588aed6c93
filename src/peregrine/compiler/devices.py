"""What a device can do, measured: the peak of its matrix products and its memory's bandwidth."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from peregrine.compiler.fingerprint import driver
from peregrine.compiler.tactics.base import Device
from peregrine.errors import BackendUnavailable
from peregrine.store import Store, cache_directory

if TYPE_CHECKING:
    import torch

_SAMPLES = 5
_MATRIX = 8192
"""Rows and columns of the product on a GPU: 1.1e12 operations."""
_CPU_MATRIX = 256
_COPIED = 512 << 20
"""Bytes; more than any GPU's last cache holds."""
_CPU_COPIED = 8 << 20
_FREE_SHARE = 8
"""At most one part in this many of the free memory is taken for a tensor."""


@cache
def describe(name: str) -> Device:
    """A device with its measured peaks. A GPU is measured once (about 0.2 s) and remembered on
    disk by its name, driver and libraries; a CPU once a process (about 20 ms).

    Args:
        name: as torch names it: `cpu`, `cuda:0`.

    Raises:
        BackendUnavailable: torch finds no such device.
    """
    import torch

    device = torch.device(name)
    if device.type == "cpu":
        return _cpu(name)
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"torch finds no device {name}.",
            why=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices.",
            fix="Check `nvidia-smi`, and that torch is a CUDA build: pip install torch",
        )
    properties = torch.cuda.get_device_properties(device)
    flops, bandwidth = remembered(
        _facts(device), lambda: (_matrix_flops(device), _copy_bandwidth(device))
    )
    return Device(
        name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        flops,
        bandwidth,
    )


def _cpu(name: str) -> Device:
    """float32 products, of the size of a small layer, and a copy outside the caches."""
    import torch

    a, b = torch.randn(2, _CPU_MATRIX, _CPU_MATRIX)
    out = torch.empty_like(a)
    seconds = _median(lambda: _clocked(lambda: torch.mm(a, b, out=out)))
    source = torch.zeros(_CPU_COPIED, dtype=torch.uint8)
    target = torch.zeros_like(source)
    copying = _median(lambda: _clocked(lambda: target.copy_(source)))
    return Device(
        name,
        multiprocessors=torch.get_num_threads(),
        flops=2 * _CPU_MATRIX**3 / seconds,
        bandwidth=2 * _CPU_COPIED / copying,
    )


def remembered(
    facts: Mapping[str, str], measure: Callable[[], tuple[float, float]]
) -> tuple[float, float]:
    """Flops and bandwidth from disk, or measured now and put there.

    Args:
        facts: all that the numbers hang on.
        measure: called where nothing is kept for these facts.
    """
    store = Store(cache_directory("devices"))
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    with tempfile.TemporaryDirectory() as no_files:
        record = store.fetch(key, Path(no_files))
        if record is None:
            flops, bandwidth = measure()
            record = {**facts, "flops": flops, "bandwidth": bandwidth}
            store.put(key, Path(no_files), (), record)
        return float(record["flops"]), float(record["bandwidth"])


def _facts(device: torch.device) -> dict[str, str]:
    """What the measured numbers hang on."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "sizes": f"{_MATRIX} {_COPIED} {_SAMPLES}",
    }


def _matrix_flops(device: torch.device) -> float:
    """Operations a second of a float16 product of random numbers. Zeros would be faster: they
    switch fewer transistors, and the power limit is what a large product runs into."""
    import torch

    size = _MATRIX
    while 2 * size * size > torch.cuda.mem_get_info(device)[0] // _FREE_SHARE:
        size //= 2
    a, b = torch.randn(2, size, size, device=device).half()
    out = torch.empty_like(a)
    return 2 * size**3 / _gpu_seconds(device, lambda: torch.mm(a, b, out=out))


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the device's memory."""
    import torch

    size = min(_COPIED, torch.cuda.mem_get_info(device)[0] // _FREE_SHARE)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _gpu_seconds(device, lambda: target.copy_(source))


def _gpu_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median time of one run among others, after some to wake the clocks."""
    import torch

    with torch.cuda.device(device):
        for _ in range(3):
            work()
        marks = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(_SAMPLES + 1)
        ]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        torch.cuda.synchronize(device)
    pairs = itertools.pairwise(marks)
    return float(statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs))


def _median(sample: Callable[[], float]) -> float:
    sample()
    return max(statistics.median(sample() for _ in range(_SAMPLES)), 1e-9)


def _clocked(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
