"""How an implicit GEMM is cut into tiles, and what each way should cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

from peregrine.compiler.tactics.base import Config, Device

_LAUNCH = 0.9e-6
"""Seconds of a kernel in a CUDA graph that are no work: its start, the end of the one before."""
_SPLIT = 1.1e-6
"""Seconds more for the partial sums of a split K: written, counted, read back."""
_LATENCY = 0.55e-6
"""Seconds from asking the L2 cache for a block of K until it is multiplied."""
_L2_BYTES = 50e9
"""Bytes a second that one multiprocessor reads from the L2 cache."""
_END_BYTES = 50e9
"""Bytes a second at which one multiprocessor ends a tile: residual read, output written."""
_DESCRIPTOR = 0.25e-6
"""Seconds more until the accelerator has read what it needs to know of a tensor."""
_SHARED_MEMORY = 227 * 1024
"""Bytes a block may use on Hopper; older devices refuse some configurations when they compile."""

# Rows, columns, depth, warps, stages: the smaller ones for one image, the larger for many.
_TILES = (
    (16, 32, 128, 4, 4),
    (16, 64, 128, 4, 4),
    (32, 32, 128, 4, 4),
    (32, 64, 128, 4, 4),
    (64, 16, 128, 4, 4),
    (64, 32, 64, 4, 5),
    (64, 32, 128, 4, 4),
    (64, 64, 64, 4, 3),
    (64, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (64, 128, 64, 4, 3),
    (64, 128, 64, 4, 4),
    (128, 32, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 64, 64, 4, 4),
    (128, 64, 64, 8, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 4),
    (128, 128, 32, 4, 4),
    (256, 32, 64, 4, 3),
    (256, 64, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
)
_TMA_TILES = (
    (64, 16, 128, 4, 5),
    (64, 32, 128, 4, 5),
    (64, 64, 64, 4, 4),
    (64, 64, 64, 4, 6),
    (64, 64, 128, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 32, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 64, 64, 4, 4),
    (128, 64, 64, 4, 6),
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 8, 4),
    (128, 128, 64, 8, 6),
    (256, 64, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (256, 128, 64, 8, 4),
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (64, 256, 64, 4, 4),
)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Product:
    """The sizes of an implicit GEMM: Y (pixels, n) sums over `taps` times `channels`."""

    pixels: tuple[int, int, int]
    """Images, rows and columns of the output; of a matrix product (rows, 1, 1)."""
    n: int
    taps: int
    channels: int
    itemsize: int
    bytes: int
    """The fewest that it must move."""
    residual: bool = False
    boxed_end: bool = False
    """Whether the tensor memory accelerator can fetch the residual and write the output."""
    box_rank: int = 0
    """Of the input for the tensor memory accelerator; 0 where it cannot fetch it."""

    @property
    def m(self) -> int:
        return math.prod(self.pixels)

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.taps * self.channels

    def steps(self, block_k: int) -> int:
        """Steps of the loop over K."""
        return self.taps * math.ceil(self.channels / block_k)


@dataclass(frozen=True, slots=True)
class Tiling:
    """One way to cut it; `Config` holds the same as JSON."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    split_k: int = 1
    reduce: str = "last"
    """`last`: the last program of a tile sums; `kernel`: a second kernel does."""
    fetch: str = "pointers"
    """`pointers`: threads compute addresses; `tma`: the tensor memory accelerator."""
    programs: int = 0
    """That walk over all tiles; 0 for one program a tile."""
    ahead: bool = False
    """Whether the residual is loaded before the sum."""
    boxed_end: bool = False
    """Whether the accelerator fetches the residual and writes the output, too."""

    @classmethod
    def read(cls, config: Config) -> Tiling:
        return cls(**{field.name: config[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    def config(self) -> dict[str, int | str]:
        return asdict(self)

    def rows(self, product: Product) -> int:
        """Tiles from top to bottom."""
        if self.fetch == "pointers":
            return math.ceil(product.m / self.block_m)
        sides = zip(product.pixels, self.box(product), strict=True)
        return math.prod(math.ceil(size / side) for size, side in sides)

    def tiles(self, product: Product) -> int:
        return math.ceil(product.n / self.block_n) * self.rows(product)

    def box(self, product: Product) -> tuple[int, int, int]:
        """Images, rows and columns of a tile: powers of two with the product `block_m`, the fewest
        boxes, and of those the widest."""
        if product.box_rank == 2:
            return self.block_m, 1, 1
        return _box(product.pixels, self.block_m)

    def shared_memory(self, product: Product) -> int:
        """Bytes: the pipelined blocks of both operands, and with the accelerator what the end of a
        tile needs beside those of the next."""
        operands = self.stages * (self.block_m + self.block_n) * self.block_k * product.itemsize
        tile = self.block_m * self.block_n * product.itemsize
        end = 0
        if self.boxed_end:
            end = tile * (2 if self.programs and product.residual else 1)
        elif self.programs:
            end = min(tile, 32768)
        return operands + end + 1024

    def resident(self, product: Product) -> int:
        """Programs that fit a multiprocessor at a time."""
        return max(
            1,
            min(
                _SHARED_MEMORY // self.shared_memory(product),
                16 // self.warps,
                # Half of its registers for accumulators.
                32768 // (self.block_m * self.block_n),
            ),
        )


@lru_cache(maxsize=4096)
def _box(pixels: tuple[int, int, int], block_m: int) -> tuple[int, int, int]:
    best = (math.inf, 0, 0, (0, 0, 0))
    powers = [1 << i for i in range(block_m.bit_length())]
    for width in powers:
        for height in powers:
            if width * height > block_m:
                continue
            box = (block_m // (width * height), height, width)
            boxes = math.prod(
                math.ceil(size / side) for size, side in zip(pixels, box, strict=True)
            )
            best = min(best, (boxes, -width, -height, box))
    return best[3]


def candidates(product: Product, device: Device) -> Iterator[Tiling]:
    """Every tiling that makes sense for these sizes, in no order."""
    tma = product.box_rank > 0 and product.itemsize == 2 and device.capability[0] != 8
    for fetch, tiles in (("pointers", _TILES), ("tma", _TMA_TILES if tma else ())):
        seen = set()
        for block_m, block_n, block_k, warps, stages in tiles:
            # No deeper than the channels, so that a tap is not mostly padding.
            depth = min(block_k, max(16, 1 << (product.channels - 1).bit_length()))
            if product.itemsize == 4:
                depth = max(16, depth // 2)
            if fetch == "tma" and product.box_rank == 5 and product.channels % depth:
                # What it fetches beyond a pixel's channels would be the next pixel's.
                continue
            if fetch == "tma" and product.box_rank > 2 and block_n < 64:
                # The weights come first there, and the tensor cores take no fewer rows at a time.
                continue
            # Nor more stages than there are steps to fill them.
            deepest = max(2, product.steps(depth) + 1)
            tiling = Tiling(block_m, block_n, depth, warps, min(stages, deepest), fetch=fetch)
            useful = _useful(block_n, product.n) and _useful(block_m, product.m)
            fits = tiling.shared_memory(product) <= _SHARED_MEMORY
            if useful and fits and tiling not in seen:
                seen.add(tiling)
                yield from _variants(tiling, product, device)


def _useful(block: int, size: int) -> bool:
    """Whether no smaller block would do."""
    return block <= 16 or block < 2 * size


def _variants(tiling: Tiling, product: Product, device: Device) -> Iterator[Tiling]:
    """The ways to spread its tiles over the multiprocessors."""
    tiles, steps = tiling.tiles(product), product.steps(tiling.block_k)
    ends = [tiling]
    if tiling.fetch == "tma" and product.boxed_end:
        ends.append(replace(tiling, boxed_end=True))
    for end in ends:
        ways = [end]
        together = device.multiprocessors * replace(end, programs=1).resident(product)
        if end.fetch == "tma" and tiles > together:
            ways.append(replace(end, programs=together))
        yield from (way for way in ways if way.shared_memory(product) <= _SHARED_MEMORY)
    if product.residual and tiling.fetch == "pointers":
        yield replace(tiling, ahead=True)
    for split in _SPLITS[1:]:
        # Full waves need no split; and every split must have work.
        if (
            tiles * split > 2 * device.multiprocessors
            or math.ceil(steps / split) * (split - 1) >= steps
        ):
            continue
        yield replace(tiling, split_k=split)
        yield replace(tiling, split_k=split, reduce="kernel")


def best(product: Product, device: Device) -> list[Tiling]:
    """Of each tile the two cheapest ways to spread it, by prediction; cheapest first. Predictions
    are rough, so that different tiles are a better list than many splits of one."""
    kept: list[Tiling] = []
    count: dict[Tiling, int] = {}
    for tiling in sorted(
        candidates(product, device), key=lambda tiling: predict(product, tiling, device)
    ):
        tile = replace(tiling, split_k=1, reduce="last", programs=0, ahead=False, boxed_end=False)
        count[tile] = count.get(tile, 0) + 1
        if count[tile] <= 2:
            kept.append(tiling)
    return kept


def predict(product: Product, tiling: Tiling, device: Device) -> float:
    """Seconds: waves of blocks, each a start, the steps over K and an end, and no faster than
    device memory."""
    units = tiling.tiles(product) * tiling.split_k
    steps = math.ceil(product.steps(tiling.block_k) / tiling.split_k)
    together = min(tiling.resident(product), math.ceil(units / device.multiprocessors))
    waves = units / (device.multiprocessors * together)
    if not tiling.programs or waves < 4:
        waves = math.ceil(waves)
    # A program that walks over tiles starts one while it ends another.
    start = _LATENCY * (0.3 if tiling.programs else 1.0)
    if tiling.fetch == "tma":
        start += _DESCRIPTOR
    seconds = waves * (start + steps * _step(product, tiling, together, device))
    if tiling.split_k > 1:
        seconds += _reduction(tiling, units, device)
    else:
        tile = tiling.block_m * tiling.block_n * product.itemsize
        seconds += waves * together * tile * (1 + product.residual) / _END_BYTES
    # What is hidden behind device memory still counts a little: it breaks ties.
    memory = product.bytes / device.bandwidth
    return _LAUNCH + max(seconds, memory) + 0.1 * min(seconds, memory)


def _step(product: Product, tiling: Tiling, together: int, device: Device) -> float:
    """Seconds of one step over K of the programs of one multiprocessor, at the slowest of tensor
    cores, L2 cache and latency."""
    # Small tiles feed the tensor cores badly, and addresses take turns with products.
    efficiency = 0.85 * min(1.0, math.sqrt(tiling.block_m * tiling.block_n / 16384))
    if tiling.fetch == "pointers":
        efficiency *= 0.85
    peak = device.flops / device.multiprocessors * (2 / product.itemsize)
    flops = 2 * tiling.block_m * tiling.block_n * tiling.block_k
    traffic = (tiling.block_m + tiling.block_n) * tiling.block_k * product.itemsize
    return max(
        together * flops / (peak * efficiency),
        together * traffic / _L2_BYTES,
        _LATENCY / (tiling.stages - 1),
    )


def _reduction(tiling: Tiling, units: int, device: Device) -> float:
    """Seconds for the partial sums of `units` programs: by the last one of each tile, or by a
    kernel that uses all multiprocessors."""
    partial = tiling.block_m * tiling.block_n * 4
    if tiling.reduce == "last":
        return _SPLIT + partial * (tiling.split_k + 1) / (2 * _L2_BYTES)
    return 1.1 * _SPLIT + 2 * partial * units / (_L2_BYTES * device.multiprocessors)
