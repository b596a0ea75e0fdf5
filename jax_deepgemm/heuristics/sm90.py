"""Tile configurations of the GEMM kernels on Hopper: every candidate is priced by a model, the cheapest is taken.

The model is that of a persistent, latency- and bandwidth-bound kernel; its constants were fitted to the measured times
of some 5800 (shape, configuration) pairs on an H100, for the choice that they lead to more than for the times.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, ceil_div

# Clusters of a size that an H100 holds at once: its 132 processors come in groups of 16 and 18, some cut short.
RESIDENT_CLUSTERS = {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}

CLOCK_MHZ = 1700
STEP_CYCLES = 243  # from a stage's arrival to its products, and their promotion's latency: once a stage
PROMOTE_CYCLES = 0.4  # a column, of a warpgroup's 64 rows
PROMOTE_SWAPPED_CYCLES = 2.0  # more, since each column has a scale of its own
SM_BYTES_PER_US = 75e3  # into one processor
DRAM_BYTES_PER_US = 2.3e6
LAUNCH_US = 3.5
STORE_US = 2.2  # of a tile of 128 x 128
SPLIT_US = 4.4  # the partial tiles' exchange ...
SPLIT_STORE_US = 2.7  # ... for a tile of 128 x 128 ...
SPLIT_PEER_US = 0.07  # ... and for each CTA of the cluster
MULTICAST_US = 1.0  # for CTAs that wait for each other


@functools.lru_cache(maxsize=4096)
def fp8_gemm(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = (c for c in candidates(m, n, k, num_sms) if c.stages(out_bytes, smem_bytes) >= 3)
    # Of equals, that with the longest stages: fewer barriers, longer runs of a row from memory.
    return sorted(fitting, key=lambda c: (estimate_us(c, m, n, k, out_bytes, num_sms), -c.stage_blocks))


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[GemmConfig]:
    """The configurations worth pricing for a problem; never none."""
    blocks = ceil_div(k, BLOCK_K)
    tokens = min((c for c in (8, 16, 32, 64, 128) if c >= m), default=0)
    for rows in (64, 128, 256):
        if tokens and rows < 256:
            for columns in {tokens, tokens // 2} if tokens >= 64 else {tokens}:
                yield from _variants(rows, columns, True, m, n, blocks, num_sms)
        if m > rows // 2 or rows == 64:
            for columns in range(16, 193, 16):
                yield from _variants(rows, columns, False, m, n, blocks, num_sms)


def _variants(rows: int, columns: int, swap: bool, m: int, n: int, blocks: int, num_sms: int) -> Iterator[GemmConfig]:
    row_tiles, column_tiles = ceil_div(n if swap else m, rows), ceil_div(m if swap else n, columns)
    tiles = row_tiles * column_tiles
    for split in range(1, 9):
        if split > 1 and (split > num_sms or blocks < 2 * split or tiles > resident_clusters(split, num_sms)):
            continue
        for stage_blocks in (1, 2, 4):
            if stage_blocks > ceil_div(blocks, split):
                continue
            for cluster_rows, cluster_columns in ((1, 1), (2, 1), (1, 2)):
                shared = cluster_rows * cluster_columns > 1
                if shared and (split > 1 or num_sms < 2 or row_tiles < cluster_rows or column_tiles < cluster_columns):
                    continue
                try:
                    yield GemmConfig(
                        rows,
                        columns,
                        swap=swap,
                        split_k=split,
                        cluster_rows=cluster_rows,
                        cluster_columns=cluster_columns,
                        stage_blocks=stage_blocks,
                    )
                except ValueError:  # more registers than there are, or parts too small to share
                    continue


def estimate_us(c: GemmConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    rows, columns = ceil_div(n if c.swap else m, c.rows), ceil_div(m if c.swap else n, c.columns)
    clusters = ceil_div(rows, c.cluster_rows) * ceil_div(columns, c.cluster_columns)
    waves = ceil_div(clusters, resident_clusters(c.cluster, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    steps = blocks // c.stage_blocks + blocks % c.stage_blocks

    tensor = 2 * c.columns * c.rows / 64 * blocks
    promote = PROMOTE_CYCLES + PROMOTE_SWAPPED_CYCLES * c.swap
    warpgroup = c.waves * ((2 + promote) * c.columns * blocks + STEP_CYCLES * steps)
    landed = (c.rows + c.columns) * BLOCK_K * blocks
    multiply = ((max(tensor, warpgroup) / CLOCK_MHZ) ** 8 + (landed / SM_BYTES_PER_US) ** 8) ** 0.125
    area = c.rows * c.columns / (128 * 128)
    store = STORE_US * area
    if c.split_k > 1:
        store += SPLIT_US + SPLIT_STORE_US * area + SPLIT_PEER_US * c.split_k
    work = waves * (multiply + store) + MULTICAST_US * (c.multicast > 1)
    memory = ((m + n) * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**4 + memory**4) ** 0.25


def resident_clusters(size: int, num_sms: int) -> int:
    """How many clusters of `size` CTAs run at once; with fewer processors, their share."""
    return max(1, min(RESIDENT_CLUSTERS[size], num_sms // size))
