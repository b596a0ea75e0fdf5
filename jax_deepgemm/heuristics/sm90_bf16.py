"""Tile configurations of the BF16 GEMM on Hopper: every candidate is priced by a model, the cheapest is taken.

The model is that of `sm90.py`, without the promotion of FP8's products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics.bf16_config import BLOCK_K, SLAB, Bf16GemmConfig
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

CLOCK_MHZ = 1600
STEP_CYCLES = 60  # of a stage, beside its products
SM_BYTES_PER_US = 75e3  # into one processor
L2_BYTES_PER_US = 55e3  # out of L2, a processor's share: what multicast saves
DRAM_BYTES_PER_US = 2.6e6
LAUNCH_US = 3.5
STORE_US = 1.2  # of a tile of 128 x 128
SPLIT_US = 4.0  # the partial tiles' exchange ...
SPLIT_STORE_US = 2.7  # ... for a tile of 128 x 128 ...
SPLIT_PEER_US = 0.07  # ... and for each CTA of the cluster


@functools.lru_cache(maxsize=4096)
def bf16_gemm(layout: str, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> Bf16GemmConfig:
    """The configuration for D[m, n] of operands in `layout` on `num_sms` processors with `smem_bytes` a block."""
    return ranked(layout, m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(layout: str, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[Bf16GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = (c for c in candidates(layout, m, n, k, num_sms) if c.stages(out_bytes, smem_bytes) >= 3)
    # Of equals, that with the longest stages: fewer barriers, longer runs of a row from memory.
    return sorted(fitting, key=lambda c: (estimate_us(c, m, n, k, out_bytes, num_sms), -c.stage_blocks))


def candidates(layout: str, m: int, n: int, k: int, num_sms: int) -> Iterator[Bf16GemmConfig]:
    """The configurations worth pricing for a problem; never none."""
    blocks = ceil_div(k, BLOCK_K)
    tokens = min((c for c in (8, 16, 32, 64, 128) if c >= m), default=0)
    step = SLAB if layout[1] == "n" else 16
    for rows in (64, 128, 256):
        if tokens:
            for columns in {tokens, tokens // 2} if tokens >= 64 else {tokens}:
                yield from _variants(layout, rows, columns, True, m, n, blocks, num_sms)
        if m > rows // 2 or rows == 64:
            for columns in range(step, Bf16GemmConfig.MOST_COLUMNS[rows] + 1, step):
                yield from _variants(layout, rows, columns, False, m, n, blocks, num_sms)


def _variants(
    layout: str, rows: int, columns: int, swap: bool, m: int, n: int, blocks: int, num_sms: int
) -> Iterator[Bf16GemmConfig]:
    row_tiles, column_tiles = ceil_div(n if swap else m, rows), ceil_div(m if swap else n, columns)
    tiles = row_tiles * column_tiles
    rows_loaded = 0
    if not swap and layout[0] == "n" and m < rows:
        rows_loaded = min(r for r in (8, 16, 32, 64, 128, 256) if r >= m) % rows
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
                    yield Bf16GemmConfig(
                        rows,
                        columns,
                        swap=swap,
                        split_k=split,
                        cluster_rows=cluster_rows,
                        cluster_columns=cluster_columns,
                        stage_blocks=stage_blocks,
                        layout=layout,
                        rows_loaded=0 if shared else rows_loaded,
                    )
                except ValueError:  # parts too small to share
                    continue


def estimate_us(c: Bf16GemmConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    rows, columns = ceil_div(n if c.swap else m, c.rows), ceil_div(m if c.swap else n, c.columns)
    clusters = ceil_div(rows, c.cluster_rows) * ceil_div(columns, c.cluster_columns)
    waves = ceil_div(clusters, resident_clusters(c.cluster, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    steps = ceil_div(blocks, c.stage_blocks)

    tensor = (2 * c.columns * c.rows / 64 * blocks + STEP_CYCLES * steps) / CLOCK_MHZ
    loaded_rows = (c.rows_loaded or c.rows) * 2 * BLOCK_K
    loaded_columns = c.block_bytes() - c.rows * 2 * BLOCK_K
    landed = (loaded_rows + loaded_columns) * blocks / SM_BYTES_PER_US
    fetched = (loaded_rows / c.cluster_columns + loaded_columns / c.cluster_rows) * blocks / L2_BYTES_PER_US
    multiply = (tensor**8 + landed**8 + fetched**8) ** 0.125
    area = c.rows * c.columns / (128 * 128)
    store = STORE_US * area
    if c.split_k > 1:
        store += SPLIT_US + SPLIT_STORE_US * area + SPLIT_PEER_US * c.split_k
    work = waves * (multiply + store)
    memory = (2 * (m + n) * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**4 + memory**4) ** 0.25
