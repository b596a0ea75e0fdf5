"""Tile configurations of the GEMM kernels on Hopper: every candidate is priced by a model, the cheapest is taken.

The model is that of a persistent, latency- and bandwidth-bound kernel; its constants were fitted to the measured times
of some 5800 (shape, configuration) pairs on an H100, for the choice that they lead to more than for the times; what a
split of K and runs of 64 rows take, to 2300 on an H200. Large tiles of many rows have a model of their own, of what a
block of K and a tile's border take: fitted to 320 such pairs on an H200.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, Store, ceil_div

# Clusters of a size that an H100 holds at once: its 132 processors come in groups of 16 and 18, some cut short.
RESIDENT_CLUSTERS = {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}

CLOCK_MHZ = 1700
STEP_CYCLES = 243  # from a stage's arrival to its products, and their promotion's latency: once a stage
STEP_AHEAD_CYCLES = 190  # the same in runs of blocks
PROMOTE_CYCLES = 0.4  # a column, of a warpgroup's 64 rows
PROMOTE_SWAPPED_CYCLES = 2.0  # more, since each column has a scale of its own
SM_BYTES_PER_US = 75e3  # into one processor
DRAM_BYTES_PER_US = 2.3e6
LAUNCH_US = 3.5
STORE_US = 2.2  # of a tile of 128 x 128
SPLIT_US = 3.5  # the partial tiles' exchange ...
SPLIT_SWAPPED_US = 0.7  # ... more with swapped operands ...
SPLIT_STORE_US = 2.7  # ... for a tile of 128 x 128 ...
SPLIT_PEER_US = 0.12  # ... and for each CTA of the cluster
MULTICAST_US = 1.0  # for CTAs that wait for each other
RUN_BLOCKS = 32  # from which on runs of tiles of 64 x 128 were timed
RUNS_OF_64 = 0.88  # what tiles of 64 x 128 in runs take of the model's time: loads have fewer gaps

# Row tiles, and blocks of K, that keep step well enough to read weights from the L2 cache before they leave it.
MOST_TOGETHER, MOST_BLOCKS_TOGETHER = 4, 128
HANDED_OVER_ROWS = 256  # from which on tiles may be handed over to a warp that stores
ALIKE = 1.013  # prices closer than this say nothing where weights are streamed
LARGE_M, LARGE_ROWS, LARGE_COLUMNS = 256, 128, 96  # beyond which, and from which, tiles are large
LARGE_BLOCK_US = {
    (128, 0): (0.075, 0.00248),
    (128, 2): (0.129, 0.0021),
    (192, 0): (0.192, 0.00262),
    (256, 0): (0.2955, 0.00334),
}
"""A block of K, in microseconds, by rows and blocks in a run: for any tile, and for each column."""
LARGE_BORDER_US = 0.46  # from the last product of a tile of 128 x 128 to the first of the next, BF16 out ...
NARROW = {128: 1.0, 64: 1.67, 32: 3.3}  # ... times this, by the bytes of columns in a box of the store
LARGE_LAUNCH_US = 3.0
LARGE_BYTES_PER_US = 3.63e6
RUN_COLUMNS = (96, 112, 128, 144)  # of tiles that are worth running ahead in
SHARED_M, SHARED_BLOCKS = 2048, 96  # from which on tiles of 256 x 128 may share A in pairs: less is read from L2 ...
SHARED = 0.985  # ... and a block takes so much less: power, so the clock, is the limit there


@functools.lru_cache(maxsize=4096)
def fp8_gemm(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = (c for c in candidates(m, n, k, num_sms) if c.stages(out_bytes, smem_bytes) >= 3)
    priced = {c: estimate_us(c, m, n, k, out_bytes, num_sms) for c in fitting}
    equal = min(priced.values()) * (ALIKE if m <= LARGE_M else 1)
    # Of equals, those with the longest stages: fewer barriers, longer runs of a row from memory. And with tokens along
    # the rows, whose results leave by TMA.
    return sorted(priced, key=lambda c: (max(priced[c], equal), -c.stage_blocks, c.swap, priced[c]))


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[GemmConfig]:
    """The configurations worth pricing for a problem; never none."""
    blocks = ceil_div(k, BLOCK_K)
    tokens = min((c for c in (8, 16, 32, 64, 128) if c >= m), default=0)
    for rows in (64, 128, 192, 256):
        if tokens and rows <= 128:
            for columns in {tokens, tokens // 2} if tokens >= 64 else {tokens}:
                yield from variants(rows, columns, True, m, n, blocks, num_sms)
        if m > rows // 2 or rows == 64:
            for columns in range(16, 193, 16):
                if rows != 192 or _is_large(rows, columns, m):
                    yield from variants(rows, columns, False, m, n, blocks, num_sms)
                if rows == 128 and columns in RUN_COLUMNS and blocks > 1:
                    yield GemmConfig(rows, columns, ahead=2)
    if 128 < m <= LARGE_M and blocks >= RUN_BLOCKS:
        yield GemmConfig(64, 128, ahead=2)
    if m >= SHARED_M and blocks >= SHARED_BLOCKS and num_sms > 1:
        yield GemmConfig(256, 128, cluster_columns=2)


def variants(rows: int, columns: int, swap: bool, m: int, n: int, blocks: int, num_sms: int) -> Iterator[GemmConfig]:
    row_tiles, column_tiles = ceil_div(n if swap else m, rows), ceil_div(m if swap else n, columns)
    tiles = row_tiles * column_tiles
    large = _is_large(rows, columns, m) and not swap
    for split in range(1, 9):
        if split > 1 and (split > num_sms or blocks < 2 * split or tiles > resident_clusters(split, num_sms)):
            continue
        for stage_blocks in (1, 2, 4):
            if stage_blocks > (1 if large else ceil_div(blocks, split)):
                continue
            for cluster_rows, cluster_columns in ((1, 1), (2, 1), (1, 2)):
                shared = cluster_rows * cluster_columns > 1
                too_few = num_sms < 2 or row_tiles < cluster_rows or column_tiles < cluster_columns
                if shared and (large or split > 1 or too_few):
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
    if _is_large(c.rows, c.columns, m) and c.stores_by_tma:
        return _large_us(c, m, n, k, out_bytes, num_sms)
    rows, columns = ceil_div(n if c.swap else m, c.rows), ceil_div(m if c.swap else n, c.columns)
    clusters = ceil_div(rows, c.cluster_rows) * ceil_div(columns, c.cluster_columns)
    waves = ceil_div(clusters, resident_clusters(c.cluster, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    steps = blocks // c.stage_blocks + blocks % c.stage_blocks

    tensor = 2 * c.columns * c.rows / 64 * blocks
    promote = PROMOTE_CYCLES + PROMOTE_SWAPPED_CYCLES * c.swap
    step = STEP_AHEAD_CYCLES if c.ahead else STEP_CYCLES
    warpgroup = c.waves * ((2 + promote) * c.columns * blocks + step * steps)
    landed = (c.rows + c.columns) * BLOCK_K * blocks
    multiply = ((max(tensor, warpgroup) / CLOCK_MHZ) ** 8 + (landed / SM_BYTES_PER_US) ** 8) ** 0.125
    area = c.rows * c.columns / (128 * 128)
    store = STORE_US * area
    if c.split_k > 1:
        store += SPLIT_US + SPLIT_SWAPPED_US * c.swap + SPLIT_STORE_US * area + SPLIT_PEER_US * c.split_k
    work = waves * (multiply + store) + MULTICAST_US * (c.multicast > 1)
    memory = ((m + n) * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    us = LAUNCH_US + (work**4 + memory**4) ** 0.25
    return us * RUNS_OF_64 if c.ahead and c.rows == 64 else us


def whole_rings(c: GemmConfig, m: int) -> bool:
    """Whether the math warps have whole rings of stages in straight code, for `m` rows in all.

    Less is left then between one product and the next. But code is cold at launch and comes from DRAM: only many rows
    make up for more of it.
    """
    return _is_large(c.rows, c.columns, m) and c.stores_by_tma and not c.ahead and c.stage_blocks == 1


def store_warp(
    c: GemmConfig, store: Store, m: int, n: int, num_sms: int, *, groups: int = 1, least_rows: int = HANDED_OVER_ROWS
) -> bool:
    """Whether a warp of its own stores the tiles of `groups` results [m, n], so that the math warps need not wait.

    A CTA's only tile would come later by it. One warp takes longer than all: too long for narrow boxes, and for the
    rows that it must store one by one, which are many where groups have fewer than `least_rows`.
    """
    tiles = groups * ceil_div(m, c.tile_m) * ceil_div(n, c.tile_n)
    wide = store.atom_bytes == 128 and store.buffers > 0
    return c.stores_by_tma and wide and m >= least_rows and tiles > num_sms


def read_at_once(c: GemmConfig, m: int, n: int, blocks: int, num_sms: int) -> bool:
    """Whether weights leave the L2 cache first: each is read once, or by a few tiles that all run at the same time.

    They push out each other then instead of what else is there. Where tiles take turns, or drift apart over many blocks
    of K, they would be gone before the next row of tiles has read them.
    """
    row_tiles = ceil_div(m, c.tile_m)
    running = c.cluster == 1 and row_tiles * ceil_div(n, c.tile_n) <= num_sms
    together = running and row_tiles <= MOST_TOGETHER and blocks <= MOST_BLOCKS_TOGETHER
    return row_tiles == 1 or together


def _is_large(rows: int, columns: int, m: int) -> bool:
    return m > LARGE_M and rows >= LARGE_ROWS and columns >= LARGE_COLUMNS


def _large_us(c: GemmConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    clusters = ceil_div(m, c.rows) * ceil_div(ceil_div(n, c.columns), c.cluster)
    once, column = LARGE_BLOCK_US[c.rows, 2 if c.ahead else 0]
    block = (once + column * c.columns) * (SHARED if c.multicast > 1 else 1)
    border = LARGE_BORDER_US * c.rows * c.columns / (128 * 128) * out_bytes / 2
    border *= NARROW[math.gcd(c.columns * out_bytes, 128)]
    work = ceil_div(clusters, resident_clusters(c.cluster, num_sms)) * (ceil_div(k, BLOCK_K) * block + border)
    memory = ((m + n) * k + m * n * out_bytes) / LARGE_BYTES_PER_US
    return LARGE_LAUNCH_US + (work**4 + memory**4) ** 0.25


def resident_clusters(size: int, num_sms: int) -> int:
    """How many clusters of `size` CTAs run at once; with fewer processors, their share."""
    return max(1, min(RESIDENT_CLUSTERS[size], num_sms // size))
