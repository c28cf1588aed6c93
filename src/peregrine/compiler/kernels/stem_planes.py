"""Convolutions of an image with stride 2 by Hopper's tensor cores out of shared memory, alone or
with the max pooling behind them. Written in Gluon: what it rests on is a view of shared memory
that Triton's own language has no word for.

A plane is one row of the image: at position p, in 16 bytes, the channels of the columns 2p and
2p + 1 (and zeros up to eight elements). A tensor core reads operands as blocks of eight rows of 16
bytes each, so eight positions of a plane are such a block where they lie, and the window's next
two columns are the same plane from 16 bytes further on: the window slides by the address, and
each element is loaded, rounded and written to shared memory once a program, not once a tap.

The inner dimension of one product is two planes of eight elements, neighbours in memory: two rows
of the image at one tap, or for a window's last, odd row that row and itself shifted by a position.
The planes of two rows are a slot, in this order:

    b0 a0   with BEFORE: b and a without their even columns, for the window's first tap, which
            starts a column before the window. Zero weights alone would let a NaN in.
    a1      where the number of rows is odd: a shifted, a1[p] = a[p + 1]
    a  b

The weights are the first operand, in registers, and the image the second: so a product is (outputs,
columns), and what is read of shared memory for it is the image alone. A program owns a strip of
up to 128 output columns and walks down the rows with a ring of slots. While the tensor cores work
on a row, the next two rows of the image go to shared memory.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton has no starred tuples)
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from peregrine.compiler.kernels.activations import activate

LANES = gl.constexpr(128)
"""Positions of a plane, and columns of a product."""
_LEAD = gl.constexpr(8)
"""Positions in front of the first plane, which a shifted one may write to."""
_RAW = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
_PLANE = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 1, [1, 0]))
_COLUMN_BITS = [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0], [32, 0]]
_EIGHT = [[0, 1], [0, 2], [0, 4]]
_TWO_PLANES = gl.constexpr(gl.SharedLinearLayout([*_EIGHT, *_COLUMN_BITS, [64, 0], [0, 8]], [], 16))
"""(LANES, 16): as the tensor cores read it without swizzling."""


@gluon.constexpr_function
def _held(outputs):
    """(64, outputs): eight outputs of a column together, then the next column, which is therefore
    16 bytes further on whatever the column."""
    eights = [[0, 8 << bit] for bit in range((outputs // 8).bit_length() - 1)]
    return gl.SharedLinearLayout([*_EIGHT, *_COLUMN_BITS, *eights], [], 16)


@gluon.constexpr_function
def _written(outputs, warps):
    """(64, outputs) in registers: neighbouring threads have neighbouring columns, as they lie in
    shared memory, and the threads of a warp 64 bytes of each, as memory wants it."""
    bits = [[0, 32 << bit] for bit in range((outputs // 32).bit_length() - 1)] + [
        [32, 0],
        [16, 0],
        [8, 0],
    ]
    of_warps = warps.bit_length() - 1
    return gl.DistributedLinearLayout(
        [*_EIGHT, *reversed(bits[of_warps:])],
        [[1, 0], [2, 0], [4, 0], [0, 8], [0, 16]],
        bits[:of_warps],
        [],
        [64, outputs],
    )


@gluon.constexpr_function
def _image(warps):
    """(LANES, 8) in registers: each thread once."""
    each = 32 // warps
    return gl.BlockedLayout([1, each], [4 * each, 8 // each], [warps, 1], [1, 0])


@gluon.constexpr_function
def _sums(outputs):
    """(outputs, LANES): the accumulators, four warps for 64 outputs."""
    return gl.NVMMADistributedLayout([3, 0], [outputs // 16, 1], [16, 128, 16])


@gluon.jit
def _view(buffer, position, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """What lies from a position of 16 bytes on, as another shape. Of the positions that views
    overlap in, Triton knows only that they are of one buffer, and orders accesses by that."""
    return buffer.index(position)._reinterpret(buffer.dtype, SHAPE, LAYOUT)


@gluon.jit
def _rows(
    x, row, H, W: gl.constexpr, position, stride_xc: gl.constexpr, stride_xh,
    stride_xw: gl.constexpr, C: gl.constexpr, LEFT: gl.constexpr,
):  # fmt: skip
    """Two rows of the image from `row` on, each (LANES, 8) in the dtype of x: at a position the
    channels of two columns, the first column 2 * position - LEFT. Zero outside of the image."""
    LAYOUT: gl.constexpr = _image(gl.num_warps())
    place = gl.arange(0, 8, gl.SliceLayout(0, LAYOUT))[None, :]
    across = position[:, None] * 2 - LEFT + place % 2
    inside = (across >= 0) & (across < W)
    if LEFT % 2 == 0 and W % 2 == 0:
        # The same for both columns, so that they are loaded together.
        pair = position[:, None] * 2 - LEFT + 0 * place
        inside = (pair >= 0) & (pair < W)
    inside = inside & (place // 2 < C)
    source = x + row * stride_xh + (place // 2) * stride_xc + across * stride_xw
    a = gl.load(source, mask=inside & (row >= 0) & (row < H), other=0.0)
    b = gl.load(source + stride_xh, mask=inside & (row >= -1) & (row < H - 1), other=0.0)
    return a, b


@gluon.jit
def _put(planes, slot, rows, BEFORE: gl.constexpr, SINGLE: gl.constexpr):
    """Write two rows of the image to the planes of a slot."""
    FIRST: gl.constexpr = 2 * BEFORE + SINGLE
    base = _LEAD + slot * ((FIRST + 2) * LANES)
    a = rows[0].to(planes.dtype)
    b = rows[1].to(planes.dtype)
    SHAPE: gl.constexpr = [LANES, 8]
    if BEFORE:
        odd = (gl.arange(0, 8, gl.SliceLayout(0, a.type.layout)) % 2 == 1)[None, :]
        none = gl.zeros_like(a)
        _view(planes, base, SHAPE, _PLANE).store(gl.where(odd, b, none))
        _view(planes, base + LANES, SHAPE, _PLANE).store(gl.where(odd, a, none))
    if SINGLE:
        # Its first element goes to the end of the plane in front, which no window reaches.
        _view(planes, base + 2 * BEFORE * LANES - 1, SHAPE, _PLANE).store(a)
    _view(planes, base + FIRST * LANES, SHAPE, _PLANE).store(a)
    _view(planes, base + (FIRST + 1) * LANES, SHAPE, _PLANE).store(b)
    # The tensor cores read by another way than threads do.
    hopper.fence_async_shared()


@gluon.jit
def _weights(w, OC: gl.constexpr, STEPS: gl.constexpr, SUMS: gl.constexpr):
    """The packed weights (OC, STEPS * 16), as a tuple of first operands (OC, 16)."""
    LAYOUT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    o = gl.arange(0, OC, gl.SliceLayout(1, LAYOUT))
    k = gl.arange(0, 16, gl.SliceLayout(0, LAYOUT))
    found = ()
    for step in gl.static_range(STEPS):
        found = found + (gl.load(w + o[:, None] * (STEPS * 16) + (step * 16 + k)[None, :]),)
    return found


@gluon.jit
def _multiply(
    planes, weights, bias, slot,
    KH: gl.constexpr, TAPS: gl.constexpr, BEFORE: gl.constexpr, SLOTS: gl.constexpr,
    OC: gl.constexpr, SUMS: gl.constexpr,
):  # fmt: skip
    """Start the products of the output row whose window begins at the slot; float32 sums
    (OC, LANES), the bias in them, to be waited for."""
    SINGLE: gl.constexpr = KH % 2
    FIRST: gl.constexpr = 2 * BEFORE + SINGLE
    SHAPE: gl.constexpr = [LANES, 16]
    gl.thread_barrier()
    sums = hopper.warpgroup_mma_init(gl.zeros([OC, LANES], gl.float32, SUMS) + bias[:, None])
    for g in gl.static_range(KH // 2 + SINGLE):
        base = _LEAD + (slot + g) % SLOTS * ((FIRST + 2) * LANES)
        if g < KH // 2:
            for tap in gl.static_range(TAPS):
                # b0 and a0, or a and b.
                at = base if BEFORE and tap == 0 else base + FIRST * LANES + tap
                image = _view(planes, at, SHAPE, _TWO_PLANES).permute((1, 0))
                sums = hopper.warpgroup_mma(weights[g * TAPS + tap], image, sums, is_async=True)
        else:
            for pair in gl.static_range(TAPS // 2):
                # a0 and a1, or a1 and a.
                at = base + (LANES if BEFORE and pair == 0 else 2 * BEFORE * LANES + 2 * pair)
                image = _view(planes, at, SHAPE, _TWO_PLANES).permute((1, 0))
                sums = hopper.warpgroup_mma(weights[g * TAPS + pair], image, sums, is_async=True)
    return sums


@gluon.jit(do_not_specialize=["rows_of_program"])
def stem_planes_kernel(
    x, w, b, y,
    H, OH, stride_xn, stride_xh, stride_yn, stride_yh, rows_of_program,
    W: gl.constexpr, OW: gl.constexpr, OC: gl.constexpr,
    stride_xc: gl.constexpr, stride_xw: gl.constexpr, stride_yw: gl.constexpr,
    strip: gl.constexpr,
    C: gl.constexpr, TOP: gl.constexpr, LEFT: gl.constexpr,
    KH: gl.constexpr, TAPS: gl.constexpr, BEFORE: gl.constexpr, SLOTS: gl.constexpr,
    HAS_BIAS: gl.constexpr, KIND: gl.constexpr, ALPHA: gl.constexpr, BETA: gl.constexpr,
    BLOCK_O: gl.constexpr, BEHIND: gl.constexpr,
):  # fmt: skip
    """y = activation(conv(x, w) + b), of stride 2.

    Args:
        x: (N, C, H, W) by strides, any float dtype; rounded to the dtype of w.
        w: (BLOCK_O, steps * 16), as `Planes.pack` orders it.
        b: float32 (BLOCK_O,).
        y: (N, OC, OH, OW) by strides, channels innermost.
        strip: output columns of a program, at most LANES - TAPS.
        rows_of_program: output rows of a program.
        TAPS: pairs of columns of a window, its first column LEFT in front of the output's.
        BEFORE: 1 where that first column is none of the window's.
        SLOTS: of the ring; one more than a window has pairs of rows.
        BEHIND: a row is written while the next is computed, and the image read a row earlier;
            that takes registers.
    """
    WARPS: gl.constexpr = gl.num_warps()
    SINGLE: gl.constexpr = KH % 2
    GROUPS: gl.constexpr = KH // 2 + SINGLE
    STEPS: gl.constexpr = KH // 2 * TAPS + SINGLE * TAPS // 2
    SUMS: gl.constexpr = _sums(BLOCK_O)
    IMAGE: gl.constexpr = _image(WARPS)
    WRITTEN: gl.constexpr = gl.BlockedLayout(
        [1, 8], [256 // BLOCK_O, BLOCK_O // 8], [WARPS, 1], [1, 0]
    )
    planes = gl.allocate_shared_memory(
        w.dtype.element_ty, [_LEAD + SLOTS * (2 * BEFORE + SINGLE + 2) * LANES + _LEAD, 8], _RAW
    )
    turned = gl.allocate_shared_memory(
        y.dtype.element_ty, [LANES, BLOCK_O], gl.NVMMASharedLayout(128, 16, rank=2)
    )
    left = gl.program_id(0) * strip
    first = gl.program_id(1) * rows_of_program
    n = gl.program_id(2).to(gl.int64)
    x += n * stride_xn
    y += n * stride_yn
    position = left + gl.arange(0, LANES, gl.SliceLayout(1, IMAGE))
    for g in gl.static_range(GROUPS):
        rows = _rows(
            x, (first + g) * 2 - TOP, H, W, position, stride_xc, stride_xh, stride_xw, C, LEFT
        )  # fmt: skip
        _put(planes, g, rows, BEFORE, SINGLE)
    if BEHIND:
        ahead = _rows(
            x, (first + GROUPS) * 2 - TOP, H, W, position, stride_xc, stride_xh, stride_xw,
            C, LEFT,
        )  # fmt: skip
    weights = _weights(w, BLOCK_O, STEPS, SUMS)
    bias = gl.zeros([BLOCK_O], gl.float32, gl.SliceLayout(1, SUMS))
    if HAS_BIAS:
        bias = gl.load(b + gl.arange(0, BLOCK_O, gl.SliceLayout(1, SUMS)))

    lane = gl.arange(0, LANES, gl.SliceLayout(1, WRITTEN))
    o = gl.arange(0, BLOCK_O, gl.SliceLayout(0, WRITTEN))
    mine = ((lane < strip) & (left + lane < OW))[:, None] & (o < OC)[None, :]
    target = y + ((left + lane) * stride_yw)[:, None] + o[None, :]
    last = gl.minimum(first + rows_of_program, OH)
    for oh in range(first, last):
        slot = oh - first
        if not BEHIND:
            ahead = _rows(
                x, (oh + GROUPS) * 2 - TOP, H, W, position, stride_xc, stride_xh, stride_xw,
                C, LEFT,
            )  # fmt: skip
        sums = _multiply(planes, weights, bias, slot, KH, TAPS, BEFORE, SLOTS, BLOCK_O, SUMS)
        _put(planes, (slot + GROUPS) % SLOTS, ahead, BEFORE, SINGLE)
        if BEHIND:
            gl.store(target + (oh - 1) * stride_yh, turned.load(WRITTEN), mask=mine & (oh > first))
            ahead = _rows(
                x, (oh + GROUPS + 1) * 2 - TOP, H, W, position, stride_xc, stride_xh, stride_xw,
                C, LEFT,
            )  # fmt: skip
        value = activate(hopper.warpgroup_mma_wait(0, [sums]), KIND, ALPHA, BETA)
        turned.permute((1, 0)).store(value.to(y.dtype.element_ty))
        if not BEHIND:
            gl.thread_barrier()
            gl.store(target + oh * stride_yh, turned.load(WRITTEN), mask=mine)
    if BEHIND:
        gl.thread_barrier()
        gl.store(target + (last - 1) * stride_yh, turned.load(WRITTEN), mask=mine)


@gluon.jit
def _largest(a, b):
    """In the dtype of both; Triton compares bfloat16 as float32."""
    return gl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL).to(a.dtype)


@gluon.jit
def _where(inside, value):
    """The value, or minus infinity where it is none of the convolution's output. Written as the
    smaller of two, of which one is no number: that is one instruction for two halves."""
    limit = gl.where(inside, float("nan"), float("-inf")).to(value.dtype)
    return gl.minimum(value, limit, propagate_nan=tl.PropagateNan.NONE).to(value.dtype)


@gluon.jit
def _stage(evens, odds, value, OC: gl.constexpr):
    """A row (OC, LANES) to shared memory, columns in front."""
    HELD: gl.constexpr = _held(OC)
    even, odd = gl.split(value.reshape([OC, 64, 2]))
    _view(evens, 0, [64, OC], HELD).permute((1, 0)).store(even)
    odds.permute((1, 0)).store(odd)


@gluon.jit
def _pooled(
    even, odd, column, OW: gl.constexpr, LEFT: gl.constexpr, RIGHT: gl.constexpr, OC: gl.constexpr
):
    """The largest of three neighbours, from the even ones and the odd ones in shared memory."""
    HELD: gl.constexpr = _held(OC)
    WRITTEN: gl.constexpr = _written(OC, gl.num_warps())
    first = _view(even, 0, [64, OC], HELD).load(WRITTEN)
    second = odd.load(WRITTEN)
    third = _view(even, 1, [64, OC], HELD).load(WRITTEN)
    if LEFT > 0:
        first = _where((column >= 0)[:, None], first)
    if RIGHT:
        second = _where((column + 1 < OW)[:, None], second)
        third = _where((column + 2 < OW)[:, None], third)
    return _largest(_largest(first, second), third)


@gluon.jit(do_not_specialize=["rows_of_program"])
def stem_planes_pool_kernel(
    x, w, b, y,
    H, OH, PH, stride_xn, stride_xh, stride_yn, stride_yh, rows_of_program,
    W: gl.constexpr, OW: gl.constexpr, PW: gl.constexpr, OC: gl.constexpr,
    stride_xc: gl.constexpr, stride_xw: gl.constexpr, stride_yw: gl.constexpr,
    strip: gl.constexpr,
    C: gl.constexpr, TOP: gl.constexpr, LEFT: gl.constexpr,
    POOL_TOP: gl.constexpr, POOL_LEFT: gl.constexpr, RIGHT: gl.constexpr, BOTTOM: gl.constexpr,
    KH: gl.constexpr, TAPS: gl.constexpr, BEFORE: gl.constexpr, SLOTS: gl.constexpr,
    HAS_BIAS: gl.constexpr, KIND: gl.constexpr, ALPHA: gl.constexpr, BETA: gl.constexpr,
    BLOCK_O: gl.constexpr, BEHIND: gl.constexpr,
):  # fmt: skip
    """y = maxpool(activation(conv(x, w) + b)), both of stride 2, pooling 3x3.

    A program computes `rows_of_program` pooled rows of `strip` pooled columns, at most
    (LANES - 1 - TAPS) / 2; the third row of a pooling window is the first of the next.

    Args: as `stem_planes_kernel`; OH, OW is the size of the convolution's output, PH, PW that of y.
        RIGHT, BOTTOM: whether windows of the pooling reach over the last column, the last row.
    """
    WARPS: gl.constexpr = gl.num_warps()
    SINGLE: gl.constexpr = KH % 2
    GROUPS: gl.constexpr = KH // 2 + SINGLE
    STEPS: gl.constexpr = KH // 2 * TAPS + SINGLE * TAPS // 2
    SUMS: gl.constexpr = _sums(BLOCK_O)
    IMAGE: gl.constexpr = _image(WARPS)
    HELD: gl.constexpr = _held(BLOCK_O)
    WRITTEN: gl.constexpr = _written(BLOCK_O, gl.num_warps())
    DTYPE: gl.constexpr = y.dtype.element_ty
    planes = gl.allocate_shared_memory(
        w.dtype.element_ty, [_LEAD + SLOTS * (2 * BEFORE + SINGLE + 2) * LANES + _LEAD, 8], _RAW
    )
    evens = gl.allocate_shared_memory(DTYPE, [8 * BLOCK_O + _LEAD, 8], _RAW)
    odds = gl.allocate_shared_memory(DTYPE, [64, BLOCK_O], HELD)
    pooled_left = gl.program_id(0) * strip
    left = pooled_left * 2 - POOL_LEFT
    first = gl.program_id(1) * rows_of_program
    pooled_rows = gl.minimum(rows_of_program, PH - first)
    top = first * 2 - POOL_TOP
    # Rows above the convolution's are left out.
    start = gl.maximum(-top, 0)
    n = gl.program_id(2).to(gl.int64)
    x += n * stride_xn
    y += n * stride_yn
    position = left + gl.arange(0, LANES, gl.SliceLayout(1, IMAGE))
    above = (top + start) * 2 - TOP
    for g in gl.static_range(GROUPS):
        rows = _rows(
            x, above + 2 * g, H, W, position, stride_xc, stride_xh, stride_xw, C, LEFT
        )  # fmt: skip
        _put(planes, g, rows, BEFORE, SINGLE)
    if BEHIND:
        ahead = _rows(
            x, above + 2 * GROUPS, H, W, position, stride_xc, stride_xh, stride_xw, C, LEFT
        )  # fmt: skip
    weights = _weights(w, BLOCK_O, STEPS, SUMS)
    bias = gl.zeros([BLOCK_O], gl.float32, gl.SliceLayout(1, SUMS))
    if HAS_BIAS:
        bias = gl.load(b + gl.arange(0, BLOCK_O, gl.SliceLayout(1, SUMS)))

    lane = gl.arange(0, 64, gl.SliceLayout(1, WRITTEN))
    o = gl.arange(0, BLOCK_O, gl.SliceLayout(0, WRITTEN))
    mine = ((lane < strip) & (pooled_left + lane < PW))[:, None] & (o < OC)[None, :]
    target = y + first * stride_yh + ((pooled_left + lane) * stride_yw)[:, None] + o[None, :]
    column = left + 2 * lane
    best = gl.full([BLOCK_O, LANES], float("-inf"), DTYPE, SUMS)
    for r in range(start, 2 * pooled_rows + 1):
        slot = r - start
        if not BEHIND:
            ahead = _rows(
                x, above + 2 * (slot + GROUPS), H, W, position, stride_xc, stride_xh, stride_xw,
                C, LEFT,
            )  # fmt: skip
        sums = _multiply(planes, weights, bias, slot, KH, TAPS, BEFORE, SLOTS, BLOCK_O, SUMS)
        _put(planes, (slot + GROUPS) % SLOTS, ahead, BEFORE, SINGLE)
        if BEHIND:
            if r % 2 == 1:
                pooled = _pooled(evens, odds, column, OW, POOL_LEFT, RIGHT, BLOCK_O)
                gl.store(target + (r // 2 - 1) * stride_yh, pooled, mask=mine & (r > 1))
            ahead = _rows(
                x, above + 2 * (slot + GROUPS + 1), H, W, position, stride_xc, stride_xh,
                stride_xw, C, LEFT,
            )  # fmt: skip
        value = activate(hopper.warpgroup_mma_wait(0, [sums]), KIND, ALPHA, BETA).to(DTYPE)
        if BOTTOM:
            value = _where(top + r < OH, value)
        best = _largest(best, value)
        if r % 2 == 0:
            _stage(evens, odds, best, BLOCK_O)
            if not BEHIND:
                gl.thread_barrier()
                pooled = _pooled(evens, odds, column, OW, POOL_LEFT, RIGHT, BLOCK_O)
                gl.store(target + (r // 2 - 1) * stride_yh, pooled, mask=mine & (r > 0))
            best = value
    if BEHIND:
        gl.thread_barrier()
        pooled = _pooled(evens, odds, column, OW, POOL_LEFT, RIGHT, BLOCK_O)
        gl.store(target + (pooled_rows - 1) * stride_yh, pooled, mask=mine)
