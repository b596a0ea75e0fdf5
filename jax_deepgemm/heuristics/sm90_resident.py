"""The choice for scales by blocks on Hopper: where K is short, a panel of B may stay in shared memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, ceil_div
from jax_deepgemm.heuristics.resident_config import TILE_ROWS, ResidentConfig, grid_size

LEAST_M = 512  # from which it was measured to pay

LAUNCH_US = 4.0
TILE_US = 0.15  # of 64 rows, for a set of warpgroups ...
BLOCK_US = 0.16  # ... and for each block of K by 128 columns
PANEL_US = 1.5  # a panel of 128 columns, all of K
BYTES_PER_US = 2.6e6


@functools.lru_cache(maxsize=4096)
def fp8_gemm(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig | ResidentConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig | ResidentConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    others: list[GemmConfig | ResidentConfig] = list(sm90.ranked(m, n, k, out_bytes, num_sms, smem_bytes))
    staying = [c for c in candidates(m, n, k) if c.stages(out_bytes, smem_bytes) >= 2]

    def price(c: GemmConfig | ResidentConfig) -> float:
        estimate = estimate_us if isinstance(c, ResidentConfig) else sm90.estimate_us
        return estimate(c, m, n, k, out_bytes, num_sms)  # type: ignore[arg-type]

    return sorted(staying + others, key=price) if staying else others


def candidates(m: int, n: int, k: int) -> Iterator[ResidentConfig]:
    """The configurations worth pricing for a problem."""
    if k <= ResidentConfig.MAX_K and m >= LEAST_M and n >= 128:
        yield ResidentConfig(128, row_groups=2)
        if n >= 256:
            yield ResidentConfig(256)


def estimate_us(c: ResidentConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    rows, blocks = ceil_div(m, TILE_ROWS), ceil_div(k, BLOCK_K)
    share = ceil_div(rows * ceil_div(n, c.columns), grid_size(c, m, n, num_sms))
    tile = (TILE_US + BLOCK_US * blocks) * c.column_groups
    work = share * tile + ceil_div(share, rows) * PANEL_US * c.column_groups * blocks / 4
    memory = ((m + n) * k + m * n * out_bytes) / BYTES_PER_US
    return LAUNCH_US + (work**4 + memory**4) ** 0.25
