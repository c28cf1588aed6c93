"""The implicit GEMM of `kernels.conv` with its operands fetched by the tensor memory accelerator.

A tile of output pixels is a box of images, rows and columns, and what one tap of the window reads
for it is the same box of the input, shifted: one TMA request a tap and block of channels, with what
falls outside the image filled with zeros by the hardware. No thread computes an address or a mask.

A window of stride S reads every S-th pixel. Seen as (N, H / S, S, W / S, S * C), the pixels that
one tap reads are again a box.
"""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.conv import (
    bias_of,
    finish,
    multiply,
    residual,
    sum_splits,
)
from peregrine.compiler.kernels.pdl import launch_dependents, wait


@triton.jit
def fetch(
    x,
    n,
    h,
    w,
    c,
    tap,
    RANK: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What a tap reads for the box of output pixels at (n, h, w): (BLOCK_M, BLOCK_K).

    Of rank 4 or 5 it must be the second operand of a product: Triton would read the first one into
    registers, where it is reshaped, and let the next step overwrite them while the tensor cores
    still read (3.6 on Hopper; seen as wrong results of 256 columns)."""
    if RANK == 2:
        box = x.load([n, c])
    else:
        down = (tap // KW) * DILATION_H - PAD_H
        right = (tap % KW) * DILATION_W - PAD_W
        if RANK == 4:
            box = x.load([n, h + down, w + right, c])
        else:
            # Python's floor division, by an offset that makes both positive.
            down_s = (down + 32 * STRIDE) // STRIDE - 32
            right_s = (right + 32 * STRIDE) // STRIDE - 32
            odd_h = down - down_s * STRIDE
            odd_w = right - right_s * STRIDE
            box = x.load([n, h + down_s, odd_h, w + right_s, odd_w * X_STRIDE + c])
        box = box.reshape(BLOCK_M, BLOCK_K)
    return box


@triton.jit
def corner_of_box(
    box,
    OH: tl.constexpr,
    OW: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """Image, row and column of the output where a box begins."""
    TILES_H: tl.constexpr = (OH + BOX_H - 1) // BOX_H
    TILES_W: tl.constexpr = (OW + BOX_W - 1) // BOX_W
    w = (box % TILES_W) * BOX_W
    h = ((box // TILES_W) % TILES_H) * BOX_H
    return (box // (TILES_W * TILES_H)) * BOX_N, h, w


@triton.jit
def pixels_of_box(
    local,
    n,
    h,
    w,
    N,
    OH: tl.constexpr,
    OW: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """The number of the output pixel of some rows (`local`) of the tile whose box begins at
    (n, h, w): for those beyond the image that of none, N * OH * OW, which `finish` masks."""
    at_n = n + local // (BOX_H * BOX_W)
    at_h = h + (local // BOX_W) % BOX_H
    at_w = w + local % BOX_W
    there = at_n < N
    if OH % BOX_H != 0:
        there = there & (at_h < OH)
    if OW % BOX_W != 0:
        there = there & (at_w < OW)
    return tl.where(there, (at_n * OH + at_h) * OW + at_w, N * (OH * OW))


@triton.jit
def finish_box(
    acc,
    shift,
    z,
    y,
    n,
    h,
    w,
    o,
    RANK: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_Z: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
):
    """`finish` for a whole box with Z fetched and Y written by the accelerator: both descriptors
    with boxes of the tile's size."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    acc += shift[None, :]
    if RANK == 2:
        if HAS_Z:
            acc += z.load([n, o]).to(tl.float32)
        y.store([n, o], activate(acc, KIND, ALPHA, BETA).to(y.dtype))
    else:
        if HAS_Z:
            acc += z.load([n, h, w, o]).reshape(BLOCK_M, BLOCK_N).to(tl.float32)
        result = activate(acc, KIND, ALPHA, BETA).to(y.dtype)
        y.store([n, h, w, o], result.reshape(BOX_N, BOX_H, BOX_W, BLOCK_N))


@triton.jit(do_not_specialize=["N"])
def conv_tma(
    x,
    w,
    bias,
    z,
    y,
    partials,
    counters,
    N,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    X_STRIDE: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RANK: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    LAST_REDUCES: tl.constexpr,
    AHEAD: tl.constexpr,
    BOXED_END: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of Y a program, or where PERSISTENT every `num_programs`-th; grid
    (tiles or fewer, SPLIT_K).

    Args:
        x: descriptor of the input with boxes of BLOCK_K channels; of rank 2 (pixels, C) for a
            matrix product, 4 (N, H, W, C) for stride 1, 5 (N, H / STRIDE, STRIDE, W / STRIDE,
            STRIDE * X_STRIDE) for others.
        w: descriptor of `pack_weights`' result with boxes (BLOCK_N, BLOCK_K).
        N: images; pixels where RANK is 2, with OH and OW 1.
        BOX_N, BOX_H, BOX_W: the tile of output pixels; their product is BLOCK_M.
        BOXED_END: z and y are descriptors too, with boxes of the tile; without a split.
        bias, z, y, partials, counters, and the other constants: as in `kernels.conv.conv`.
    """
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TILES_N: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    TILES_H: tl.constexpr = (OH + BOX_H - 1) // BOX_H
    TILES_W: tl.constexpr = (OW + BOX_W - 1) // BOX_W
    BLOCKS_C: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = KH * KW * BLOCKS_C
    PER_SPLIT: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K
    tiles = tl.cdiv(N, BOX_N) * (TILES_H * TILES_W * TILES_N)
    if SPLIT_K == 1:
        first = 0
        last = STEPS
    else:
        first = tl.program_id(1) * PER_SPLIT
        last = tl.minimum(first + PER_SPLIT, STEPS)
    # The wait is not in the loop over tiles: where a tile is one step of K, Triton makes a pipeline
    # of that loop and fetches the first boxes ahead of all that stands in it.
    if not PERSISTENT:
        columns = (tl.program_id(0) % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
        shift = bias_of(bias, columns, BLOCK_N, HAS_BIAS)
    wait(PDL)
    launch_dependents(PDL)
    end = tiles if PERSISTENT else tl.program_id(0) + 1
    for tile in tl.range(tl.program_id(0), end, tl.num_programs(0), flatten=PERSISTENT):
        o0 = (tile % TILES_N) * BLOCK_N
        n0, h0, w0 = corner_of_box(tile // TILES_N, OH, OW, BOX_N, BOX_H, BOX_W)
        M = N * (OH * OW)
        local = tl.arange(0, BLOCK_M)
        rows = pixels_of_box(local, n0, h0, w0, N, OH, OW, BOX_H, BOX_W)
        if PERSISTENT:
            columns = o0 + tl.arange(0, BLOCK_N)
            shift = bias_of(bias, columns, BLOCK_N, HAS_BIAS)
        added = 0.0
        if HAS_Z and AHEAD and not BOXED_END:
            added = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)

        if RANK == 2:
            acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        else:
            acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for step in range(first, last):
            a = fetch(
                x, n0, h0, w0, (step % BLOCKS_C) * BLOCK_K, step // BLOCKS_C,
                RANK, KW, STRIDE, PAD_H, PAD_W, DILATION_H, DILATION_W, X_STRIDE, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            b = w.load([o0, step * BLOCK_K])
            if RANK == 2:
                acc = multiply(a, b, acc, PRECISION)
            else:
                acc = multiply(b, a, acc, PRECISION)
        if RANK != 2:
            acc = acc.T

        if BOXED_END:
            finish_box(
                acc, shift, z, y, n0, h0, w0, o0, RANK,
                BOX_N, BOX_H, BOX_W, BLOCK_N, HAS_Z, KIND, ALPHA, BETA,
            )  # fmt: skip
        elif SPLIT_K == 1:
            if HAS_Z and not AHEAD:
                added = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)
            finish(
                acc, shift, added, y, M, rows, columns,
                O, Y_STRIDE, BLOCK_N, HAS_Z, KIND, ALPHA, BETA, WIDE,
            )  # fmt: skip
        else:
            within = local[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            mine = partials + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + within
            tl.store(mine + tl.program_id(1) * (BLOCK_M * BLOCK_N), acc)
            if LAST_REDUCES:
                tl.debug_barrier()
                arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
                if arrived == SPLIT_K - 1:
                    total = sum_splits(mine, BLOCK_M, BLOCK_N, BLOCK_M * BLOCK_N, SPLIT_K)
                    late = 0.0
                    if HAS_Z:
                        late = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)
                    finish(
                        total, shift, late, y, M, rows, columns,
                        O, Y_STRIDE, BLOCK_N, HAS_Z, KIND, ALPHA, BETA, WIDE,
                    )  # fmt: skip
                    tl.store(counters + tile, 0)


@triton.jit(do_not_specialize=["N"])
def reduce_splits(
    partials,
    bias,
    z,
    y,
    N,
    O: tl.constexpr,  # noqa: E741
    OH: tl.constexpr,
    OW: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_K: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """The second half of a split convolution: ROWS rows of a tile a program; grid
    (tiles, BLOCK_M / ROWS). The other arguments are those of the kernel before it; the tiles of
    `kernels.conv.conv` are boxes of BLOCK_M images of one pixel."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TILES_N: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    n, h, w = corner_of_box(tile // TILES_N, OH, OW, BOX_N, BOX_H, BOX_W)
    local = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    rows = pixels_of_box(local, n, h, w, N, OH, OW, BOX_H, BOX_W)
    column = tl.arange(0, BLOCK_N)
    columns = (tile % TILES_N) * BLOCK_N + column
    M = N * (OH * OW)
    mine = partials + tile * (SPLIT_K * BLOCK_M * BLOCK_N)
    mine += (local * BLOCK_N)[:, None] + column[None, :]
    shift = bias_of(bias, columns, BLOCK_N, HAS_BIAS)
    wait(PDL)
    launch_dependents(PDL)
    added = 0.0
    if HAS_Z:
        added = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)
    total = sum_splits(mine, ROWS, BLOCK_N, BLOCK_M * BLOCK_N, SPLIT_K)
    finish(
        total, shift, added, y, M, rows, columns,
        O, Y_STRIDE, BLOCK_N, HAS_Z, KIND, ALPHA, BETA, WIDE,
    )  # fmt: skip
