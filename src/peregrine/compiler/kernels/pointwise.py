"""A 1x1 convolution whose weights stay in shared memory, by specialised warps.

    Y[m, o] = activation(sum over c of X[m, c] * W[o, c] + B[o] + Z[m, o])

Such layers of many images are bound by memory: by Y above all, where outputs are more than inputs.
A program keeps the weights of SLICE outputs and takes every so-many-th tile of pixels. One warp
fetches tiles into a ring; two groups of warps take turns with them. Each block of Y leaves by the
tensor memory accelerator from where its residual came to, which was asked for one block ahead: so
loads, products and stores of different blocks overlap, and no thread waits for memory.
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
from peregrine.compiler.kernels.gluon_names import async_load, async_store


@gluon.jit
def load_tiles(
    x,
    w,
    ring,
    weights,
    full,
    empty,
    ready,
    first,
    tiles,
    step,
    o,
    BLOCKS: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    CHUNKS: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """The warp that fetches: the weights once, then every `step`-th tile."""
    mbarrier.expect(ready, BLOCKS * CHUNKS * BLOCK_N * BLOCK_K * 2)
    for j in gl.static_range(BLOCKS):
        for k in gl.static_range(CHUNKS):
            into = weights.index(j * CHUNKS + k)
            async_load(w, [o + j * BLOCK_N, k * BLOCK_K], ready, into)
    for count in range((tiles - first + step - 1) // step):
        tile = first + count * step
        slot = count % SLOTS
        mbarrier.wait(empty.index(slot), ((count // SLOTS) & 1) ^ 1)
        arrival = full.index(slot)
        mbarrier.expect(arrival, BLOCK_M * CHUNKS * BLOCK_K * 2)
        for k in gl.static_range(CHUNKS):
            box = ring.index(slot * CHUNKS + k)
            async_load(x, [tile * BLOCK_M, k * BLOCK_K], arrival, box)


@gluon.jit
def multiply_tiles(
    ring,
    weights,
    stage,
    full,
    empty,
    ready,
    arrived,
    bias,
    z,
    y,
    first,
    tiles,
    step,
    o,
    TURN: gl.constexpr,
    BLOCKS: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CHUNKS: gl.constexpr,
    SLOTS: gl.constexpr,
    BUFFERS: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_Z: gl.constexpr,
    KIND: gl.constexpr,
    ALPHA: gl.constexpr,
    BETA: gl.constexpr,
):
    """Four warps that compute every other of the program's tiles, beginning with the TURN-th."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    columns = o + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SUMS))
    own = (tiles - first + step - 1) // step
    if HAS_Z:  # noqa: SIM102 - the one is known when it is compiled, the other is not
        if own > TURN:
            ask(z, stage, arrived, 0, first + TURN * step, o, BLOCK_M, BLOCK_N)
    mbarrier.wait(ready, 0)
    ends = 0
    for count in range(TURN, own, 2):
        tile = first + count * step
        slot = count % SLOTS
        mbarrier.wait(full.index(slot), (count // SLOTS) & 1)
        for j in gl.static_range(BLOCKS):
            acc = warpgroup_mma_init(gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SUMS))
            for k in gl.static_range(CHUNKS):
                a = ring.index(slot * CHUNKS + k)
                b = weights.index(j * CHUNKS + k).permute([1, 0])
                acc = warpgroup_mma(a, b, acc, use_acc=k > 0, is_async=True)
            buffer = ends % BUFFERS
            tma.store_wait(BUFFERS - 1 - HAS_Z)
            if HAS_Z:
                # The buffer after this one is free now: the residual of the next block comes there.
                after = (ends + 1) % BUFFERS
                if j < BLOCKS - 1:
                    ask(z, stage, arrived, after, tile, o + (j + 1) * BLOCK_N, BLOCK_M, BLOCK_N)
                elif count + 2 < own:
                    ask(z, stage, arrived, after, tile + 2 * step, o, BLOCK_M, BLOCK_N)
            sums = warpgroup_mma_wait(0, deps=[acc])
            if j == BLOCKS - 1:
                mbarrier.arrive(empty.index(slot), count=1)
            if HAS_BIAS:
                sums += gl.load(bias + j * BLOCK_N + columns)[None, :]
            leaving = stage.index(buffer)
            if HAS_Z:
                mbarrier.wait(arrived.index(buffer), (ends // BUFFERS) & 1)
                sums += leaving.load(SUMS).to(gl.float32)
            leaving.store(activate(sums, KIND, ALPHA, BETA).to(y.dtype))
            fence_async_shared()
            async_store(y, [tile * BLOCK_M, o + j * BLOCK_N], leaving)
            ends += 1
    tma.store_wait(0)


@gluon.jit
def ask(z, stage, arrived, buffer, tile, o, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """For a block of Z."""
    mbarrier.expect(arrived.index(buffer), BLOCK_M * BLOCK_N * 2)
    async_load(z, [tile * BLOCK_M, o], arrived.index(buffer), stage.index(buffer))


@gluon.jit(do_not_specialize=["M"])
def pointwise(
    x,
    w,
    bias,
    z,
    y,
    M,
    O: gl.constexpr,  # noqa: E741
    HAS_BIAS: gl.constexpr,
    HAS_Z: gl.constexpr,
    KIND: gl.constexpr,
    ALPHA: gl.constexpr,
    BETA: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCKS: gl.constexpr,
    CHUNKS: gl.constexpr,
    SLOTS: gl.constexpr,
    BUFFERS: gl.constexpr,
):
    """Every so-many-th tile of pixels for a slice of the outputs a program; grid (programs), a
    multiple of the slices.

    Args:
        x: descriptor of the input, float16 or bfloat16, (M, C) for (BLOCK_M, BLOCK_K).
        w: descriptor of `pack_weights`' result for (BLOCK_N, BLOCK_K).
        bias: float32 (O padded to the slices).
        z, y: descriptors of the residual and of the output (M, O) for
            (BLOCK_M, BLOCK_N).
        M: pixels.
        BLOCK_M: of a tile, 64 or 128.
        BLOCKS: of BLOCK_N outputs in a slice.
        CHUNKS: of BLOCK_K channels.
        SLOTS: tiles in the ring; an even number, so that a slot is always the same group's, which
            then never waits for a phase after the next.
        BUFFERS: blocks of each group of warps on their way to memory; at least 2 with Z.
    """
    END: gl.constexpr = gl.NVMMASharedLayout(min(128, 2 * BLOCK_N), 16, rank=2)
    ring = gl.allocate_shared_memory(x.dtype, [SLOTS * CHUNKS, BLOCK_M, BLOCK_K], w.layout)
    weights = gl.allocate_shared_memory(x.dtype, [BLOCKS * CHUNKS, BLOCK_N, BLOCK_K], w.layout)
    stage_0 = gl.allocate_shared_memory(x.dtype, [BUFFERS, BLOCK_M, BLOCK_N], END)
    stage_1 = gl.allocate_shared_memory(x.dtype, [BUFFERS, BLOCK_M, BLOCK_N], END)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    arrived_0 = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    arrived_1 = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(arrived_0.index(i), count=1)
        mbarrier.init(arrived_1.index(i), count=1)
    mbarrier.init(ready, count=1)

    SLICES: gl.constexpr = (O + BLOCKS * BLOCK_N - 1) // (BLOCKS * BLOCK_N)
    tiles = (M + BLOCK_M - 1) // BLOCK_M
    # Neighbours share a tile of the input.
    o = gl.program_id(0) % SLICES * (BLOCKS * BLOCK_N)
    first = gl.program_id(0) // SLICES
    step = gl.num_programs(0) // SLICES
    gl.warp_specialize(
        [
            (
                multiply_tiles,
                (
                    ring, weights, stage_0, full, empty, ready, arrived_0, bias, z, y,
                    first, tiles, step, o, 0, BLOCKS, BLOCK_M, BLOCK_N,
                    CHUNKS, SLOTS, BUFFERS, HAS_BIAS, HAS_Z, KIND, ALPHA, BETA,
                ),
            ),
            (
                multiply_tiles,
                (
                    ring, weights, stage_1, full, empty, ready, arrived_1, bias, z, y,
                    first, tiles, step, o, 1, BLOCKS, BLOCK_M, BLOCK_N,
                    CHUNKS, SLOTS, BUFFERS, HAS_BIAS, HAS_Z, KIND, ALPHA, BETA,
                ),
            ),
            (
                load_tiles,
                (
                    x, w, ring, weights, full, empty, ready, first, tiles, step, o,
                    BLOCKS, BLOCK_M, BLOCK_N, BLOCK_K, CHUNKS, SLOTS,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
