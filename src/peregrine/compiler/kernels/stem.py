"""Convolutions of a few input channels (an image's), alone or with the max pooling behind them.

With three channels an implicit matrix product over channels has nothing to sum over, and a gather
of KH * KW * C elements a pixel is bound by the load units. Here a program owns a strip of output
columns and walks down the rows. It keeps the input windows of the rows in flight in registers:
`stride` consecutive input rows are a group, output row i needs the groups i .. i + GROUPS - 1,
and the next row one new group only. So each element is loaded KW / stride times rather than
KH * KW / stride^2 times, in vectors along the columns, whatever the layout and dtype of the input.

The inner dimension of the product is (group, row of the group, channel, column), the columns
padded to a power of two and the rows of a group split into one or two tiles of such sizes:
`CHUNK` and `REST` (row, channel) pairs. `pack_stem` writes weights in that order.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton has no starred tuples)
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.pdl import launch_dependents, wait
from peregrine.compiler.kernels.products import multiply


@triton.jit
def _pairs(
    x,
    column_offset,
    column,
    row0,
    H,
    W,
    stride_xc,
    stride_xh,
    stride_xw,
    FIRST: tl.constexpr,
    PAIRS: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The window elements of PAIRS (row, channel) pairs from FIRST on: (M, PAIRS * WIDTH) in DTYPE.

    Args:
        column_offset: (M,) int32, elements from x to row 0 of the window's first column.
        column: (M,) int32, that column; may lie outside of the image.
        row0: the group's first input row; may lie outside.
    """
    pair = FIRST + tl.arange(0, PAIRS)[None, :, None]
    row = row0 + pair // C
    lane = tl.arange(0, WIDTH)[None, None, :]
    across = column[:, None, None] + lane
    inside = (across >= 0) & (across < W) & (row >= 0) & (row < H) & (pair < ROWS * C)
    along = row * stride_xh + (pair % C) * stride_xc
    values = tl.load(
        x + (column_offset[:, None, None] + along + lane * stride_xw), mask=inside, other=0.0
    )
    return tl.reshape(values.to(DTYPE), [column.shape[0], PAIRS * WIDTH])


