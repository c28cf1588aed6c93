"""Convolution and matrix product as one implicit GEMM, with everything after it in the epilogue.

    Y[m, o] = activation(sum over taps t and channels c of X[pixel(m, t), c] * W[o, t, c] + B[o]
                         + Z[m, o])

m numbers the output pixels (n, oh, ow); a matrix product is the case of one tap and no window.
Images are NHWC: a pixel's channels are neighbours and pixels are X_STRIDE elements apart, which is
more than C where X is a slice of a concatenation. Weights come as `pack_weights` lays them out.

The loop over K runs over (tap, block of channels) as one flat index, so that the software pipeline
never drains between taps. Everything that a layer fixes is a compile-time constant; only the number
of output pixels is not, and one kernel serves each batch size.
"""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.pdl import launch_dependents, wait


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b.T in float32."""
    if PRECISION == "upcast":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32).T, acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
    return acc


@triton.jit
def accumulate(
    x,
    w,
    M,
    rows,
    columns,
    first,
    last,
    C: tl.constexpr,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """The sum over steps `first` to `last` of K for a tile of Y: float32 (BLOCK_M, BLOCK_N).

    Rows beyond M read the last pixel and columns beyond O the zero rows that pad W, so neither
    needs a mask. Taps that fall into the padding do, and channels where BLOCK_K does not divide C.

    It waits for the kernels before this one as late as it can: where everything else is computed.
    """
    BLOCKS_C: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    ROW_W: tl.constexpr = KH * KW * BLOCKS_C * BLOCK_K
    POINTWISE: tl.constexpr = (
        (KH == 1) & (KW == 1) & (STRIDE_H == 1) & (STRIDE_W == 1) & (H == OH) & (W == OW)
    )
    # Whether a window can leave the image.
    PADDED: tl.constexpr = (
        (PAD_H > 0)
        | (PAD_W > 0)
        | ((OH - 1) * STRIDE_H + (KH - 1) * DILATION_H - PAD_H >= H)
        | ((OW - 1) * STRIDE_W + (KW - 1) * DILATION_W - PAD_W >= W)
    )

    k = tl.arange(0, BLOCK_K)
    m = tl.minimum(rows, M - 1)
    if POINTWISE:
        pixels = m
    else:
        ow = m % OW
        oh = (m // OW) % OH
        h = oh * STRIDE_H - PAD_H
        s = ow * STRIDE_W - PAD_W
        pixels = (m // (OH * OW)) * (H * W) + h * W + s
        if PADDED:
            # One bit a tap, for rows and for columns of the window: set where it is inside.
            inside_h = tl.zeros_like(m)
            for i in tl.static_range(KH):
                at = h + i * DILATION_H
                inside_h |= ((at >= 0) & (at < H)).to(tl.int32) << i
            inside_w = tl.zeros_like(m)
            for i in tl.static_range(KW):
                at = s + i * DILATION_W
                inside_w |= ((at >= 0) & (at < W)).to(tl.int32) << i
    if WIDE:
        pixels = pixels.to(tl.int64)
    x_tile = x + (pixels * X_STRIDE)[:, None] + k[None, :]
    w_tile = w + (columns * ROW_W)[:, None] + k[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    wait(PDL)
    launch_dependents(PDL)
    for step in range(first, last):
        tap = step // BLOCKS_C
        block = step % BLOCKS_C
        kh = tap // KW
        kw = tap % KW
        x_at = x_tile + ((kh * DILATION_H * W + kw * DILATION_W) * X_STRIDE + block * BLOCK_K)
        if PADDED:
            inside = ((inside_h >> kh) & (inside_w >> kw) & 1) != 0
            if C % BLOCK_K == 0:
                a = tl.load(x_at, mask=inside[:, None], other=0.0)
            else:
                there = (block * BLOCK_K + k) < C
                a = tl.load(x_at, mask=inside[:, None] & there[None, :], other=0.0)
        elif C % BLOCK_K == 0:
            a = tl.load(x_at)
        else:
            a = tl.load(x_at, mask=((block * BLOCK_K + k) < C)[None, :], other=0.0)
        b = tl.load(w_tile + step * BLOCK_K)
        acc = multiply(a, b, acc, PRECISION)
    return acc


@triton.jit
def inside(M, rows, columns, O: tl.constexpr, BLOCK_N: tl.constexpr):  # noqa: E741
    """Which elements of a tile are elements of Y: rows below M, columns below O."""
    there = rows[:, None] < M
    if O % BLOCK_N != 0:
        there = there & (columns[None, :] < O)
    return there


@triton.jit
def residual(
    z,
    M,
    rows,
    columns,
    O: tl.constexpr,  # noqa: E741
    Z_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The tile of Z. Loaded ahead of the sum it arrives while that is computed, and takes registers
    meanwhile."""
    m = rows.to(tl.int64) if WIDE else rows
    at = z + (m * Z_STRIDE)[:, None] + columns[None, :]
    return tl.load(at, mask=inside(M, rows, columns, O, BLOCK_N), other=0.0)


