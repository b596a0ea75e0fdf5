"""Tile configurations of the GEMM with FP4 weights on Hopper: every candidate is priced by a model.

The constants are rough, of some 400 measured (shape, configuration) pairs of an earlier form of the kernel: they rank.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90_fp4_swapped
from jax_deepgemm.heuristics.fp4_config import UE8M0_BY_32, Fp4GemmConfig, Scales
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

CLOCK_MHZ = 1700
DECODE_CYCLES = 8  # a row by 128 of K, shared by the warps of a warpgroup
FEED_CYCLES = 500  # between two stages
STEP_CYCLES = 243  # from a stage's arrival to its products, once a stage
PROMOTE_CYCLES = 2.4  # a column, of a warpgroup's 64 rows: each element has scales of its own
PROMOTE_LATE_CYCLES = 0.4  # where the weights' scales are left for the tile's end
PAIR_CYCLES = 1549  # a block of K where B's scales are left for the tile's end and fed by pairs ...
SHARED = 0.93  # ... of this where two CTAs share the decoding ...
PAIR_TILE_US = 1.2  # ... and from such a tile to the next, which is fed under its store
SHARED_GROUP = 4  # pairs of row tiles walked together
FEW_STAGES = 1.07  # with two decoded stages
DRAM_BYTES_PER_US = 2.3e6
LAUNCH_US = 3.5
TILE_US = 0.7  # from the last product of a tile to the first of the next ...
STORE_US = 2.2  # ... and what grows with it, for 128 x 128
SPLIT_US = 4.4  # the partial tiles' exchange ...
SPLIT_STORE_US = 2.7  # ... for a tile of 128 x 128


@functools.lru_cache(maxsize=4096)
def fp8_fp4_gemm(
    m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int, smem_bytes: int
) -> Fp4GemmConfig | Fp4SwappedConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, scales, out_bytes, num_sms, smem_bytes)[0]


def ranked(
    m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int, smem_bytes: int
) -> list[Fp4GemmConfig | Fp4SwappedConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = (c for c in candidates(m, n, k, scales, num_sms) if fits(c, scales, out_bytes, smem_bytes))
    return sorted(fitting, key=lambda c: estimate_us(c, m, n, k, scales, out_bytes, num_sms))


def fits(c: Fp4GemmConfig | Fp4SwappedConfig, scales: Scales, out_bytes: int, smem_bytes: int) -> bool:
    """Whether shared memory holds enough stages."""
    if isinstance(c, Fp4SwappedConfig):
        return c.layout(smem_bytes, scales).stages >= max(3, c.k_groups)
    return c.fp4_layout(out_bytes, smem_bytes, scales).packed_stages >= c.least_packed_stages


def candidates(m: int, n: int, k: int, scales: Scales, num_sms: int) -> Iterator[Fp4GemmConfig | Fp4SwappedConfig]:
    """The configurations worth pricing for a problem."""
    if m <= sm90_fp4_swapped.MAX_TOKENS:
        yield from sm90_fp4_swapped.candidates(m, n, k, num_sms)
    blocks = ceil_div(k, BLOCK_K)

    def splits(tiles: int) -> Iterator[int]:
        for split in range(1, min(8, num_sms, max(1, blocks // 2)) + 1):
            if split == 1 or tiles <= resident_clusters(split, num_sms):
                yield split

    for rows, columns in ((256, 128), (128, 128), (128, 64), (64, 128), (64, 64)):
        row_tiles, tiles = ceil_div(m, rows), ceil_div(m, rows) * ceil_div(n, columns)
        wasted = row_tiles % 2 == 1 and tiles <= num_sms  # the tile that a pair would have too many
        for split in splits(tiles):
            late = scales == UE8M0_BY_32 and split == 1
            config = Fp4GemmConfig(rows, columns, split_k=split, tile_scales=late)
            yield config
            if config.pairs and row_tiles > 1 and not wasted and num_sms > 1:
                yield dataclasses.replace(config, cluster_rows=2, group=SHARED_GROUP)


def estimate_us(
    c: Fp4GemmConfig | Fp4SwappedConfig, m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int
) -> float:
    """The model's time in microseconds."""
    if isinstance(c, Fp4SwappedConfig):
        return sm90_fp4_swapped.estimate_us(c, (m,), n, k, scales, out_bytes, num_sms)
    clusters = ceil_div(ceil_div(m, c.rows), c.cluster_rows) * ceil_div(n, c.columns)
    waves = ceil_div(clusters, resident_clusters(c.cluster, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    steps = ceil_div(blocks, c.stage_blocks)
    tensor = 2 * c.columns * c.rows / 64 * blocks
    promote = PROMOTE_LATE_CYCLES if c.tile_scales else PROMOTE_CYCLES
    math = c.waves * (2 + promote) * c.columns * blocks
    math += c.waves * STEP_CYCLES * steps
    decode = FEED_CYCLES * steps + DECODE_CYCLES * c.tile_n * blocks / c.feed_groups
    pair = PAIR_CYCLES * (SHARED if c.multicast > 1 else 1)
    cycles = pair * blocks if c.pairs else max(tensor, math, decode)
    multiply = cycles / CLOCK_MHZ * (FEW_STAGES if c.decoded_stages == 2 else 1)
    area = c.rows * c.columns / (128 * 128)
    store = TILE_US + STORE_US * area
    if c.split_k > 1:
        store += SPLIT_US + SPLIT_STORE_US * area
    weights = n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    memory = (weights + m * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    between = PAIR_TILE_US if c.pairs else store
    return LAUNCH_US + ((waves * multiply + (waves - 1) * between + store) ** 4 + memory**4) ** 0.25
