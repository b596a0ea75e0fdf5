"""Tile configurations of the Hopper GEMM of few tokens with FP4 weights: what could pay, and a model of its time."""

from __future__ import annotations

from collections.abc import Iterator

from jax_deepgemm.heuristics.fp4_config import Scales
from jax_deepgemm.heuristics.fp4_swapped_config import UNIT_BLOCKS, Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

MAX_TOKENS = 128  # beyond which weights had better be decoded once for many of them
COLUMNS = (8, 16, 32, 48, 64, 96, 128)

CLOCK_MHZ = 1700
LATENCY_CYCLES = 900  # from a unit's arrival to its sums, for a warpgroup alone ...
LATENCY_COLUMN_CYCLES = 9.5  # ... and for each column
ISSUE_CYCLES = 400  # by which units of 64 rows follow each other, whichever warpgroup takes them ...
ISSUE_COLUMN_CYCLES = 9.0
MANY_GROUPS = 1.08  # more where three or four warpgroups share the registers of wide tiles
SCALE_CYCLES = 930  # of a warp, for a unit's scales ...
SCALE_COLUMN_CYCLES = 6.0
L2_BYTES_PER_US = 5.5e6
DRAM_BYTES_PER_US = 2.5e6
LAUNCH_US = 3.5
TILE_US = 1.0  # the sums' way to memory
SPLIT_US = 1.5

# Rows, groups of K and warps of scales, of which some cost no registers: these are handed out to four warps at once.
SHAPES = ((64, 4, 3), (64, 3, 3), (64, 2, 3), (128, 2, 1), (128, 1, 2), (192, 1, 2), (192, 1, 1), (256, 1, 1))


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[Fp4SwappedConfig]:
    """The configurations worth pricing for a problem."""
    units = ceil_div(k, UNIT_BLOCKS * BLOCK_K)
    columns = next((c for c in COLUMNS if c >= m), 0)
    for rows, k_groups, scale_warps in SHAPES:
        for width in sorted({columns, min(columns, 64)} - {0}):
            for split in range(1, min(8, num_sms, units) + 1):
                if split > 1 and ceil_div(n, rows) * ceil_div(m, width) > resident_clusters(split, num_sms):
                    continue
                try:
                    yield Fp4SwappedConfig(rows, width, k_groups, split_k=split, scale_warps=scale_warps)
                except ValueError:  # more registers than there are
                    continue


def estimate_us(c: Fp4SwappedConfig, m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds."""
    tiles = ceil_div(n, c.rows) * ceil_div(m, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.split_k, num_sms))
    units = ceil_div(ceil_div(k, UNIT_BLOCKS * BLOCK_K), c.split_k)
    latency = (LATENCY_CYCLES + LATENCY_COLUMN_CYCLES * c.columns) * ceil_div(units, c.k_groups)
    crowded = MANY_GROUPS if c.k_groups > 2 and c.columns > 32 else 1
    issue = (ISSUE_CYCLES + ISSUE_COLUMN_CYCLES * c.columns) * units * c.rows / 64 * crowded
    scaling = (SCALE_CYCLES + SCALE_COLUMN_CYCLES * c.columns) * ceil_div(units, c.scale_warps)
    work = waves * (max(latency, issue, scaling) / CLOCK_MHZ + TILE_US + SPLIT_US * (c.split_k > 1))
    weights = n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    landed = weights * ceil_div(m, c.columns) + tiles * c.columns * k
    memory = (weights + m * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**4 + max(memory, landed / L2_BYTES_PER_US) ** 4) ** 0.25
