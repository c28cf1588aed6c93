"""Whether NVIDIA's driver is here, asked without any runtime."""

from __future__ import annotations

import ctypes

from peregrine.types import Support


def nvidia_driver() -> Support:
    """Whether the NVIDIA driver is here and finds a GPU; asked of the driver itself."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Support.no(
            "There is no NVIDIA driver here (libcuda.so.1 does not load).",
            "Run on a machine with an NVIDIA GPU and its driver (in a container: --gpus all).",
        )
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count:
        return Support.no(
            "The NVIDIA driver finds no GPU.",
            "Check `nvidia-smi`; in a container start it with --gpus all.",
        )
    return Support.yes()
