"""Pooling: maxima over windows, means over an image, and the means with a classifier behind them.

Lanes lie along the channels, the innermost dimension in memory.
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
def max_pool_kernel(
    x, y,
    N, C, H, W, OH, OW,
    stride_xn, stride_xh, stride_xw,
    stride_yn, stride_yh, stride_yw,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = the largest of each window of x, padded with -inf; NaN where a window holds one.

    Args:
        x, y: (N, C, H, W) by strides, channels innermost. Windows may stick out on any side.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, oh, ow, inside = pixels(N, OH, OW, BLOCK_M, TILE_W)
    wait(PDL)
    launch_dependents(PDL)
    # Triton has no maximum of bfloat16.
    NUMBER: tl.constexpr = tl.float32 if x.dtype.element_ty == tl.bfloat16 else x.dtype.element_ty
    best = tl.full([BLOCK_M, BLOCK_C], float("-inf"), dtype=NUMBER)
    for kh in tl.static_range(KH):
        row = oh * STRIDE_H - TOP + kh * DILATION_H
        row_inside = inside & (row >= 0) & (row < H)
        for kw in tl.static_range(KW):
            column = ow * STRIDE_W - LEFT + kw * DILATION_W
            mask = (row_inside & (column >= 0) & (column < W))[:, None] & (c < C)[None, :]
            place = x + (n * stride_xn + row * stride_xh + column * stride_xw)[:, None] + c[None, :]
            values = tl.load(place, mask=mask, other=float("-inf"))
            best = tl.maximum(best, values.to(NUMBER), propagate_nan=tl.PropagateNan.ALL)
    place = y + (n * stride_yn + oh * stride_yh + ow * stride_yw)[:, None] + c[None, :]
    tl.store(place, best.to(y.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


@triton.jit
def _mean(
    x, n, c, c_inside, H, W, stride_xn, stride_xh, stride_xw,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The mean of image n over its pixels, for the channels c: float32 (BLOCK_C,)."""
    sums = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for p0 in range(0, H * W, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        place = x + (n * stride_xn + p // W * stride_xh + p % W * stride_xw)[:, None] + c[None, :]
        mask = (p < H * W)[:, None] & c_inside[None, :]
        sums += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(sums, axis=0) / (H * W).to(tl.float32)


@triton.jit
def mean_kernel(
    x, y,
    C, H, W,
    stride_xn, stride_xh, stride_xw, stride_yn,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y (N, C) = mean of x over its pixels; a program does BLOCK_C channels of one image.

    Args:
        x: (N, C, H, W) by strides, channels innermost. y: channels innermost.
    """
    n = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    wait(PDL)
    launch_dependents(PDL)
    value = _mean(x, n, c, c < C, H, W, stride_xn, stride_xh, stride_xw, BLOCK_P, BLOCK_C)
    tl.store(y + n * stride_yn + c, value.to(y.dtype.element_ty), mask=c < C)


@triton.jit
def pool_linear_kernel(
    x, w, b, y, partial, counter,
    C, H, W, M,
    stride_xn, stride_xh, stride_xw, stride_wm, stride_yn,
    channels_of_split,
    HAS_BIAS: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(mean of x over its pixels @ w.T + b), for few images: no matrix product.

    A program computes BLOCK_O outputs of one image from `channels_of_split` channels, which it
    pools itself. With SPLITS > 1 the sums of an image's outputs go to `partial` in float32, and
    the program that arrives last adds them in order and clears the counter.

    Args:
        x: (N, C, H, W) by strides, channels innermost. w: (M, C), rows stride_wm apart.
        b: float32 (M). y: (N, M), innermost dimension contiguous.
        partial: float32 (N, tiles, SPLITS, BLOCK_O). counter: int32 (N, tiles), zero.
    """
    n = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    wait(PDL)
    launch_dependents(PDL)
    sums = tl.zeros([BLOCK_O], dtype=tl.float32)
    first = split * channels_of_split
    for c0 in range(first, tl.minimum(first + channels_of_split, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        place = w + o[:, None] * stride_wm + c[None, :]
        weight = tl.load(place, mask=(o < M)[:, None] & (c < C)[None, :], other=0.0)
        mean = _mean(x, n, c, c < C, H, W, stride_xn, stride_xh, stride_xw, BLOCK_P, BLOCK_C)
        sums += tl.sum(weight.to(tl.float32) * mean[None, :], axis=1)

    last = True
    if SPLITS > 1:
        tile = n * tl.num_programs(1) + tl.program_id(1)
        lane = tl.arange(0, BLOCK_O)
        tl.store(partial + (tile * SPLITS + split) * BLOCK_O + lane, sums)
        # All threads' stores come before the one thread's count.
        tl.debug_barrier()
        last = tl.atomic_add(counter + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            sums = tl.zeros([BLOCK_O], dtype=tl.float32)
            for s in range(SPLITS):
                there = partial + (tile * SPLITS + s) * BLOCK_O + lane
                sums += tl.load(there, cache_modifier=".cg")
            tl.store(counter + tile, 0)
    if last:
        if HAS_BIAS:
            sums += tl.load(b + o, mask=o < M, other=0.0)
        value = activate(sums, KIND, ALPHA, BETA)
        tl.store(y + n * stride_yn + o, value.to(y.dtype.element_ty), mask=o < M)


@triton.jit
def linear_kernel(
    x, w, b, y,
    N, C, M,
    stride_xn, stride_wm, stride_yn,
    HAS_BIAS: tl.constexpr,
    KIND: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = activation(x @ w.T + b); what follows `mean_kernel` where there are many images.

    Args:
        x: (N, C), y: (N, M), w: (M, C), innermost dimensions contiguous. b: float32 (M).
    """
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    wait(PDL)
    launch_dependents(PDL)
    sums = tl.zeros([BLOCK_M, BLOCK_O], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        place = x + n[:, None] * stride_xn + c[None, :]
        left = tl.load(place, mask=(n < N)[:, None] & (c < C)[None, :], other=0.0)
        place = w + o[None, :] * stride_wm + c[:, None]
        right = tl.load(place, mask=(o < M)[None, :] & (c < C)[:, None], other=0.0)
        sums = multiply(left, right, sums, UPCAST)
    if HAS_BIAS:
        sums += tl.load(b + o, mask=o < M, other=0.0)[None, :]
    value = activate(sums, KIND, ALPHA, BETA)
    place = y + n[:, None] * stride_yn + o[None, :]
    tl.store(place, value.to(y.dtype.element_ty), mask=(n < N)[:, None] & (o < M)[None, :])
