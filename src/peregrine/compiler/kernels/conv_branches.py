"""A pointwise convolution and one with a window over the same input, in one launch.

Their outputs are neighbours in one tensor (SqueezeNet's `expand`, Inception's branches): the first
programs of a row of tiles compute the window's columns, the others the pointwise ones, and both
find the input in the L2 cache.
"""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.conv import accumulate, bias_of, finish, multiply
from peregrine.compiler.kernels.conv_tma import corner_of_box, fetch, pixels_of_box
from peregrine.compiler.kernels.pdl import launch_dependents, wait


@triton.jit(do_not_specialize=["M"])
def conv_branches(
    x,
    w1,
    bias1,
    w2,
    bias2,
    y,
    M,
    C: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    X_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of one branch a program; grid (tiles of both,). Arguments as in `kernels.conv.conv`,
    1 of the pointwise branch, whose O1 channels come first in y, and 2 of the other."""
    TILES_1: tl.constexpr = (O1 + BLOCK_N - 1) // BLOCK_N
    TILES_2: tl.constexpr = (O2 + BLOCK_N - 1) // BLOCK_N
    BLOCKS_C: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    column = program % (TILES_1 + TILES_2)
    rows = (program // (TILES_1 + TILES_2)) * BLOCK_M + tl.arange(0, BLOCK_M)
    if column < TILES_2:
        columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
        shift = bias_of(bias2, columns, BLOCK_N, HAS_BIAS2)
        acc = accumulate(
            x, w2, M, rows, columns, 0, KH * KW * BLOCKS_C,
            C, H, W, OH, OW, KH, KW, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
            X_STRIDE, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, WIDE, PDL,
        )  # fmt: skip
        finish(
            acc, shift, 0.0, y + O1, M, rows, columns,
            O2, Y_STRIDE, BLOCK_N, False, KIND, ALPHA, BETA, WIDE,
        )  # fmt: skip
    else:
        columns = (column - TILES_2) * BLOCK_N + tl.arange(0, BLOCK_N)
        shift = bias_of(bias1, columns, BLOCK_N, HAS_BIAS1)
        acc = accumulate(
            x, w1, M, rows, columns, 0, BLOCKS_C,
            C, H, W, OH, OW, 1, 1, STRIDE_H, STRIDE_W, 0, 0, 1, 1,
            X_STRIDE, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, WIDE, PDL,
        )  # fmt: skip
        finish(
            acc, shift, 0.0, y, M, rows, columns,
            O1, Y_STRIDE, BLOCK_N, False, KIND, ALPHA, BETA, WIDE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def conv_branches_tma(
    x,
    w1,
    bias1,
    w2,
    bias2,
    y,
    N,
    C: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """The same with operands fetched by the tensor memory accelerator, for stride 1; x, w1 and w2
    are descriptors and the boxes those of `kernels.conv_tma.conv_tma`."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TILES_1: tl.constexpr = (O1 + BLOCK_N - 1) // BLOCK_N
    TILES_2: tl.constexpr = (O2 + BLOCK_N - 1) // BLOCK_N
    BLOCKS_C: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    column = program % (TILES_1 + TILES_2)
    n, h, w = corner_of_box(program // (TILES_1 + TILES_2), OH, OW, BOX_N, BOX_H, BOX_W)
    rows = pixels_of_box(tl.arange(0, BLOCK_M), n, h, w, N, OH, OW, BOX_H, BOX_W)
    M = N * (OH * OW)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    if column < TILES_2:
        columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
        shift = bias_of(bias2, columns, BLOCK_N, HAS_BIAS2)
        wait(PDL)
        launch_dependents(PDL)
        for step in range(KH * KW * BLOCKS_C):
            a = fetch(
                x, n, h, w, (step % BLOCKS_C) * BLOCK_K, step // BLOCKS_C,
                4, KW, 1, PAD_H, PAD_W, DILATION_H, DILATION_W, 0, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            acc = multiply(w2.load([column * BLOCK_N, step * BLOCK_K]), a, acc, PRECISION)
        finish(
            acc.T, shift, 0.0, y + O1, M, rows, columns,
            O2, Y_STRIDE, BLOCK_N, False, KIND, ALPHA, BETA, WIDE,
        )  # fmt: skip
    else:
        first = (column - TILES_2) * BLOCK_N
        columns = first + tl.arange(0, BLOCK_N)
        shift = bias_of(bias1, columns, BLOCK_N, HAS_BIAS1)
        wait(PDL)
        launch_dependents(PDL)
        for step in range(BLOCKS_C):
            a = fetch(
                x, n, h, w, step * BLOCK_K, 0, 4, 1, 1, 0, 0, 1, 1, 0, BLOCK_M, BLOCK_K
            )  # fmt: skip
            acc = multiply(w1.load([first, step * BLOCK_K]), a, acc, PRECISION)
        finish(
            acc.T, shift, 0.0, y, M, rows, columns,
            O1, Y_STRIDE, BLOCK_N, False, KIND, ALPHA, BETA, WIDE,
        )  # fmt: skip
