"""Tile configurations of the m-grouped GEMM kernels on Hopper, by the dense kernels' models.

Groups of r rows, each with weights of N rows, cost what a dense product of r rows with all the weights does. How many
rows each has is known to the device alone, so a candidate is priced for a few numbers of rows about the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.gemm_config import GemmConfig, ceil_div

SPREAD = (0.7, 0.85, 1.0, 1.15, 1.3)  # of the mean
STEP = 8  # columns of wgmma


@functools.lru_cache(maxsize=4096)
def fp8_gemm(rows: int, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig:
    """The configuration for `groups` groups of about `rows` rows."""
    return ranked(rows, groups, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(rows: int, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = [c for c in candidates(rows, groups, n, k, num_sms) if c.stages(out_bytes, smem_bytes) >= 3]

    def price(c: GemmConfig) -> float:
        width = groups * ceil_div(n, c.tile_n) * c.tile_n
        return sum(sm90.estimate_us(c, m, width, k, out_bytes, num_sms) for m in about(rows))

    return sorted(fitting, key=lambda c: (price(c), -c.stage_blocks))


def about(rows: int) -> list[int]:
    return [max(1, round(rows * share)) for share in SPREAD]


def candidates(rows: int, groups: int, n: int, k: int, num_sms: int) -> Iterator[GemmConfig]:
    """Those of the dense kernels that need no clusters of several tiles, and swapped ones as wide as a group is."""
    found: dict[GemmConfig, None] = {}
    for m in about(rows):
        found |= dict.fromkeys(sm90.candidates(m, groups * n, k, num_sms))
    if rows <= 128:
        for columns in {min(128, ceil_div(m, STEP) * STEP) for m in about(rows)}:
            for height in (64, 128):
                found |= dict.fromkeys(
                    sm90._variants(height, columns, True, rows, groups * n, ceil_div(k, 128), num_sms)
                )
    yield from (c for c in found if c.multicast == 1)