@triton.jit
def bias_of(bias, columns, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The bias of a tile's columns, 0 without one. It is padded with zeros as the weights are, and
    a weight: loaded before `wait`, it costs nothing."""
    if HAS_BIAS:
        found = tl.load(bias + columns)
    else:
        found = tl.zeros((BLOCK_N,), dtype=tl.float32)
    return found


@triton.jit
def finish(
    acc,
    shift,
    added,
    y,
    M,
    rows,
    columns,
    O: tl.constexpr,  # noqa: E741
    Y_STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_Z: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Bias (`shift`, as `bias_of` loads it), residual (`added`, where HAS_Z), activation, and the
    tile's way to memory. `columns` of y; `O` is how many there are."""
    acc += shift[None, :]
    if HAS_Z:
        acc += added.to(tl.float32)
    m = rows.to(tl.int64) if WIDE else rows
    result = activate(acc, KIND, ALPHA, BETA).to(y.dtype.element_ty)
    at = y + (m * Y_STRIDE)[:, None] + columns[None, :]
    tl.store(at, result, mask=inside(M, rows, columns, O, BLOCK_N))


@triton.jit
def sum_splits(
    partials,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """The sum of SPLIT_K tiles of partial results, STEP elements apart, always in that order."""
    total = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for i in tl.static_range(SPLIT_K):
        # Other multiprocessors wrote them: past the L1 cache.
        total += tl.load(partials + i * STEP, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["M"])
def conv(
    x,
    w,
    bias,
    z,
    y,
    partials,
    counters,
    M,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
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
    Z_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    LAST_REDUCES: tl.constexpr,
    PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of Y a program; grid (tiles, SPLIT_K).

    Args:
        x: (pixels, C) rows X_STRIDE apart.
        w: (O padded to BLOCK_N, KH * KW * C padded to BLOCK_K), contiguous, x's dtype.
        bias: float32 (O padded to BLOCK_N).
        z, y: (M, O) rows Z_STRIDE and Y_STRIDE apart.
        partials: float32 (tiles, SPLIT_K, BLOCK_M, BLOCK_N), where SPLIT_K > 1.
        counters: int32 (tiles), zero before and after, where LAST_REDUCES.
        M: output pixels.
        LAST_REDUCES: the last of a tile's programs sums the partial results; else `reduce_splits`
            does. Either adds them in the order of K, whoever came first: sums repeat bit by bit.
        PRECISION: of float32 products: ieee, tf32x3 or tf32. `upcast` makes float32 products of
            any inputs, for Triton's interpreter, which multiplies bfloat16 as if it were integers.
        AHEAD: Z is loaded before the sum; without a split.
        WIDE: offsets in X, Y or Z pass 2**31.
    """
    TILES_N: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = KH * KW * ((C + BLOCK_K - 1) // BLOCK_K)
    tile = tl.program_id(0)
    # Neighbours share rows of X, and find all of W in the L2 cache.
    rows = (tile // TILES_N) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tile % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    if SPLIT_K == 1:
        first = 0
        last = STEPS
    else:
        PER_SPLIT: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K
        first = tl.program_id(1) * PER_SPLIT
        last = tl.minimum(first + PER_SPLIT, STEPS)
    shift = bias_of(bias, columns, BLOCK_N, HAS_BIAS)
    added = 0.0
    if HAS_Z and AHEAD:
        wait(PDL)
        added = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)
    acc = accumulate(
        x, w, M, rows, columns, first, last,
        C, H, W, OH, OW, KH, KW, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
        X_STRIDE, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, WIDE, PDL,
    )  # fmt: skip
    if SPLIT_K == 1:
        if HAS_Z and not AHEAD:
            added = residual(z, M, rows, columns, O, Z_STRIDE, BLOCK_N, WIDE)
        finish(
            acc, shift, added, y, M, rows, columns,
            O, Y_STRIDE, BLOCK_N, HAS_Z, KIND, ALPHA, BETA, WIDE,
        )  # fmt: skip
    else:
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mine = partials + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + within
        tl.store(mine + tl.program_id(1) * (BLOCK_M * BLOCK_N), acc)
        if LAST_REDUCES:
            # All of the program's stores come before its arrival can be seen.
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
