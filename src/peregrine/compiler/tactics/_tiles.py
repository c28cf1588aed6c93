"""How an implicit GEMM is cut into tiles, and what each way should cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from peregrine.compiler.tactics.base import Config, Device

_LAUNCH = 2.0e-6
"""Seconds of a kernel in a CUDA graph that are no work: start, first loads, last stores."""
_SPLIT = 1.2e-6
"""Seconds more for the partial sums of a split K: written, counted, read back."""
_LATENCY = 0.7e-6
"""Seconds from asking the L2 cache for a block of K until it is multiplied."""
_L2_BYTES = 42e9
"""Bytes a second that one multiprocessor reads from the L2 cache."""
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
    (64, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (64, 128, 64, 4, 4),
    (128, 32, 64, 4, 4),
    (128, 64, 64, 4, 3),
    (128, 64, 64, 4, 4),
    (128, 64, 64, 8, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 4),
    (128, 128, 32, 4, 4),
    (256, 64, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Product:
    """The sizes of an implicit GEMM: Y (m, n) sums over `taps` times `channels`."""

    m: int
    n: int
    taps: int
    channels: int
    itemsize: int
    bytes: int
    """The fewest that it must move."""

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

    @classmethod
    def read(cls, config: Config) -> Tiling:
        return cls(
            int(config["block_m"]),
            int(config["block_n"]),
            int(config["block_k"]),
            int(config["warps"]),
            int(config["stages"]),
            int(config["split_k"]),
            str(config["reduce"]),
        )

    def config(self) -> dict[str, int | str]:
        return {
            "block_m": self.block_m,
            "block_n": self.block_n,
            "block_k": self.block_k,
            "warps": self.warps,
            "stages": self.stages,
            "split_k": self.split_k,
            "reduce": self.reduce,
        }

    def tiles(self, product: Product) -> int:
        return math.ceil(product.m / self.block_m) * math.ceil(product.n / self.block_n)

    def shared_memory(self, itemsize: int) -> int:
        """Bytes that the pipelined blocks of both operands take."""
        return self.stages * (self.block_m + self.block_n) * self.block_k * itemsize


def candidates(product: Product, device: Device) -> Iterator[Tiling]:
    """Every tiling that makes sense for these sizes, in no order."""
    seen = set()
    for block_m, block_n, block_k, warps, stages in _TILES:
        # No deeper than the channels, so that a tap is not mostly padding.
        depth = min(block_k, max(16, 1 << (product.channels - 1).bit_length()))
        if product.itemsize == 4:
            depth = max(16, depth // 2)
        if (block_n > 16 and block_n // 2 >= product.n) or (
            block_m > 16 and block_m // 2 >= product.m
        ):
            continue
        base = Tiling(block_m, block_n, depth, warps, stages)
        if base in seen or base.shared_memory(product.itemsize) > _SHARED_MEMORY:
            continue
        seen.add(base)
        tiles, steps = base.tiles(product), product.steps(depth)
        for split in _SPLITS:
            # Full waves need no split; and every split must have work.
            if split > 1 and (
                tiles * split > 2 * device.multiprocessors
                or math.ceil(steps / split) * (split - 1) >= steps
            ):
                continue
            for reduce in ("last", "kernel") if split > 1 else ("last",):
                yield Tiling(block_m, block_n, depth, warps, stages, split, reduce)


def best(product: Product, device: Device) -> list[Tiling]:
    """Of each tile the two cheapest ways to split K, by prediction; cheapest first. Predictions
    are rough, so that different tiles are a better list than many splits of one."""
    kept: list[Tiling] = []
    count: dict[tuple[int, ...], int] = {}
    for tiling in sorted(
        candidates(product, device), key=lambda tiling: predict(product, tiling, device)
    ):
        tile = (tiling.block_m, tiling.block_n, tiling.block_k, tiling.warps, tiling.stages)
        count[tile] = count.get(tile, 0) + 1
        if count[tile] <= 2:
            kept.append(tiling)
    return kept


def predict(product: Product, tiling: Tiling, device: Device) -> float:
    """Seconds: the waves of blocks at the slowest of tensor cores, L2 cache and latency, and no
    faster than device memory."""
    units = tiling.tiles(product) * tiling.split_k
    steps = math.ceil(product.steps(tiling.block_k) / tiling.split_k)
    processors = device.multiprocessors
    resident = max(
        1,
        min(
            _SHARED_MEMORY // tiling.shared_memory(product.itemsize),
            16 // tiling.warps,
            # Half of a multiprocessor's registers for accumulators.
            32768 // (tiling.block_m * tiling.block_n),
        ),
    )
    together = min(resident, max(1, math.ceil(units / processors)))
    # Small tiles feed the tensor cores badly.
    efficiency = 0.8 * min(1.0, math.sqrt(tiling.block_m * tiling.block_n / 16384))
    flops = 2 * tiling.block_m * tiling.block_n * tiling.block_k
    slower = {2: 1.0, 4: 2.0}[product.itemsize]
    compute = together * flops * slower * processors / (device.flops * efficiency)
    traffic = (
        together * (tiling.block_m + tiling.block_n) * tiling.block_k * product.itemsize / _L2_BYTES
    )
    step = max(compute, traffic, _LATENCY / (tiling.stages - 1))
    waves = math.ceil(units / (processors * together))
    seconds = waves * (_LATENCY + steps * step)
    if tiling.split_k > 1:
        partial = tiling.block_m * tiling.block_n * 4
        if tiling.reduce == "last":
            seconds += _SPLIT + partial * (tiling.split_k + 1) / (2 * _L2_BYTES)
        else:
            seconds += 1.5 * _SPLIT + 2 * partial * units / (_L2_BYTES * processors)
    return _LAUNCH + max(seconds, product.bytes / device.bandwidth)
