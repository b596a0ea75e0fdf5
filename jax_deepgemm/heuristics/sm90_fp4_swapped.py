"""Tile configurations of the Hopper GEMM of few tokens with FP4 weights: what could pay, and a model of its time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jax_deepgemm.heuristics.fp4_config import Scales
from jax_deepgemm.heuristics.fp4_swapped_config import UNIT_BLOCKS, Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

MAX_TOKENS = 128  # beyond which weights had better be decoded once for many of them
COLUMNS = (8, 16, 32, 48, 64, 96, 128)

CLOCK_MHZ = 1700
L2_BYTES_PER_US = 6.77e6
LAUNCH_US = 3.18
TILE_US = 0.83  # the sums' way to memory
SPLIT_US = 1.52


class Costs(NamedTuple):
    """In cycles of a unit: for any tile, and for each of its tokens."""

    latency: tuple[float, float]  # from its arrival to its sums, for a warpgroup alone
    issue: tuple[float, float]  # by which units of 64 rows follow each other, whichever warpgroup takes them
    scales: tuple[float, float]  # of a warp that writes them
    copies: tuple[float, float]  # of the warp that copies tokens by fours of bytes
    bytes_per_us: float  # from memory


# Fitted to 311 measured (shape, configuration) pairs of 24 shapes on an H200.
IN_ORDER = Costs((1054, 11.9), (338, 7.9), (1384, 5.85), (0, 0), 2.42e6)
REORDERED = Costs((1339, 0), (381, 9.9), (500, 0), (55, 38.5), 2.88e6)

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
    cost = REORDERED if c.groups_by_lanes(scales) else IN_ORDER
    tiles = ceil_div(n, c.rows) * ceil_div(m, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.split_k, num_sms))
    units = ceil_div(ceil_div(k, UNIT_BLOCKS * BLOCK_K), c.split_k)

    def cycles(of: tuple[float, float], tokens: int = c.columns) -> float:
        return of[0] + of[1] * tokens

    busiest = max(
        cycles(cost.latency) * ceil_div(units, c.k_groups),
        cycles(cost.issue) * units * c.rows / 64,
        cycles(cost.scales) * ceil_div(units, c.scale_warps),
        cycles(cost.copies, min(m, c.columns)) * units,
    )
    work = waves * (busiest / CLOCK_MHZ + TILE_US + SPLIT_US * (c.split_k > 1))
    weights = n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    landed = weights * ceil_div(m, c.columns) + tiles * c.columns * k
    memory = (weights + m * k + m * n * out_bytes) / cost.bytes_per_us
    return LAUNCH_US + (work**4 + max(memory, landed / L2_BYTES_PER_US) ** 4) ** 0.25
