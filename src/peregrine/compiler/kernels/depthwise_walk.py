"""Depthwise convolutions whose lanes walk down an image with the unfinished sums in registers.

Every input element comes from memory once, into one lane's registers, but for the columns between
two strips and the rows between two programs: a depthwise convolution is then as fast as its bytes.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005 - Triton has no starred tuples.
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.pdl import launch_dependents, wait


@triton.jit
def _repeat(value, COUNT: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (value,)
    return values


@triton.jit
def _load_weights(w, C: tl.constexpr, COUNT: tl.constexpr):
    """A tuple of COUNT taps, C elements apart: float32 (lanes, VECTOR) each."""
    weights = ()
    for k in tl.static_range(COUNT):
        weights = weights + (tl.load(w + k * C).to(tl.float32),)
    return weights


@triton.jit
def _load_row(
    x, column, width,
    W: tl.constexpr, LEFT: tl.constexpr, LAST: tl.constexpr, STEP: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """A tuple of COUNT neighbours along a row, zeros outside of it: (lanes, VECTOR) each.

    Args:
        x: (lanes, VECTOR) pointers to the first, which lies at `column`.
        column: (lanes,), from -LEFT to LAST.
        width: of the row; 0 where there is no such row.
        STEP: elements between two columns.
    """
    taps = ()
    for k in tl.static_range(COUNT):
        if k < LEFT:
            mask = (column + k >= 0) & (column + k < width)
        elif k + LAST >= W:
            mask = column + k < width
        else:
            mask = tl.zeros_like(column) < width
        taps = taps + (tl.load(x + k * STEP, mask=mask[:, None], other=0.0),)
    return taps


@triton.jit
def _add_row(
    sums, taps, weights,
    ROW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """The sums of ROWS output rows, COLUMNS each, with one more input row added, which is row ROW
    of the first one's window."""
    added = ()
    for down in tl.static_range(ROWS):
        for column in tl.static_range(COLUMNS):
            value = sums[down * COLUMNS + column]
            if down * STRIDE_H <= ROW:
                for kw in tl.static_range(KW):
                    weight = weights[(ROW - down * STRIDE_H) * KW + kw]
                    value += taps[column * STRIDE_W + kw].to(tl.float32) * weight
            added = added + (value,)
    return added


@triton.jit
def _clip(x, KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """A relu or clip as `activate`, in the dtype of x."""
    low = tl.full([1, 1], ALPHA, x.dtype)
    y = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    if KIND == "clip":
        high = tl.full([1, 1], BETA, x.dtype)
        y = tl.minimum(y, high, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit(
    do_not_specialize=["N", "H", "OH", "stride_xn", "stride_xh", "stride_yn", "stride_yh", "parts",
                       "rows_of_part"]
)  # fmt: skip
def depthwise_walk_kernel(
    x, w, b, y,
    N, H, OH,
    stride_xn, stride_xh, stride_yn, stride_yh,
    parts, rows_of_part,
    C: tl.constexpr, W: tl.constexpr, OW: tl.constexpr,
    stride_xw: tl.constexpr, stride_yw: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    COLUMNS: tl.constexpr, VECTOR: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(depthwise(x, w) + b) for windows without dilation, no lower than STRIDE_H.

    A lane owns VECTOR channels of a strip of COLUMNS output columns in one image and walks down
    `rows_of_part` output rows. An input row is loaded once, STAGES - 1 rows ahead, and added to
    each output row it belongs to. Lanes are counted through images, strips and channels, the
    channels innermost: none idles where a size is no power of two.

    Args:
        x, y: (N, C, H, W) by strides, channels innermost. `stride_xn`, `..xh`, `..yn` and `..yh`
            are counted in vectors of VECTOR elements, so that the compiler knows them as multiples.
        w: (KH * KW, C). b: float32 (C).
        parts: of an image's rows, `rows_of_part` each.
        ROUND_FIRST: round to y's dtype before the activation, which then takes two elements an
            instruction: for a relu or clip with bounds of that dtype, where it changes nothing.
    """
    ROWS: tl.constexpr = (KH + STRIDE_H - 1) // STRIDE_H
    TAPS: tl.constexpr = (COLUMNS - 1) * STRIDE_W + KW
    STRIPS: tl.constexpr = (OW + COLUMNS - 1) // COLUMNS
    LAST: tl.constexpr = (STRIPS - 1) * COLUMNS * STRIDE_W - LEFT
    VECTORS: tl.constexpr = C // VECTOR
    part = tl.program_id(0) % parts
    lane = tl.program_id(0) // parts * LANES + tl.arange(0, LANES)
    # Lanes too many do the last one's work once more: they write the same.
    lane = tl.minimum(lane, N * (STRIPS * VECTORS) - 1)
    n = lane // (STRIPS * VECTORS)
    ow = lane // VECTORS % STRIPS * COLUMNS
    c = (lane % VECTORS * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    weights = _load_weights(w + c, C, KH * KW)
    bias = tl.zeros([LANES, VECTOR], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(b + c)
    column = ow * STRIDE_W - LEFT
    source = x + (n * stride_xn * VECTOR + column * stride_xw)[:, None] + c
    target = y + (n * stride_yn * VECTOR + ow * stride_yw)[:, None] + c
    wait(PDL)
    launch_dependents(PDL)

    first = part * rows_of_part
    last = tl.minimum(first + rows_of_part, OH)
    lowest = tl.maximum(first * STRIDE_H - TOP, 0)
    # The first rounds only fill the sums: they finish rows of the part above, which are not stored.
    # Rounds above the image would add nothing.
    start = tl.maximum(first - (ROWS - 1), -((KH - 1 - TOP) // STRIDE_H))
    sums = _repeat(bias, (ROWS - 1) * COLUMNS)
    for oh in tl.range(start, last, num_stages=STAGES):
        sums = sums + _repeat(bias, COLUMNS)
        for i in tl.static_range(STRIDE_H):
            row = oh * STRIDE_H + (KH - STRIDE_H + i - TOP)
            width = tl.where((row >= lowest) & (row < H), W, 0)
            there = source + row * stride_xh * VECTOR
            taps = _load_row(there, column, width, W, LEFT, LAST, stride_xw, TAPS)
            sums = _add_row(
                sums, taps, weights, KH - STRIDE_H + i, ROWS, COLUMNS, STRIDE_H, STRIDE_W, KW
            )
        wanted = tl.where(oh >= first, OW, 0)
        below = target + oh * stride_yh * VECTOR
        for k in tl.static_range(COLUMNS):
            if ROUND_FIRST:
                value = _clip(sums[k].to(y.dtype.element_ty), KIND, ALPHA, BETA)
            else:
                value = activate(sums[k], KIND, ALPHA, BETA).to(y.dtype.element_ty)
            if OW % COLUMNS > 0:
                mask = ow + k < wanted
            else:
                mask = tl.zeros_like(ow) < wanted
            tl.store(below + k * stride_yw, value, mask=mask[:, None])
        sums = sums[COLUMNS:]
