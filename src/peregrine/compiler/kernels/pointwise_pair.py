"""Two 1x1 convolutions, the second of what the first writes, in one kernel.

    Y1[m, o] = activation(sum over c of X[m, c] * W1[o, c] + B1[o] + Z[m, o])
    Y2[m, p] = second activation(sum over o of Y1[m, o] * W2[p, o] + B2[p])

A program owns BLOCK_M pixels. It keeps their X in shared memory and the sums of all of their Y2 in
registers, and walks over the channels of Y1: each block of them is finished, written, and
multiplied from registers into the second sums. So Y1, the largest tensor of a ResNet's block, is
written but never read back. The loop is software-pipelined: the weights and the residual of the
next blocks come while this one is multiplied.

Images are NHWC; pixels are X_STRIDE, Z_STRIDE, Y1_STRIDE and Y2_STRIDE elements apart.
"""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.pdl import launch_dependents, wait
from peregrine.compiler.kernels.products import multiply


@triton.jit(do_not_specialize=["M"])
def pointwise_pair(
    x,
    w1,
    bias1,
    z,
    w2,
    bias2,
    y1,
    y2,
    M,
    C: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    X_STRIDE: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    Y1_STRIDE: tl.constexpr,
    Y2_STRIDE: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    SECOND_KIND: tl.constexpr,
    SECOND_ALPHA: tl.constexpr,
    SECOND_BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_M pixels a program; grid (cdiv(M, BLOCK_M),).

    Args:
        x: (M, C) rows X_STRIDE apart, float16 or bfloat16 as all but the biases.
        w1: (O1 padded to BLOCK_O, BLOCK_C), contiguous, zero where padded.
        bias1: float32 (O1 padded to BLOCK_O).
        z, y1: (M, O1) rows Z_STRIDE and Y1_STRIDE apart.
        w2: (BLOCK_P, O1 padded to BLOCK_O), contiguous, zero where padded.
        bias2: float32 (BLOCK_P).
        y2: (M, O2) rows Y2_STRIDE apart.
        M: pixels.
        BLOCK_C, BLOCK_P: powers of two, at least 16, no less than C and O2.
        UPCAST: see `products.multiply`.
        WIDE: offsets in a tensor pass 2**31.
    """
    ROW_W2: tl.constexpr = (O1 + BLOCK_O - 1) // BLOCK_O * BLOCK_O
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows beyond M read the last pixel, and are not written: loads need no mask for them.
    m = tl.minimum(rows, M - 1)
    if WIDE:
        m = m.to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    o = tl.arange(0, BLOCK_O)
    p = tl.arange(0, BLOCK_P)
    there = (rows < M)[:, None]
    w1_tile = w1 + (o * BLOCK_C)[:, None] + c[None, :]
    w2_tile = w2 + (p * ROW_W2)[:, None] + o[None, :]
    z_tile = z + (m * Z_STRIDE)[:, None] + o[None, :]
    y1_tile = y1 + (m * Y1_STRIDE)[:, None] + o[None, :]

    wait(PDL)
    launch_dependents(PDL)
    x_tile = x + (m * X_STRIDE)[:, None] + c[None, :]
    a = tl.load(x_tile) if C == BLOCK_C else tl.load(x_tile, mask=(c < C)[None, :], other=0.0)
    second = tl.zeros((BLOCK_M, BLOCK_P), dtype=tl.float32)
    for first in range(0, O1, BLOCK_O):
        # Asked for before the product, so that it is there after it.
        if HAS_BIAS1:
            bias = tl.load(bias1 + first + o)
        b = tl.load(w1_tile + first * BLOCK_C)
        sums = multiply(a, b.T, tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32), UPCAST)
        inside = (first + o < O1)[None, :]
        if HAS_BIAS1:
            sums += bias[None, :]
        if HAS_Z:
            if O1 % BLOCK_O == 0:
                residual = tl.load(z_tile + first)
            else:
                residual = tl.load(z_tile + first, mask=inside, other=0.0)
            sums += residual.to(tl.float32)
        # What an activation makes of columns beyond O1 meets zeros in W2.
        written = activate(sums, KIND, ALPHA, BETA).to(y1.dtype.element_ty)
        if O1 % BLOCK_O == 0:
            tl.store(y1_tile + first, written, mask=there)
        else:
            tl.store(y1_tile + first, written, mask=there & inside)
        second = multiply(written, tl.load(w2_tile + first).T, second, UPCAST)
    if HAS_BIAS2:
        second += tl.load(bias2 + p)[None, :]
    result = activate(second, SECOND_KIND, SECOND_ALPHA, SECOND_BETA).to(y2.dtype.element_ty)
    y2_tile = y2 + (m * Y2_STRIDE)[:, None] + p[None, :]
    if O2 == BLOCK_P:
        tl.store(y2_tile, result, mask=there)
    else:
        tl.store(y2_tile, result, mask=there & (p < O2)[None, :])
