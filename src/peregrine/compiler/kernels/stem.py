"""Convolutions of a few input channels (an image's), alone or with the max pooling behind them.

With three channels an implicit matrix product over channels has nothing to sum over, and a gather
of KH * KW * C elements a pixel is bound by the load units. Here a program owns a strip of output
columns and walks down the rows, loading windows in vectors along the columns whatever the layout
and dtype of the input. `stride` consecutive input rows are a group: output row i needs the groups
i .. i + GROUPS - 1, and the next row one new group only. With HOLD the others stay in registers,
so that each element is loaded KW / stride times rather than KH * KW / stride^2 times; without, the
L1 cache gives them again and registers are left for more programs at a time.

The inner dimension of the product is (group, row of the group, channel, column), the columns
padded to a power of two and the rows of a group split into one or two tiles of such sizes:
`CHUNK` and `REST` (row, channel) pairs.
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
    KW: tl.constexpr,
    BEFORE: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The window elements of PAIRS (row, channel) pairs from FIRST on: (M, PAIRS * WIDTH) in DTYPE.
    Columns that pad the window are zero, as their weights are: a NaN there stays out of it.

    Args:
        column_offset: (M,) int32, elements from x to row 0 of the window's first column.
        column: (M,) int32, that column; may lie outside of the image.
        row0: the group's first input row; may lie outside.
    """
    pair = FIRST + tl.arange(0, PAIRS)[None, :, None]
    row = row0 + pair // C
    lane = tl.arange(0, WIDTH)[None, None, :]
    across = column[:, None, None] + lane
    inside = (across >= 0) & (across < W) & (row >= 0) & (row < H)
    inside = inside & (pair < ROWS * C)
    along = row * stride_xh + (pair % C) * stride_xc
    values = tl.load(
        x + (column_offset[:, None, None] + along + lane * stride_xw), mask=inside, other=0.0
    )
    # Not part of the mask, which would cut the vectors.
    values = tl.where((lane >= BEFORE) & (lane < BEFORE + KW), values.to(DTYPE), 0.0).to(DTYPE)
    return tl.reshape(values, [column.shape[0], PAIRS * WIDTH])


