"""Tile configurations of the BF16 GEMM on Hopper: every candidate is priced by a model, the cheapest is taken.

The model is that of `sm90.py`, without the promotion of FP8's products. Its constants were fitted to some 1500 measured
(shape, configuration) pairs on an H200, for the choice that they lead to more than for the times: that is 2.4 % behind
the best of those measured, on average, and 0.8 % for the shapes of the `bf16` suite. An H100's memory is slower, which
changes little: where it is the limit all choices are alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.bf16_config import BLOCK_K, SLAB, Bf16GemmConfig
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

CLOCK_MHZ = 1665
STEP_CYCLES = 86  # of a stage, beside its products
THREE_GROUPS = 1.005  # their products take so much longer than those of one or two warpgroups
SM_BYTES_PER_US = 114e3  # into one processor
LATENCY_US = 0.71  # from a stage's request to its arrival
DRAM_BYTES_PER_US = 4.1e6
DRAM_US = 1.45  # until it runs at that rate
LAUNCH_US = 2.4
STORE_US = 0.59  # of a tile of 128 x 128
SWAP_US = 0.66  # more where it is stored transposed
SPLIT_US = 2.07  # the partial tiles' exchange ...
SPLIT_STORE_US = 1.86  # ... for a tile of 128 x 128
APART = 0.988  # of the time that the model says, where a warp of its own stores tiles that are staged whole
OVERLAP = 2.5  # of work and memory traffic: the exponent of their sum


@functools.lru_cache(maxsize=4096)
def bf16_gemm(layout: str, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> Bf16GemmConfig:
    """The configuration for D[m, n] of operands in `layout` on `num_sms` processors with `smem_bytes` a block."""
    return ranked(layout, m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(layout: str, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[Bf16GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    priced = []
    for c in candidates(layout, m, n, k, num_sms):
        if c.stages(out_bytes, smem_bytes) < least_stages(c):
            continue
        store = c.store(out_bytes, smem_bytes)
        apart = sm90.store_warp(c, store, m, n, num_sms)
        whole = store.buffers * store.atom_bytes == c.columns * out_bytes * c.waves
        if apart:  # beside a warp that stores it no longer pays
            c = dataclasses.replace(c, eager=False)
        us = estimate_us(c, m, n, k, out_bytes, num_sms, smem_bytes, apart=apart and whole)
        # Of equals, that with the longest stages: fewer barriers, longer runs of a row from memory.
        priced.append((us, -c.stage_blocks, c))
    return [c for *_, c in sorted(priced, key=lambda x: x[:2])]


def least_stages(c: Bf16GemmConfig) -> int:
    """Three long stages are enough for a narrow tile, whose products are soon done."""
    return 3 if c.stage_blocks == 1 or c.rows + c.columns <= 128 else 4


def candidates(layout: str, m: int, n: int, k: int, num_sms: int) -> Iterator[Bf16GemmConfig]:
    """The configurations worth pricing for a problem; never none.

    Left out is what was never faster on an H100: clusters that share operands, 256 rows (but for a token), tiles lower
    than the tokens, several blocks a stage beyond 128 tokens.
    """
    tokens = min((c for c in (8, 16, 32, 64, 128) if c >= m), default=0)
    if tokens:
        for rows in (64, 128, 256) if tokens == 8 else (64, 128):
            yield from _variants(layout, rows, tokens, True, m, n, k, num_sms)
    # What a slab has beyond the tile is loaded for nothing, and a tile that begins inside of one reads half lines.
    step = SLAB if layout[1] == "n" else 16
    # Narrow tiles of many rows load too much.
    narrowest = step if m <= 128 else min(ceil_div(96, step), ceil_div(n, step)) * step
    for rows in (64,) if m <= 64 else (128,) if m <= 128 else (128, 192):
        for columns in range(narrowest, Bf16GemmConfig.MOST_COLUMNS[rows] + 1, step):
            yield from _variants(layout, rows, columns, False, m, n, k, num_sms)


def _variants(
    layout: str, rows: int, columns: int, swap: bool, m: int, n: int, k: int, num_sms: int
) -> Iterator[Bf16GemmConfig]:
    blocks = ceil_div(k, BLOCK_K)
    tiles = ceil_div(n if swap else m, rows) * ceil_div(m if swap else n, columns)
    rows_loaded = 0
    if not swap and layout[0] == "n" and m < rows:
        rows_loaded = min(r for r in (8, 16, 32, 64, 128, 256) if r >= m)
    for split in range(1, 9):
        if split > 1 and (split > num_sms or blocks < 2 * split or tiles > resident_clusters(split, num_sms)):
            continue
        for stage_blocks in (1, 2, 4, 8) if m <= 128 else (1,):
            if stage_blocks <= ceil_div(blocks, split):
                yield Bf16GemmConfig(
                    rows,
                    columns,
                    swap=swap,
                    split_k=split,
                    stage_blocks=stage_blocks,
                    layout=layout,
                    rows_loaded=rows_loaded if rows_loaded < rows else 0,
                    # With large tiles 1-2 % faster. Slabs of B are not, nor is it known to be for few tokens.
                    eager=m > 128 and layout[1] == "t",
                )


def estimate_us(
    c: Bf16GemmConfig, m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int, *, apart: bool = False
) -> float:
    """The model's time in microseconds. `apart`: whole tiles are staged, and stored by a warp of its own."""
    tiles = ceil_div(n if c.swap else m, c.rows) * ceil_div(m if c.swap else n, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.split_k, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    steps = ceil_div(blocks, c.stage_blocks)

    slower = THREE_GROUPS if c.math_groups == 3 else 1
    tensor = (2 * c.columns * c.rows / 64 * slower * blocks + STEP_CYCLES * steps) / CLOCK_MHZ
    not_loaded = c.rows - (c.rows_loaded or c.rows)
    loaded = (c.block_bytes() - 2 * BLOCK_K * not_loaded) * blocks
    arrive = LATENCY_US * steps / (c.stages(out_bytes, smem_bytes) - 1)  # one stage is with the tensor cores
    multiply = (tensor**8 + (loaded / SM_BYTES_PER_US) ** 8 + arrive**8) ** 0.125
    area = c.rows * c.columns / (128 * 128)
    store = STORE_US * area * (not apart) + SWAP_US * c.swap
    if c.split_k > 1:
        store += SPLIT_US + SPLIT_STORE_US * area
    work = waves * (multiply + store)
    dram = DRAM_US + (2 * (m + n) * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**OVERLAP + dram**OVERLAP) ** (1 / OVERLAP) * (APART if apart else 1)
