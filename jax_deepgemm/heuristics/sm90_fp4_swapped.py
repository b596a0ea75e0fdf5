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
UNIT_CYCLES = 1100  # from a unit's arrival to its sums, for a warpgroup alone ...
UNIT_COLUMN_CYCLES = 6.0  # ... and for each column
ISSUE_CYCLES = 340  # what a warp's instructions for a unit take of its scheduler ...
ISSUE_COLUMN_CYCLES = 3.0
SM_BYTES_PER_US = 75e3  # into one processor
DRAM_BYTES_PER_US = 2.5e6
LAUNCH_US = 3.5
TILE_US = 1.0  # the sums' way to memory
SPLIT_US = 3.0


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[Fp4SwappedConfig]:
    """The configurations worth pricing for a problem."""
    units = ceil_div(k, UNIT_BLOCKS * BLOCK_K)
    columns = next((c for c in COLUMNS if c >= m), 0)
    for rows, k_groups in ((64, 4), (64, 3), (64, 2), (128, 2), (128, 1), (192, 1), (256, 1)):
        for width in {columns, min(columns, 64)} - {0}:
            for split in range(1, min(8, num_sms, units) + 1):
                if split > 1 and ceil_div(n, rows) * ceil_div(m, width) > resident_clusters(split, num_sms):
                    continue
                try:
                    yield Fp4SwappedConfig(rows, width, k_groups, split_k=split)
                except ValueError:  # more registers than there are
                    continue


def estimate_us(
    c: Fp4SwappedConfig, m: int, n: int, k: int, scales: Scales, out_bytes: int, num_sms: int
) -> float:
    """The model's time in microseconds."""
    tiles = ceil_div(n, c.rows) * ceil_div(m, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.split_k, num_sms))
    units = ceil_div(ceil_div(k, UNIT_BLOCKS * BLOCK_K), c.split_k)
    latency = (UNIT_CYCLES + UNIT_COLUMN_CYCLES * c.columns) * ceil_div(units, c.k_groups)
    issue = (ISSUE_CYCLES + ISSUE_COLUMN_CYCLES * c.columns) * units * c.rows / 64
    landed = (c.rows * BLOCK_K + UNIT_BLOCKS * c.columns * BLOCK_K) * units / SM_BYTES_PER_US
    work = waves * (max(latency / CLOCK_MHZ, issue / CLOCK_MHZ, landed) + TILE_US + SPLIT_US * (c.split_k > 1))
    weights = n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    memory = (weights + m * k + m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**4 + memory**4) ** 0.25
