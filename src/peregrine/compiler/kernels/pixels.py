"""Which pixels of an output a program computes."""

# mypy: ignore-errors
# Triton reads this code as a language of its own, with Python's syntax and other types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pixels(N, OH, OW, BLOCK_M: tl.constexpr, TILE_W: tl.constexpr):
    """Image, row and column of the BLOCK_M pixels of this program along grid axis 0, and whether
    there is such a pixel: (BLOCK_M,) int32, int32, int32, int1.

    With TILE_W 0 the pixels are counted through all images, so that small images fill a program.
    Otherwise they are a tile of TILE_W columns and BLOCK_M / TILE_W rows of one image, whose
    windows share most of what they read. `pixel_programs` says how long the axis is.
    """
    lane = tl.arange(0, BLOCK_M)
    tile = tl.program_id(0)
    if TILE_W == 0:
        p = tile * BLOCK_M + lane
        n = p // (OH * OW)
        oh = p % (OH * OW) // OW
        ow = p % OW
        inside = n < N
    else:
        TILE_H: tl.constexpr = BLOCK_M // TILE_W
        across = tl.cdiv(OW, TILE_W)
        down = tl.cdiv(OH, TILE_H)
        n = tile // (across * down) + tl.zeros([BLOCK_M], dtype=tl.int32)
        oh = tile // across % down * TILE_H + lane // TILE_W
        ow = tile % across * TILE_W + lane % TILE_W
        inside = (oh < OH) & (ow < OW)
    return n, oh, ow, inside


def pixel_programs(n: int, oh: int, ow: int, block_m: int, tile_w: int) -> int:
    """How many programs `pixels` needs."""
    if tile_w == 0:
        return triton.cdiv(n * oh * ow, block_m)
    return n * triton.cdiv(oh, block_m // tile_w) * triton.cdiv(ow, tile_w)
