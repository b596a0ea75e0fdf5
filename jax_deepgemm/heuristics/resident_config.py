"""A configuration of the Hopper FP8 GEMM of short K that keeps a panel of B in shared memory."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, SCALE_BLOCK, STORE_BARRIERS, Store, align, ceil_div

TILE_ROWS = 64  # of A, that a warpgroup multiplies by SCALE_BLOCK columns
MAX_BLOCKS = 4  # of K
MAX_STAGES = 32


@dataclasses.dataclass(frozen=True)
class ResidentConfig:
    """`columns` of B, with all of K, stay in shared memory while the CTA walks down M.

    There is a warpgroup for each 128 of them, and tiles have 64 rows.
    """

    columns: int = 2 * SCALE_BLOCK

    MAX_K: ClassVar[int] = MAX_BLOCKS * BLOCK_K

    def __post_init__(self) -> None:
        if self.columns not in (SCALE_BLOCK, 2 * SCALE_BLOCK):
            raise ValueError(f"`columns` must be {SCALE_BLOCK} or {2 * SCALE_BLOCK}, got {self.columns}")

    @property
    def math_groups(self) -> int:
        return self.columns // SCALE_BLOCK

    def stages(self, out_bytes: int, smem_bytes: int, blocks: int = MAX_BLOCKS) -> int:
        """Blocks of K of a tile of rows in the ring, if all of K is so many: whole tiles."""
        return self._layout(out_bytes, smem_bytes, blocks)[0]

    def store(self, out_bytes: int, smem_bytes: int, blocks: int = MAX_BLOCKS) -> Store:
        """How a warp stages its rows."""
        return self._layout(out_bytes, smem_bytes, blocks)[1]

    def shared_memory(self, out_bytes: int, smem_bytes: int, blocks: int = MAX_BLOCKS) -> int:
        return self._total(*self._layout(out_bytes, smem_bytes, blocks), blocks)

    def _layout(self, out_bytes: int, smem_bytes: int, blocks: int) -> tuple[int, Store]:
        """Staging of a whole tile, or else of half of one, if that leaves room for two tiles; the most stages."""
        boxes = SCALE_BLOCK * out_bytes // 128
        found = 0, Store(128, boxes)
        for store in (Store(128, boxes), Store(128, boxes // 2)):
            stages = next((s for s in self._lengths(blocks) if self._total(s, store, blocks) <= smem_bytes), 0)
            if stages > found[0]:
                found = stages, store
            if stages >= 2 * blocks:
                break
        return found

    def _lengths(self, blocks: int) -> range:
        """Of the ring, the longest first."""
        return range(MAX_STAGES // blocks * blocks, 0, -blocks)

    def _total(self, stages: int, store: Store, blocks: int) -> int:
        tiles = (blocks * self.columns + stages * TILE_ROWS) * BLOCK_K
        staging = self.math_groups * 4 * store.buffers * 16 * store.atom_bytes
        scales = align(blocks * (TILE_ROWS + self.math_groups) * 4, 16) + 8
        barriers = 8 * (2 * (stages + blocks) + STORE_BARRIERS * self.math_groups)
        return tiles + staging + stages // blocks * scales + barriers


def grid_size(config: ResidentConfig, m: int, n: int, num_sms: int) -> int:
    """CTAs, each with an equal share of the tiles: the fewest that need no more turns than `num_sms` would.

    A share that ends where a panel does saves loading another, for which a tile more is taken.
    """
    rows, tiles = ceil_div(m, TILE_ROWS), ceil_div(m, TILE_ROWS) * ceil_div(n, config.columns)
    share = ceil_div(tiles, num_sms)
    parts = max(1, rows // share)  # of a panel
    whole = ceil_div(rows, parts) if share <= rows else ceil_div(share, rows) * rows
    if rows % whole == 0 or whole % rows == 0:
        share = whole if whole <= share + max(1, share // 16) and tiles <= whole * num_sms else share
    return ceil_div(tiles, share)
