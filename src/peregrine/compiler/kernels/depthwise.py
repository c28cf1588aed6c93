"""Depthwise convolutions (one filter a channel), alone or with the 1x1 convolution behind them.

A depthwise convolution does a few operations a byte: what counts is that its input is read from
device memory once. Lanes lie along the channels, the innermost dimension in memory; taps that
neighbours share come from the L1 cache, or from registers where a program walks down the rows.
"""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.pdl import launch_dependents, wait
from peregrine.compiler.kernels.pixels import pixels
from peregrine.compiler.kernels.products import multiply


@triton.jit
def _taps(
    x, w, base, h0, w0, c, inside, c_inside, H, W, C,
    stride_xh, stride_xw,
    KH: tl.constexpr, KW: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """Sum over the taps of x times w: float32 (pixels, channels).

    Args:
        w: (KH * KW, C), contiguous.
        base: (pixels,) elements from x to the image's first.
        h0, w0: (pixels,) row and column of the window's first tap; may lie outside.
        c: (channels,).
        inside, c_inside: which pixels and channels there are.
    """
    sums = tl.zeros([h0.shape[0], c.shape[0]], dtype=tl.float32)
    for kh in tl.static_range(KH):
        row = h0 + kh * DILATION_H
        row_inside = inside & (row >= 0) & (row < H)
        for kw in tl.static_range(KW):
            column = w0 + kw * DILATION_W
            mask = row_inside & (column >= 0) & (column < W)
            place = x + (base + row * stride_xh + column * stride_xw)[:, None] + c[None, :]
            values = tl.load(place, mask=mask[:, None] & c_inside[None, :], other=0.0)
            weight = tl.load(w + (kh * KW + kw) * C + c, mask=c_inside, other=0.0)
            sums += values.to(tl.float32) * weight.to(tl.float32)[None, :]
    return sums


@triton.jit
def depthwise_kernel(
    x, w, b, z, y,
    N, C, H, W, OH, OW,
    stride_xn, stride_xh, stride_xw,
    stride_zn, stride_zh, stride_zw,
    stride_yn, stride_yh, stride_yw,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(depthwise(x, w) + b + z); BLOCK_M pixels of BLOCK_C channels a program, the
    pixels as `pixels` counts them.

    Args:
        x, z, y: (N, C, H, W) by strides, channels innermost; z as y.
        w: (KH * KW, C). b: float32 (C).
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, oh, ow, inside = pixels(N, OH, OW, BLOCK_M, TILE_W)
    wait(PDL)
    launch_dependents(PDL)
    value = _taps(
        x, w, n * stride_xn, oh * STRIDE_H - TOP, ow * STRIDE_W - LEFT, c, inside, c < C, H, W, C,
        stride_xh, stride_xw, KH, KW, DILATION_H, DILATION_W,
    )  # fmt: skip
    mask = inside[:, None] & (c < C)[None, :]
    if HAS_BIAS:
        value += tl.load(b + c, mask=c < C, other=0.0)[None, :]
    if HAS_Z:
        place = z + (n * stride_zn + oh * stride_zh + ow * stride_zw)[:, None] + c[None, :]
        value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    value = activate(value, KIND, ALPHA, BETA)
    place = y + (n * stride_yn + oh * stride_yh + ow * stride_yw)[:, None] + c[None, :]
    tl.store(place, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _row(
    x, base, row, w0, c, inside, c_inside, H, W, stride_xh, stride_xw,
):  # fmt: skip
    """Three taps along a row, at columns w0, w0 + 1, w0 + 2: float32 (pixels, channels) each."""
    place = x + (base + row * stride_xh + w0 * stride_xw)[:, None] + c[None, :]
    rows = tl.zeros_like(w0) + row
    inside = inside & (rows >= 0) & (rows < H)
    left = (inside & (w0 >= 0) & (w0 < W))[:, None] & c_inside[None, :]
    middle = (inside & (w0 >= -1) & (w0 < W - 1))[:, None] & c_inside[None, :]
    right = (inside & (w0 >= -2) & (w0 < W - 2))[:, None] & c_inside[None, :]
    return (
        tl.load(place, mask=left, other=0.0).to(tl.float32),
        tl.load(place + stride_xw, mask=middle, other=0.0).to(tl.float32),
        tl.load(place + 2 * stride_xw, mask=right, other=0.0).to(tl.float32),
    )


@triton.jit
def _dot3(row, w0, w1, w2):
    return row[0] * w0[None, :] + row[1] * w1[None, :] + row[2] * w2[None, :]


@triton.jit
def depthwise_rows_kernel(
    x, w, b, y,
    N, C, H, W, OH, OW,
    stride_xn, stride_xh, stride_xw,
    stride_yn, stride_yh, stride_yw,
    rows_of_program,
    STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(depthwise(x, w) + b) for windows 3x3 with stride 1 or 2.

    A program walks down `rows_of_program` output rows of BLOCK_M columns (counted through all
    images) and BLOCK_C channels. An input row is loaded once and added to each output row it
    belongs to; the sums of those that are not done yet stay in registers.

    Args: as `depthwise_kernel`.
    """
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    q = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = q // OW
    ow = q % OW
    inside = n < N
    c_inside = c < C
    base = n * stride_xn
    w0 = ow * STRIDE - LEFT
    w00 = tl.load(w + c, mask=c_inside, other=0.0).to(tl.float32)
    w01 = tl.load(w + C + c, mask=c_inside, other=0.0).to(tl.float32)
    w02 = tl.load(w + 2 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w10 = tl.load(w + 3 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w11 = tl.load(w + 4 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w12 = tl.load(w + 5 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w20 = tl.load(w + 6 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w21 = tl.load(w + 7 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    w22 = tl.load(w + 8 * C + c, mask=c_inside, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_C], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(b + c, mask=c_inside, other=0.0)
    target = y + (n * stride_yn + ow * stride_yw)[:, None] + c[None, :]
    mask = inside[:, None] & c_inside[None, :]
    wait(PDL)
    launch_dependents(PDL)

    first = tl.program_id(1) * rows_of_program
    h0 = first * STRIDE - TOP
    taps = _row(x, base, h0, w0, c, inside, c_inside, H, W, stride_xh, stride_xw)
    done = _dot3(taps, w00, w01, w02)
    half = done
    if STRIDE == 1:
        taps = _row(x, base, h0 + 1, w0, c, inside, c_inside, H, W, stride_xh, stride_xw)
        done += _dot3(taps, w10, w11, w12)
        half = _dot3(taps, w00, w01, w02)
    for oh in range(first, tl.minimum(first + rows_of_program, OH)):
        last = h0 + (oh - first) * STRIDE + 2
        if STRIDE == 2:
            taps = _row(x, base, last - 1, w0, c, inside, c_inside, H, W, stride_xh, stride_xw)
            done += _dot3(taps, w10, w11, w12)
        taps = _row(x, base, last, w0, c, inside, c_inside, H, W, stride_xh, stride_xw)
        done += _dot3(taps, w20, w21, w22)
        value = activate(done + bias[None, :], KIND, ALPHA, BETA)
        tl.store(target + oh * stride_yh, value.to(y.dtype.element_ty), mask=mask)
        if STRIDE == 1:
            done = half + _dot3(taps, w10, w11, w12)
            half = _dot3(taps, w00, w01, w02)
        else:
            done = _dot3(taps, w00, w01, w02)


@triton.jit
def depthwise_pointwise_kernel(
    x, wd, bd, wp, bp, z, y, partial, counter,
    N, C, OC, H, W, OH, OW,
    stride_xn, stride_xh, stride_xw,
    stride_zn, stride_zh, stride_zw,
    stride_yn, stride_yh, stride_yw,
    stride_wp, channels_of_split,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    HAS_INNER_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    INNER_KIND: tl.constexpr, INNER_ALPHA: tl.constexpr, INNER_BETA: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE_W: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    SPLITS: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(inner(depthwise(x, wd) + bd) @ wp + bp + z), in one pass over x.

    A program computes BLOCK_M pixels (see `pixels`) of BLOCK_O output channels and sums over
    `channels_of_split` hidden channels, BLOCK_C at a time. With SPLITS > 1 the sums of a tile go
    to `partial` in float32; the program that arrives last, told by `counter`, adds them in the
    order of the splits, so that the result does not depend on who was last, and clears the counter.

    Args:
        x, z, y: (N, C, H, W) by strides, channels innermost; z as y.
        wd: (KH * KW, C). bd: float32 (C). bp: float32 (O).
        wp: (C, stride_wp), the columns padded with zeros to a multiple of BLOCK_O.
        partial: float32 (SPLITS, tiles, BLOCK_M, BLOCK_O). counter: int32 (tiles), zero.
    """
    n, oh, ow, inside = pixels(N, OH, OW, BLOCK_M, TILE_W)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    wait(PDL)
    launch_dependents(PDL)

    sums = tl.zeros([BLOCK_M, BLOCK_O], dtype=tl.float32)
    first = split * channels_of_split
    for c0 in range(first, tl.minimum(first + channels_of_split, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        hidden = _taps(
            x, wd, n * stride_xn, oh * STRIDE_H - TOP, ow * STRIDE_W - LEFT, c, inside, c < C,
            H, W, C, stride_xh, stride_xw, KH, KW, DILATION_H, DILATION_W,
        )  # fmt: skip
        if HAS_INNER_BIAS:
            hidden += tl.load(bd + c, mask=c < C, other=0.0)[None, :]
        hidden = activate(hidden, INNER_KIND, INNER_ALPHA, INNER_BETA)
        place = wp + c[:, None] * stride_wp + o[None, :]
        weight = tl.load(place, mask=(c < C)[:, None], other=0.0)
        sums = multiply(hidden.to(weight.dtype), weight, sums, UPCAST)

    last = True
    if SPLITS > 1:
        tiles = tl.num_programs(0) * tl.num_programs(1)
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        inner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_O + tl.arange(0, BLOCK_O)[None, :]
        tl.store(partial + (split * tiles + tile) * BLOCK_M * BLOCK_O + inner, sums)
        # All threads' stores come before the one thread's count.
        tl.debug_barrier()
        last = tl.atomic_add(counter + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            sums = tl.zeros([BLOCK_M, BLOCK_O], dtype=tl.float32)
            for s in range(SPLITS):
                there = partial + (s * tiles + tile) * BLOCK_M * BLOCK_O + inner
                sums += tl.load(there, cache_modifier=".cg")
            tl.store(counter + tile, 0)
    if last:
        value = sums
        if HAS_BIAS:
            value += tl.load(bp + o, mask=o < OC, other=0.0)[None, :]
        mask = inside[:, None] & (o < OC)[None, :]
        if HAS_Z:
            place = z + (n * stride_zn + oh * stride_zh + ow * stride_zw)[:, None] + o[None, :]
            value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
        value = activate(value, KIND, ALPHA, BETA)
        place = y + (n * stride_yn + oh * stride_yh + ow * stride_yw)[:, None] + o[None, :]
        tl.store(place, value.to(y.dtype.element_ty), mask=mask)
