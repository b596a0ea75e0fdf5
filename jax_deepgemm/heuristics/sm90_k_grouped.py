"""Tile configurations of the k-grouped GEMMs on Hopper, by the models of the dense ones.

To those a product with groups is one whose M is that of all groups, in whole tiles, and whose K is the groups' mean.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90_1d1d, sm90_bf16
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, ceil_div
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config

_LEAST_STAGES = 3
TWO_WAVES_SAVE_US = 2.0  # of a tile's border
ONE_WAVE = 1.06  # what the walk, which takes registers, costs the others
ADDED_BYTES_PER_US = 0.97e6  # by the L2 cache


@functools.lru_cache(maxsize=4096)
def bf16_gemm(
    groups: int, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> tuple[KGroupedBf16Config, ...]:
    """The candidates for D[groups, m, n], the cheapest first; never none. smem_bytes: without the groups' table."""

    def price(c: KGroupedBf16Config) -> float:
        rows, mean = groups * ceil_div(m, c.rows) * c.rows, max(1, k // groups)
        return sm90_bf16.estimate_us(c, rows, n, mean, out_bytes, num_sms, smem_bytes)

    fitting = (c for c in _bf16_candidates(m, n) if c.stages(out_bytes, smem_bytes) >= _LEAST_STAGES)
    return tuple(sorted(fitting, key=price))


@functools.lru_cache(maxsize=4096)
def fp8_gemm(
    groups: int, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> tuple[GemmConfig1d1d, ...]:
    """The same of FP8; k: with the groups padded to whole blocks."""

    def price(c: GemmConfig1d1d) -> float:
        # Half a block of each group is padding.
        rows, mean = groups * ceil_div(m, c.rows) * c.rows, max(BLOCK_K, k // groups - BLOCK_K // 2)
        us = sm90_1d1d.estimate_us(c, rows, n, mean, out_bytes, num_sms)
        if c.waves == 1:
            return us * ONE_WAVE
        # In two waves C does not come through the ring: the L2 cache adds it, at a rate of its own.
        tiles = rows // c.rows * ceil_div(n, c.columns)
        return max(us - TWO_WAVES_SAVE_US * ceil_div(tiles, num_sms), groups * m * n * out_bytes / ADDED_BYTES_PER_US)

    fitting = (c for c in _fp8_candidates(m, n, num_sms) if c.stages(out_bytes, smem_bytes) >= _LEAST_STAGES)
    return tuple(sorted(fitting, key=price))


def _fp8_candidates(m: int, n: int, num_sms: int) -> Iterator[GemmConfig1d1d]:
    """Those of the dense GEMM but runs of 128 columns, which spill, since the walk takes registers, and 192 rows, which
    pay where all tiles are one wave."""
    for c in sm90_1d1d.candidates(m, n, BLOCK_K, num_sms):  # a single block, which nobody would split
        if (c.columns < 128 or c.ahead < 2) and c.rows != 192:
            yield c


def _bf16_candidates(m: int, n: int) -> Iterator[KGroupedBf16Config]:
    """Slabs have 64 columns: what one has beyond the tile would be wasted."""
    for rows in (64, 128, 192):
        if rows > 64 and m <= rows - 64:
            continue
        for columns in range(64, KGroupedBf16Config.MOST_COLUMNS[rows] + 1, 64):
            if columns == 64 or n > columns - 64:
                yield KGroupedBf16Config(rows, columns)
