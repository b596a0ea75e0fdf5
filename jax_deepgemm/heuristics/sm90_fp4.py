"""Tile configurations of the GEMM with FP4 weights on Hopper: every candidate is priced by a model.

As in `sm90`, whose constants hold here too, but for what decoding adds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics.fp4_config import UE8M0_BY_32, Fp4GemmConfig, Scales
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

CLOCK_MHZ = 1700
LAUNCH_US = 3.5
DRAM_BYTES_PER_US = 2.3e6
STEP_CYCLES = 400  # from a stage's arrival to its products, once a stage
DECODE_CYCLES = 3.0  # a row by 128 of K, of a warp on each scheduler
PROMOTE_CYCLES = 2.4  # a column, of a warpgroup's 64 rows, each element with a scale of its own
PROMOTE_LATE_CYCLES = 0.4  # where the weights' scales are left for the tile's end
STORE_US = 2.2  # of a tile of 128 x 128
SPLIT_US = 4.4  # the partial tiles' exchange


@functools.lru_cache(maxsize=4096)
def fp8_fp4_gemm(
    m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int, smem_bytes: int
) -> Fp4GemmConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, scales, out_bytes, num_sms, smem_bytes)[0]


def ranked(
    m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int, smem_bytes: int
) -> list[Fp4GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = [
        c
        for c in candidates(m, n, k, scales, num_sms)
        if c.fp4_layout(out_bytes, smem_bytes, scales).packed_stages >= 2
    ]
    return sorted(fitting, key=lambda c: estimate_us(c, m, n, k, scales, out_bytes, num_sms))


def candidates(m: int, n: int, k: int, scales: Scales, num_sms: int) -> Iterator[Fp4GemmConfig]:
    """The configurations worth pricing for a problem."""
    late = scales is UE8M0_BY_32
    blocks = ceil_div(k, BLOCK_K)
    tokens = next((c for c in (8, 16, 32, 64) if c >= m), 0)
    for rows, stage_blocks in ((64, 4), (64, 2), (128, 2)):
        for split in range(1, 9):
            tiles = ceil_div(n, rows)
            if (
                not tokens
                or split > 1
                and (split > num_sms or blocks < 2 * split or tiles > resident_clusters(split, num_sms))
            ):
                continue
            for stages in (3, 2):
                yield Fp4GemmConfig(
                    rows,
                    tokens,
                    swap=True,
                    split_k=split,
                    stage_blocks=stage_blocks,
                    decoded_stages=stages,
                    feed_groups=2,
                )
    for rows, columns in ((256, 128), (128, 128), (128, 64), (64, 128), (64, 64)):
        yield Fp4GemmConfig(rows, columns, tile_scales=late)


def estimate_us(c: Fp4GemmConfig, m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    tiles = ceil_div(n if c.swap else m, c.rows) * ceil_div(m if c.swap else n, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.cluster, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    tensor = 2 * c.columns * c.rows / 64 * blocks
    promote = PROMOTE_LATE_CYCLES if c.tile_scales else PROMOTE_CYCLES
    math = c.waves * ((2 + promote) * c.columns * blocks + STEP_CYCLES * ceil_div(blocks, c.stage_blocks))
    decode = DECODE_CYCLES * c.tile_n * blocks * (1 if c.feed_groups == 2 else 1.5)
    area = c.rows * c.columns / (128 * 128)
    store = STORE_US * area + (SPLIT_US + 2.7 * area if c.split_k > 1 else 0)
    work = waves * (max(tensor, math, decode) / CLOCK_MHZ + store)
    weights = n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    memory = (weights + m * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**4 + memory**4) ** 0.25
