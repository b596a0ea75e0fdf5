"""The choice for scales by blocks on Hopper: where K is short, a panel of B may stay in shared memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, ceil_div
from jax_deepgemm.heuristics.resident_config import TILE_ROWS, ResidentConfig, grid_size

LEAST_M = 1024  # from which it was measured to pay: at 512 it is 5 % behind, at 1024 3 % ahead, at 4096 13 %
LEAST_N = 2048

# Fitted to N = 32768, K = 512 and M = 256 to 4096 on an H100, within 4 %; the launch to M = 1024 and 4096 on an H200.
# What shorter K takes is a guess.
LAUNCH_US = 1.0
PANEL_US = 1.6  # a block of K of a panel of 256 columns, while all other CTAs load theirs
BORDER_US = 0.22  # a tile of 64 x 256 ...
BLOCK_US = 0.36  # ... and each of its blocks of K
BYTES_PER_US = 3.0e6  # of D: B is in the panels' time


@functools.lru_cache(maxsize=4096)
def fp8_gemm(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig | ResidentConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig | ResidentConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    others: list[GemmConfig | ResidentConfig] = list(sm90.ranked(m, n, k, out_bytes, num_sms, smem_bytes))
    staying = [c for c in candidates(m, n, k, out_bytes) if c.stages(out_bytes, smem_bytes) >= 2]

    def price(c: GemmConfig | ResidentConfig) -> float:
        estimate = estimate_us if isinstance(c, ResidentConfig) else sm90.estimate_us
        return estimate(c, m, n, k, out_bytes, num_sms)  # type: ignore[arg-type]

    return sorted(staying + others, key=price) if staying else others


def candidates(m: int, n: int, k: int, out_bytes: int) -> Iterator[ResidentConfig]:
    """The configurations worth pricing for a problem; results in FP32 were not measured."""
    if k <= ResidentConfig.MAX_K and m >= LEAST_M and n >= LEAST_N and out_bytes == 2:
        yield ResidentConfig(256)


def estimate_us(c: ResidentConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    rows, blocks = ceil_div(m, TILE_ROWS), ceil_div(k, BLOCK_K)
    share = ceil_div(rows * ceil_div(n, c.columns), grid_size(c, m, n, num_sms))
    work = share * (BORDER_US + BLOCK_US * blocks) * c.columns / 256
    memory = m * n * out_bytes / BYTES_PER_US
    panels = ceil_div(share, rows) * blocks * PANEL_US * c.columns / 256
    return LAUNCH_US + panels + (work**8 + memory**8) ** 0.125
