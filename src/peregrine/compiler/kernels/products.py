"""Matrix products inside a Triton kernel."""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(a, b, sums, UPCAST: tl.constexpr):
    """sums + a @ b in float32. UPCAST: a and b as float32, for the interpreter, which multiplies
    the bits of bfloat16 numbers; no product of halves is rounded by it."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    else:
        return tl.dot(a, b, sums)
