"""A 3x3 window over few channels that reads each row of its input once, by specialised warps.

As an implicit GEMM such a layer asks the L2 cache for its input nine times, and that is what it
takes: 64 channels at 56x56 and 256 images are 0.9 GB. Here a program keeps the weights of 64 output
channels in shared memory and walks down a strip of the image, BW columns wide and NI images deep.
One warp fetches rows of the strip, with a column more on either side, into a ring; two groups of
warps take turns with the rows of the output, each of which reads three rows of the ring.

A row lies in the ring column by column, and in each the pixel of each image: what a tap reads for
all pixels of a row of the output is contiguous, whatever the tap. So the tensor cores read the taps
where the row lies: pixels are the columns of the product and output channels its rows, which is the
shape they are fastest at (64 x 128 or 256 x 16).

For a ConvBranches the pointwise branch is a tenth product, of the middle tap's pixels.
"""

# mypy: ignore-errors
# Gluon reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from peregrine.compiler.kernels.activations import activate
from peregrine.compiler.kernels.gluon_names import async_load, async_store, seen_as


@gluon.jit
def load_rows(
    x,
    x_edge,
    w,
    w1,
    ring,
    weights,
    full,
    empty,
    ready,
    first,
    last,
    o,
    C: gl.constexpr,
    OH: gl.constexpr,
    PAD_H: gl.constexpr,
    PAD_W: gl.constexpr,
    STRIPS_W: gl.constexpr,
    NI: gl.constexpr,
    BW: gl.constexpr,
    SLOTS: gl.constexpr,
    BRANCH: gl.constexpr,
):
    """The warp that fetches: the weights once, then the rows from `first` to `last`."""
    BODY: gl.constexpr = x.layout
    EDGE: gl.constexpr = x_edge.layout
    mbarrier.expect(ready, (10 if BRANCH else 9) * 64 * C * 2)
    for tap in gl.static_range(9):
        async_load(w, [o, tap * C], ready, weights.index(tap))
    if BRANCH:
        async_load(w1, [o, 0], ready, weights.index(9))
    at = first
    count = 0
    while at < last:
        strip = at // OH
        top = at % OH
        n = (strip // STRIPS_W) * NI
        left = (strip % STRIPS_W) * BW - PAD_W
        rows = gl.minimum(OH - top, last - at)
        for row in range(rows + 2):
            slot = count % SLOTS
            mbarrier.wait(empty.index(slot), ((count // SLOTS) & 1) ^ 1)
            arrival = full.index(slot)
            mbarrier.expect(arrival, (BW + 2) * NI * C * 2)
            h = top + row - PAD_H
            column = slot * (BW + 2)
            body = seen_as(ring.index(column), [1, BW, NI, C], BODY)
            async_load(x, [h, left, n, 0], arrival, body)
            edge = seen_as(ring.index(column + BW), [1, 2, NI, C], EDGE)
            async_load(x_edge, [h, left + BW, n, 0], arrival, edge)
            count += 1
        at += rows


@gluon.jit
def multiply_rows(
    ring,
    weights,
    stage,
    full,
    empty,
    ready,
    arrived,
    bias,
    bias1,
    z,
    y,
    first,
    last,
    o,
    TURN: gl.constexpr,
    C: gl.constexpr,
    O1: gl.constexpr,
    OH: gl.constexpr,
    STRIPS_W: gl.constexpr,
    NI: gl.constexpr,
    BW: gl.constexpr,
    SLOTS: gl.constexpr,
    BUFFERS: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_BIAS1: gl.constexpr,
    HAS_Z: gl.constexpr,
    KIND: gl.constexpr,
    ALPHA: gl.constexpr,
    BETA: gl.constexpr,
):
    """Four warps that compute every other row of a strip, beginning with row TURN.

    Each of the two groups says once of each row of the ring that it has read it, in the order of
    rows and never before the row has come: so neither is a phase ahead of a barrier."""
    PIXELS: gl.constexpr = BW * NI
    BRANCH: gl.constexpr = O1 > 0
    OPERAND: gl.constexpr = weights.layout
    BOX: gl.constexpr = y.layout
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PIXELS, 16])
    channels = o + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    shift = (
        gl.load(bias + channels)
        if HAS_BIAS
        else gl.full([64], 0.0, gl.float32, channels.type.layout)
    )
    if BRANCH:
        shift1 = (
            gl.load(bias1 + channels)
            if HAS_BIAS1
            else gl.full([64], 0.0, gl.float32, channels.type.layout)
        )
    mbarrier.wait(ready, 0)
    at = first
    count = 0
    ends = 0
    while at < last:
        strip = at // OH
        top = at % OH
        n = (strip // STRIPS_W) * NI
        left = (strip % STRIPS_W) * BW
        rows = gl.minimum(OH - top, last - at)
        if TURN == 1:
            release(full, empty, count, SLOTS)
        done = TURN
        for row in range(TURN, rows, 2):
            h = top + row
            if HAS_Z:
                # It comes where the row will leave from, while the row is computed.
                buffer = ends % BUFFERS
                tma.store_wait(BUFFERS - 1)
                mbarrier.expect(arrived.index(buffer), PIXELS * 64 * 2)
                box = seen_as(stage.index(buffer), [1, BW, NI, 64], BOX)
                async_load(z, [h, left, n, o], arrived.index(buffer), box)
            if BRANCH:
                mbarrier.wait(full.index((count + row) % SLOTS), ((count + row) // SLOTS) & 1)
                middle = count + row + 1
                mbarrier.wait(full.index(middle % SLOTS), (middle // SLOTS) & 1)
                b = seen_as(ring.index(middle % SLOTS * (BW + 2) + 1), [PIXELS, C], OPERAND)
                sums = warpgroup_mma(
                    weights.index(9),
                    b.permute([1, 0]),
                    gl.zeros([64, PIXELS], gl.float32, SUMS),
                    use_acc=False,
                    is_async=True,
                )
                sums = warpgroup_mma_wait(0, deps=[sums])
                finish_row(
                    sums, shift1, stage, arrived, y, h, left, n, o, ends,
                    NI, BW, BUFFERS, False, KIND, ALPHA, BETA,
                )  # fmt: skip
                ends += 1
            acc = warpgroup_mma_init(gl.zeros([64, PIXELS], gl.float32, SUMS))
            for kh in gl.static_range(3):
                place = count + row + kh
                mbarrier.wait(full.index(place % SLOTS), (place // SLOTS) & 1)
                for kw in gl.static_range(3):
                    a = weights.index(kh * 3 + kw)
                    b = seen_as(ring.index(place % SLOTS * (BW + 2) + kw), [PIXELS, C], OPERAND)
                    acc = warpgroup_mma(
                        a, b.permute([1, 0]), acc, use_acc=kh + kw > 0, is_async=True
                    )
                if kh > 0:
                    # All but the three products just asked for are done.
                    acc = warpgroup_mma_wait(3, deps=[acc])
                    mbarrier.arrive(empty.index((place - 1) % SLOTS), count=1)
            acc = warpgroup_mma_wait(0, deps=[acc])
            done = row + 2
            finish_row(
                acc, shift, stage, arrived, y, h, left, n, O1 + o, ends,
                NI, BW, BUFFERS, HAS_Z, KIND, ALPHA, BETA,
            )  # fmt: skip
            ends += 1
        for row in range(done, rows + 2):
            release(full, empty, count + row, SLOTS)
        count += rows + 2
        at += rows
    tma.store_wait(0)


@gluon.jit
def release(full, empty, place, SLOTS: gl.constexpr):
    """Say of a row of the ring, once it has come, that this group needs it no more."""
    mbarrier.wait(full.index(place % SLOTS), (place // SLOTS) & 1)
    mbarrier.arrive(empty.index(place % SLOTS), count=1)


@gluon.jit
def finish_row(
    sums,
    shift,
    stage,
    arrived,
    y,
    h,
    w,
    n,
    o,
    ends,
    NI: gl.constexpr,
    BW: gl.constexpr,
    BUFFERS: gl.constexpr,
    HAS_Z: gl.constexpr,
    KIND: gl.constexpr,
    ALPHA: gl.constexpr,
    BETA: gl.constexpr,
):
    """Bias, residual, activation, and the row's way to memory; the `ends`-th of this group."""
    BOX: gl.constexpr = y.layout
    buffer = ends % BUFFERS
    leaving = stage.index(buffer).permute([1, 0])
    sums += shift[:, None]
    if HAS_Z:
        mbarrier.wait(arrived.index(buffer), (ends // BUFFERS) & 1)
        sums += leaving.load(sums.type.layout).to(gl.float32)
    result = activate(sums, KIND, ALPHA, BETA).to(y.dtype)
    if not HAS_Z:
        tma.store_wait(BUFFERS - 1)
    leaving.store(result)
    fence_async_shared()
    box = seen_as(stage.index(buffer), [1, BW, NI, 64], BOX)
    async_store(y, [h, w, n, o], box)


@gluon.jit(do_not_specialize=["N"])
def conv_rows(
    x,
    x_edge,
    w,
    w1,
    bias,
    bias1,
    z,
    y,
    N,
    C: gl.constexpr,
    O1: gl.constexpr,
    O: gl.constexpr,  # noqa: E741
    OH: gl.constexpr,
    OW: gl.constexpr,
    PAD_H: gl.constexpr,
    PAD_W: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_BIAS1: gl.constexpr,
    HAS_Z: gl.constexpr,
    KIND: gl.constexpr,
    ALPHA: gl.constexpr,
    BETA: gl.constexpr,
    NI: gl.constexpr,
    BW: gl.constexpr,
    SLOTS: gl.constexpr,
    BUFFERS: gl.constexpr,
):
    """64 output channels of a run of rows a program; grid (programs), a multiple of O / 64.

    Images are described with their dimensions in the order (H, W, N, C).

    Args:
        x, x_edge: descriptors of the input, float16 or bfloat16, for (1, BW, NI, C) and
            (1, 2, NI, C).
        w: descriptor of `pack_weights(.., 64, C)` for (64, C); w1 the same of the pointwise branch.
        bias, bias1: float32 (O).
        z, y: descriptors of the residual and of the output for (1, BW, NI, 64).
        N: images.
        C: channels padded to 16, 32 or 64.
        O1: channels of the pointwise branch, the first of y; 0, or O.
        O: channels of the window's branch, a multiple of 64.
        NI: images, and BW: columns of a tile of the output; NI at least 8, both powers of two.
        SLOTS: rows in the ring, at least 3.
        BUFFERS: rows of each group on their way to memory.
    """
    BRANCH: gl.constexpr = O1 > 0
    STRIPS_W: gl.constexpr = (OW + BW - 1) // BW
    TAPS: gl.constexpr = 10 if BRANCH else 9
    STAGE: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    ring = gl.allocate_shared_memory(x.dtype, [SLOTS * (BW + 2), NI, C], w.layout)
    weights = gl.allocate_shared_memory(x.dtype, [TAPS, 64, C], w.layout)
    stage_0 = gl.allocate_shared_memory(x.dtype, [BUFFERS, BW * NI, 64], STAGE)
    stage_1 = gl.allocate_shared_memory(x.dtype, [BUFFERS, BW * NI, 64], STAGE)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    arrived_0 = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    arrived_1 = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(arrived_0.index(i), count=1)
        mbarrier.init(arrived_1.index(i), count=1)
    mbarrier.init(ready, count=1)

    GROUPS: gl.constexpr = O // 64
    o = gl.program_id(0) % GROUPS * 64
    mine = gl.program_id(0) // GROUPS
    programs = gl.num_programs(0) // GROUPS
    rows = (N + NI - 1) // NI * (STRIPS_W * OH)
    first = mine * rows // programs
    last = (mine + 1) * rows // programs
    gl.warp_specialize(
        [
            (
                multiply_rows,
                (
                    ring, weights, stage_0, full, empty, ready, arrived_0,
                    bias, bias1, z, y, first, last, o, 0, C, O1, OH, STRIPS_W, NI, BW, SLOTS,
                    BUFFERS, HAS_BIAS, HAS_BIAS1, HAS_Z, KIND, ALPHA, BETA,
                ),
            ),
            (
                multiply_rows,
                (
                    ring, weights, stage_1, full, empty, ready, arrived_1,
                    bias, bias1, z, y, first, last, o, 1, C, O1, OH, STRIPS_W, NI, BW, SLOTS,
                    BUFFERS, HAS_BIAS, HAS_BIAS1, HAS_Z, KIND, ALPHA, BETA,
                ),
            ),
            (
                load_rows,
                (
                    x, x_edge, w, w1, ring, weights, full, empty, ready,
                    first, last, o, C, OH, PAD_H, PAD_W, STRIPS_W, NI, BW, SLOTS, BRANCH,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
