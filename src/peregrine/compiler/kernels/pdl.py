"""Programmatic dependent launch: a kernel starts while the one before it still runs.

The next kernel's blocks are placed on multiprocessors that the last wave left idle and do what
needs no result of the kernel before; `wait` then holds them until that kernel, and by the same rule
all kernels before it, have ended and what they wrote can be seen.

Every kernel launched with `launch_pdl=True` keeps these rules, since the plan lets activations and
workspaces share memory:

1. Each of its blocks calls `wait` before it reads or writes any activation, workspace or state;
   before that it may touch weights only. No block returns without it: the kernel after next trusts
   that the end of its predecessor means the end of all before.
2. `wait` stands in no loop: Triton makes a pipeline of a loop and may then fetch what its first
   turns read ahead of all that stands in it, the wait too (triton-lang/triton issue 11905).
3. `launch_dependents` is a hint to start the next kernel. It is called after `wait`: called before,
   blocks of kernels far ahead would fill the multiprocessors and wait there.

Both do nothing where PDL is False (devices before Hopper, and the interpreter).
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait until the kernels before this one have ended and their writes can be seen."""
    if PDL:
        gdc_wait()


@triton.jit
def launch_dependents(PDL: tl.constexpr):
    """Let the next kernel start as soon as all blocks of this one have come here or ended."""
    if PDL:
        gdc_launch_dependents()
