"""Tile configurations of the k-grouped GEMMs on Hopper, by the models of the dense ones.

To those a product with groups is one whose M is that of all groups, in whole tiles, and whose K is the groups' mean.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90_bf16
from jax_deepgemm.heuristics.gemm_config import ceil_div
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config

_LEAST_STAGES = 3


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


def _bf16_candidates(m: int, n: int) -> Iterator[KGroupedBf16Config]:
    """Slabs have 64 columns: what one has beyond the tile would be wasted."""
    for rows in (64, 128, 192):
        if rows > 64 and m <= rows - 64:
            continue
        for columns in range(64, KGroupedBf16Config.MOST_COLUMNS[rows] + 1, 64):
            if columns == 64 or n > columns - 64:
                yield KGroupedBf16Config(rows, columns)