@triton.jit
def _group(
    x,
    column_offset,
    column,
    row0,
    H,
    W,
    stride_xc,
    stride_xh,
    stride_xw,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    REST: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One group of rows as a tuple of one or two operands of `tl.dot`."""
    chunk = _pairs(
        x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
        0, CHUNK, C, ROWS, WIDTH, DTYPE,
    )  # fmt: skip
    if REST == 0:
        return (chunk,)
    else:
        rest = _pairs(
            x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
            CHUNK, REST, C, ROWS, WIDTH, DTYPE,
        )  # fmt: skip
        return (chunk, rest)


@triton.jit
def _weights(
    w,
    o,
    stride_wk,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    REST: tl.constexpr,
):
    """All weights of the columns `o` of the packed (K, O), as a tuple of operands a group."""
    found = ()
    for g in tl.static_range(GROUPS):
        k0 = g * (CHUNK + REST) * WIDTH
        k = k0 + tl.arange(0, CHUNK * WIDTH)
        found = found + (tl.load(w + k[:, None] * stride_wk + o[None, :]),)
        if REST > 0:
            k = k0 + CHUNK * WIDTH + tl.arange(0, REST * WIDTH)
            found = found + (tl.load(w + k[:, None] * stride_wk + o[None, :]),)
    return found


@triton.jit
def _product(groups, weights, bias, M: tl.constexpr, UPCAST: tl.constexpr):
    """Sum of the products of all operands, plus the bias: float32 (M, O)."""
    sums = tl.zeros([M, bias.shape[0]], dtype=tl.float32)
    for i in tl.static_range(len(weights)):
        sums = multiply(groups[i], weights[i], sums, UPCAST)
    return sums + bias[None, :]


@triton.jit
def stem_kernel(
    x, w, b, y,
    N, H, W, OH, OW, OC,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_wk,
    stride_yn, stride_yh, stride_yw,
    rows_of_program,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(conv(x, w) + b).

    A program computes BLOCK_M columns (counted through all images: column q is column q % OW of
    image q // OW) of `rows_of_program` output rows, for BLOCK_O channels.

    Args:
        x: (N, C, H, W) by strides, any float dtype; rounded to the dtype of w.
        w: (GROUPS * (CHUNK + REST) * WIDTH, stride_wk), channels padded to BLOCK_O.
        b: float32, padded as w.
        y: (N, OC, OH, OW) by strides, channels innermost.
        TOP, LEFT: input rows and columns by which the windows start before the output's times
            the stride; a multiple of the stride where `pack_stem` could have it.
    """
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    weights = _weights(w, o, stride_wk, GROUPS, WIDTH, CHUNK, REST)
    bias = tl.zeros([BLOCK_O], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(b + o)

    q = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = q // OW
    ow = q % OW
    column = ow * STRIDE_W - LEFT
    column = tl.where(n < N, column, -WIDTH)
    offset = tl.minimum(n, N - 1) * stride_xn + column * stride_xw
    target = n * stride_yn + ow * stride_yw
    store = (n < N)[:, None] & (o < OC)[None, :]
    wait(PDL)
    launch_dependents(PDL)

    first = tl.program_id(1) * rows_of_program
    row0 = first * STRIDE_H - TOP
    groups = ()
    for g in tl.static_range(GROUPS - 1):
        groups = groups + _group(
            x, offset, column, row0 + g * STRIDE_H, H, W, stride_xc, stride_xh, stride_xw,
            C, STRIDE_H, WIDTH, CHUNK, REST, w.dtype.element_ty,
        )  # fmt: skip
    for oh in range(first, tl.minimum(first + rows_of_program, OH)):
        groups = groups + _group(
            x, offset, column, (oh + GROUPS - 1) * STRIDE_H - TOP, H, W,
            stride_xc, stride_xh, stride_xw,
            C, STRIDE_H, WIDTH, CHUNK, REST, w.dtype.element_ty,
        )  # fmt: skip
        value = activate(_product(groups, weights, bias, BLOCK_M, UPCAST), KIND, ALPHA, BETA)
        place = y + (target + oh * stride_yh)[:, None] + o[None, :]
        tl.store(place, value.to(y.dtype.element_ty), mask=store)
        if REST == 0:
            groups = groups[1:]
        else:
            groups = groups[2:]


@triton.jit
def _or_minus_infinity(values, inside):
    """Values where the pixel is one of the convolution's output, else a max pooling's padding."""
    return tl.where(inside[:, None], values, float("-inf")).to(values.dtype)


@triton.jit
def _largest(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _next_lane(values, M: tl.constexpr):
    """Row m of the result is row m + 1 of `values` (M, O); the last row is undefined."""
    lane = tl.minimum(tl.arange(0, M) + 1, M - 1)
    return tl.gather(values, tl.broadcast_to(lane[:, None], values.shape), 0)


@triton.jit
def stem_pool_kernel(
    x, w, b, y,
    N, H, W, OH, OW, PH, PW, OC,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_wk,
    stride_yn, stride_yh, stride_yw,
    rows_of_program,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr,
    POOL_TOP: tl.constexpr, POOL_LEFT: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = maxpool(activation(conv(x, w) + b)), pooling 3x3 with stride 2.

    A program computes `rows_of_program` pooled rows of a strip of pooled columns, a row of the
    convolution a step; the third row of a window is the first of the next. A lane holds the
    convolution at the window's left column and at the next one; the right column is the left one
    of the lane behind. So a strip overlaps the next by a lane, and an image has PW + 1 columns.

    Args: as `stem_kernel`; OH, OW is the size of the convolution's output, PH, PW that of y.
    """
    o = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    weights = _weights(w, o, stride_wk, GROUPS, WIDTH, CHUNK, REST)
    bias = tl.zeros([BLOCK_O], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(b + o)

    lane = tl.arange(0, BLOCK_M)
    q = tl.program_id(0) * (BLOCK_M - 1) + lane
    n = q // (PW + 1)
    j = q % (PW + 1)
    left = j * 2 - POOL_LEFT
    base = tl.minimum(n, N - 1) * stride_xn
    wait(PDL)
    launch_dependents(PDL)

    STEP: tl.constexpr = 1 if REST == 0 else 2
    first = tl.program_id(1) * rows_of_program
    pooled_rows = tl.minimum(rows_of_program, PH - first)
    top = first * 2 - POOL_TOP
    windows = ()
    best = ()
    for side in tl.static_range(2):
        column = tl.where(n < N, (left + side) * STRIDE_W - LEFT, -WIDTH)
        held = ()
        for g in tl.static_range(GROUPS - 1):
            held = held + _group(
                x, base + column * stride_xw, column, (top + g) * STRIDE_H - TOP, H, W,
                stride_xc, stride_xh, stride_xw,
                C, STRIDE_H, WIDTH, CHUNK, REST, w.dtype.element_ty,
            )  # fmt: skip
        windows = windows + (held,)
        best = best + (tl.full([BLOCK_M, BLOCK_O], float("-inf"), dtype=y.dtype.element_ty),)

    for r in range(2 * pooled_rows + 1):
        row = top + r
        moved = ()
        grown = ()
        kept = ()
        for side in tl.static_range(2):
            column = tl.where(n < N, (left + side) * STRIDE_W - LEFT, -WIDTH)
            groups = windows[side] + _group(
                x, base + column * stride_xw, column, (row + GROUPS - 1) * STRIDE_H - TOP, H, W,
                stride_xc, stride_xh, stride_xw,
                C, STRIDE_H, WIDTH, CHUNK, REST, w.dtype.element_ty,
            )  # fmt: skip
            value = activate(_product(groups, weights, bias, BLOCK_M, UPCAST), KIND, ALPHA, BETA)
            inside = (left + side >= 0) & (left + side < OW) & (row >= 0) & (row < OH)
            rounded = _or_minus_infinity(value.to(y.dtype.element_ty), inside)
            largest = _largest(best[side], rounded)
            grown = grown + (largest,)
            kept = kept + (tl.where(r % 2 == 0, rounded, largest),)
            moved = moved + (groups[STEP:],)
        windows = moved
        best = kept
        if r % 2 == 0 and r > 0:
            pooled = _largest(_largest(grown[0], grown[1]), _next_lane(grown[0], BLOCK_M))
            mine = (n < N) & (j < PW) & (lane < BLOCK_M - 1)
            target = n * stride_yn + j * stride_yw + (first + r // 2 - 1) * stride_yh
            store = mine[:, None] & (o < OC)[None, :]
            tl.store(y + target[:, None] + o[None, :], pooled, mask=store)
