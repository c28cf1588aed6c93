"""What versions of Gluon have under different names: 3.6, and 3.7 on."""

# mypy: ignore-errors
# Gluon reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

_PUBLIC = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))

async_load = getattr(tma, "async_load", tma.async_copy_global_to_shared)
"""Ask the tensor memory accelerator for a box of a descriptor's tensor."""
async_store = getattr(tma, "async_store", tma.async_copy_shared_to_global)
"""Have it write one."""


@gluon.jit
def seen_as(memory, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """What begins in shared memory where `memory` does, with this shape and layout; it may be
    larger."""
    if _PUBLIC:
        return memory.reinterpret(memory.dtype, SHAPE, LAYOUT)
    else:
        return memory._reinterpret(memory.dtype, SHAPE, LAYOUT)