@triton.jit
def _group(
    x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
    C: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, BEFORE: tl.constexpr,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One group of rows as a tuple of one or two operands of a product."""
    chunk = _pairs(
        x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
        0, CHUNK, C, ROWS, KW, BEFORE, WIDTH, DTYPE,
    )  # fmt: skip
    if REST == 0:
        return (chunk,)
    else:
        rest = _pairs(
            x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
            CHUNK, REST, C, ROWS, KW, BEFORE, WIDTH, DTYPE,
        )  # fmt: skip
        return (chunk, rest)


@triton.jit
def _groups(
    x, column_offset, column, row0, H, W, stride_xc, stride_xh, stride_xw,
    FIRST: tl.constexpr, LAST: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, KW: tl.constexpr, BEFORE: tl.constexpr,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The groups FIRST .. LAST - 1 of the windows whose first input row is row0."""
    found = ()
    for g in tl.static_range(FIRST, LAST):
        found = found + _group(
            x, column_offset, column, row0 + g * ROWS, H, W, stride_xc, stride_xh, stride_xw,
            C, ROWS, KW, BEFORE, WIDTH, CHUNK, REST, DTYPE,
        )  # fmt: skip
    return found


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
def _trim(
    operand, FIRST: tl.constexpr, ROWS_LEFT: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr
):
    """The operand with zeros in the rows of its group from ROWS_LEFT on, which pad the window."""
    pair = FIRST + tl.arange(0, operand.shape[1]) // WIDTH
    return tl.where((pair // C < ROWS_LEFT)[None, :], operand, 0.0).to(operand.dtype)


@triton.jit
def _product(
    groups, weights, bias, M: tl.constexpr, KH: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum of the products of all operands, plus the bias: float32 (M, O)."""
    PARTS: tl.constexpr = len(weights) // GROUPS
    ROWS_LEFT: tl.constexpr = KH - (GROUPS - 1) * ROWS
    sums = tl.zeros([M, bias.shape[0]], dtype=tl.float32)
    for i in tl.static_range(len(weights)):
        operand = groups[i]
        if ROWS_LEFT < ROWS and i >= PARTS * (GROUPS - 1):
            operand = _trim(operand, i % PARTS * CHUNK, ROWS_LEFT, C, WIDTH)
        sums = multiply(operand, weights[i], sums, UPCAST)
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
    KH: tl.constexpr, KW: tl.constexpr, BEFORE: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, HOLD: tl.constexpr, UPCAST: tl.constexpr,
    PDL: tl.constexpr,
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
            the stride; weights for what that adds are zero.
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

    HELD: tl.constexpr = GROUPS - 1 if HOLD else 0
    PARTS: tl.constexpr = 1 if REST == 0 else 2
    first = tl.program_id(1) * rows_of_program
    groups = _groups(
        x, offset, column, first * STRIDE_H - TOP, H, W, stride_xc, stride_xh, stride_xw,
        0, HELD, C, STRIDE_H, KW, BEFORE, WIDTH, CHUNK, REST, w.dtype.element_ty,
    )  # fmt: skip
    for oh in range(first, tl.minimum(first + rows_of_program, OH)):
        groups = groups + _groups(
            x, offset, column, oh * STRIDE_H - TOP, H, W, stride_xc, stride_xh, stride_xw,
            HELD, GROUPS, C, STRIDE_H, KW, BEFORE, WIDTH, CHUNK, REST, w.dtype.element_ty,
        )  # fmt: skip
        sums = _product(
            groups, weights, bias, BLOCK_M, KH, C, STRIDE_H, GROUPS, WIDTH, CHUNK, UPCAST
        )  # fmt: skip
        value = activate(sums, KIND, ALPHA, BETA)
        place = y + (target + oh * stride_yh)[:, None] + o[None, :]
        tl.store(place, value.to(y.dtype.element_ty), mask=store)
        groups = groups[PARTS * (GROUPS - HELD) :]


@triton.jit
def _or_minus_infinity(values, inside):
    """Values where the pixel is one of the convolution's output, else a max pooling's padding."""
    return tl.where(inside[:, None], values, float("-inf")).to(values.dtype)


@triton.jit
def _largest(a, b):
    """In the dtype of both; Triton has no maximum of bfloat16."""
    if a.dtype == tl.bfloat16:
        largest = tl.maximum(
            a.to(tl.float32), b.to(tl.float32), propagate_nan=tl.PropagateNan.ALL
        ).to(tl.bfloat16)
    else:
        largest = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return largest


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
    KH: tl.constexpr, KW: tl.constexpr, BEFORE: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, HOLD: tl.constexpr, UPCAST: tl.constexpr,
    PDL: tl.constexpr,
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

    HELD: tl.constexpr = GROUPS - 1 if HOLD else 0
    PARTS: tl.constexpr = 1 if REST == 0 else 2
    first = tl.program_id(1) * rows_of_program
    pooled_rows = tl.minimum(rows_of_program, PH - first)
    top = first * 2 - POOL_TOP
    windows = ()
    best = ()
    for side in tl.static_range(2):
        column = tl.where(n < N, (left + side) * STRIDE_W - LEFT, -WIDTH)
        held = _groups(
            x, base + column * stride_xw, column, top * STRIDE_H - TOP, H, W,
            stride_xc, stride_xh, stride_xw,
            0, HELD, C, STRIDE_H, KW, BEFORE, WIDTH, CHUNK, REST, w.dtype.element_ty,
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
            groups = windows[side] + _groups(
                x, base + column * stride_xw, column, row * STRIDE_H - TOP, H, W,
                stride_xc, stride_xh, stride_xw,
                HELD, GROUPS, C, STRIDE_H, KW, BEFORE, WIDTH, CHUNK, REST, w.dtype.element_ty,
            )  # fmt: skip
            sums = _product(
                groups, weights, bias, BLOCK_M, KH, C, STRIDE_H, GROUPS, WIDTH, CHUNK, UPCAST
            )  # fmt: skip
            value = activate(sums, KIND, ALPHA, BETA)
            inside = (left + side >= 0) & (left + side < OW) & (row >= 0) & (row < OH)
            rounded = _or_minus_infinity(value.to(y.dtype.element_ty), inside)
            largest = _largest(best[side], rounded)
            grown = grown + (largest,)
            kept = kept + (tl.where(r % 2 == 0, rounded, largest),)
            moved = moved + (groups[PARTS * (GROUPS - HELD) :],)
        windows = moved
        best = kept
        if r % 2 == 0 and r > 0:
            pooled = _largest(_largest(grown[0], grown[1]), _next_lane(grown[0], BLOCK_M))
            mine = (n < N) & (j < PW) & (lane < BLOCK_M - 1)
            target = n * stride_yn + j * stride_yw + (first + r // 2 - 1) * stride_yh
            store = mine[:, None] & (o < OC)[None, :]
            tl.store(y + target[:, None] + o[None, :], pooled, mask=store)
